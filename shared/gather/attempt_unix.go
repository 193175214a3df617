//go:build unix

package gather

import (
	"errors"
	"io"
	"syscall"

	"wormhole/shared/socket"
)

// attempt writes to a socket without waiting for it. Its fields belong to one write,
// and are here so that a write allocates nothing.
type attempt struct {
	socket syscall.RawConn // nil before the first write, and if there is none
	try    func(fd uintptr) bool
	p      []byte
	n      int
	err    error
}

// write writes as much of p as w takes at once, nothing if w is no socket.
func (a *attempt) write(w io.Writer, p []byte) (int, error) {
	if a.socket == nil {
		conn, ok := w.(syscall.Conn)
		if !ok {
			return 0, nil
		}
		var err error
		if a.socket, err = conn.SyscallConn(); err != nil {
			return 0, err
		}
		a.try = a.once
	}
	a.p = p
	err := a.socket.Write(a.try)
	a.p = nil
	if err != nil {
		return 0, err // the connection is closed, or its deadline has passed
	}
	return a.n, a.err
}

// once is one system call, after which the runtime is not to wait for the socket.
func (a *attempt) once(fd uintptr) bool {
	a.n, a.err = socket.Offer(fd, a.p)
	if errors.Is(a.err, syscall.EAGAIN) || errors.Is(a.err, syscall.EINTR) {
		a.err = nil
	}
	return true
}
