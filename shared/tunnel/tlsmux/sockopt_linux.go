package tlsmux

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// tune sets what the kernel should do for a tunnel's connection. Failure is no
// error: it only makes a dead peer take longer to notice, and a lossy path slower.
func tune(conn net.Conn, congestion string) {
	socket := socketOf(conn)
	if socket == nil {
		return
	}
	_ = socket.Control(func(fd uintptr) {
		// Sent but unacknowledged for 15 s means a dead path.
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 15_000)
		// Little unsent data in the kernel, so that a short request does not wait
		// behind bulk there.
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, outboxLimit)
		if congestion != SystemCongestion {
			_ = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, congestion)
		}
	})
}

// unsentLimit returns what sets how many bytes the kernel may hold unsent; nil if
// conn is no socket.
func unsentLimit(conn net.Conn) func(bytes int) {
	socket := socketOf(conn)
	if socket == nil {
		return nil
	}
	return func(bytes int) {
		_ = socket.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, bytes)
		})
	}
}

// socketOf is the socket below conn, nil if there is none.
func socketOf(conn net.Conn) syscall.RawConn {
	for {
		if sc, ok := conn.(syscall.Conn); ok {
			raw, err := sc.SyscallConn()
			if err != nil {
				return nil
			}
			return raw
		}
		inner, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			return nil
		}
		conn = inner.NetConn()
	}
}
