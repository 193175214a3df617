package socket

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
)

// conn is a TCP connection with reads and writes of its own. All methods may be
// called concurrently, as those of every net.Conn.
type conn struct {
	*net.TCPConn
	raw     syscall.RawConn
	in, out transfer
}

// transfer is one direction: what the callback of syscall.RawConn works on. The
// callback is made once, since one made for each call would be on the heap.
type transfer struct {
	mu   sync.Mutex // guards what follows, and is held while a call waits
	p    []byte
	n    int // bytes of p that are done
	err  syscall.Errno
	step func(fd uintptr) (done bool)
}

func direct(tcp *net.TCPConn) net.Conn {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return tcp // closed; let its own methods say so
	}
	c := &conn{TCPConn: tcp, raw: raw}
	c.in.step, c.out.step = c.in.readOnce, c.out.writeAll
	return c
}

func (c *conn) tcp() *net.TCPConn { return c.TCPConn }

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := c.in.run(p, c.raw.Read)
	if err != nil {
		return n, c.wrap("read", err)
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// Write implements net.Conn.
func (c *conn) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := c.out.run(p, c.raw.Write)
	if err != nil {
		return n, c.wrap("write", err)
	}
	return n, nil
}

// run has wait call t's step until it is done with p. The error is the kernel's or,
// with none, that of waiting, such as a deadline.
func (t *transfer) run(p []byte, wait func(func(uintptr) bool) error) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.p, t.n, t.err = p, 0, 0
	err := wait(t.step)
	t.p = nil
	if t.err != 0 {
		err = t.err
	}
	return t.n, err
}

func (t *transfer) readOnce(fd uintptr) bool {
	for {
		switch n, err := read(fd, t.p); err {
		case 0:
			t.n = n
			return true
		case syscall.EINTR:
		case syscall.EAGAIN:
			return false
		default:
			t.err = err
			return true
		}
	}
}

func (t *transfer) writeAll(fd uintptr) bool {
	for t.n < len(t.p) {
		switch n, err := write(fd, t.p[t.n:]); err {
		case 0:
			t.n += n
		case syscall.EINTR:
		case syscall.EAGAIN:
			return false
		default:
			t.err = err
			return true
		}
	}
	return true
}

// wrap makes err what the net package would have returned.
func (c *conn) wrap(op string, err error) error {
	var waiting *net.OpError
	if errors.As(err, &waiting) {
		err = waiting.Err
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		err = os.NewSyscallError(op, errno)
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}
