package ingress

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"wormhole/shared/socket"
)

// awaiter tells when connections have something to read, without a goroutine and
// a stack for each: those with a handler that runs for hours, and those whose client
// takes its time, would have one only to learn that the client leaves.
//
// The runtime does not see who waits here: it has an epoll of its own, and this one
// is in it as one more file.
type awaiter struct {
	epoll *os.File
	raw   syscall.RawConn

	mu      sync.Mutex        // guards what follows; h1Conn.mu may be held before it
	waiting map[int32]*h1Conn // by descriptor
}

func newAwaiter() (*awaiter, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	a := &awaiter{epoll: os.NewFile(uintptr(fd), "epoll"), waiting: make(map[int32]*h1Conn)}
	if a.raw, err = a.epoll.SyscallConn(); err != nil {
		_ = a.epoll.Close()
		return nil, err
	}
	return a, nil
}

// add has run tell of c, once, when the socket under c can be read without waiting:
// there are bytes, the client's end, or an error. It reports false if it cannot.
func (a *awaiter) add(c *h1Conn, under net.Conn) bool {
	tcp := socket.TCP(under)
	if tcp == nil {
		return false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return false
	}
	added := false
	_ = raw.Control(func(fd uintptr) {
		a.mu.Lock()
		defer a.mu.Unlock()
		event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLONESHOT, Fd: int32(fd)}
		if a.control(unix.EPOLL_CTL_ADD, fd, &event) == nil {
			a.waiting[event.Fd], c.awaited, added = c, event.Fd, true
		}
	})
	return added
}

// remove ends what add began, if run has not told of it yet.
func (a *awaiter) remove(c *h1Conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	// A closed descriptor has left epoll by itself, and may be another connection's by
	// now.
	if a.waiting[c.awaited] == c {
		delete(a.waiting, c.awaited)
		_ = a.control(unix.EPOLL_CTL_DEL, uintptr(c.awaited), nil)
	}
}

// control calls epoll_ctl.
func (a *awaiter) control(op int, fd uintptr, event *unix.EpollEvent) (err error) {
	if outer := a.raw.Control(func(epoll uintptr) { err = unix.EpollCtl(int(epoll), op, int(fd), event) }); outer != nil {
		return outer
	}
	return err
}

// run tells of connections until close.
func (a *awaiter) run(tell func(*h1Conn)) {
	var events [64]unix.EpollEvent
	for {
		n := 0
		err := a.raw.Read(func(epoll uintptr) bool {
			var err error
			for n, err = unix.EpollWait(int(epoll), events[:], 0); errors.Is(err, unix.EINTR); {
				n, err = unix.EpollWait(int(epoll), events[:], 0)
			}
			return n > 0
		})
		if err != nil {
			return
		}
		for i := range events[:n] {
			if c := a.take(events[i].Fd); c != nil {
				tell(c)
			}
		}
	}
}

// take returns who waits for the descriptor, nil if nobody does any more.
func (a *awaiter) take(fd int32) *h1Conn {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.waiting[fd]
	if c != nil {
		delete(a.waiting, fd)
		_ = a.control(unix.EPOLL_CTL_DEL, uintptr(fd), nil)
	}
	return c
}

// close ends run. It is idempotent.
func (a *awaiter) close() { _ = a.epoll.Close() }
