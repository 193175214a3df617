package tlsmux

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// tune sets what the kernel should do for a tunnel's connection. Failure is no
// error: it only makes a dead peer take longer to notice.
func tune(conn net.Conn) {
	for {
		if sc, ok := conn.(syscall.Conn); ok {
			raw, err := sc.SyscallConn()
			if err != nil {
				return
			}
			_ = raw.Control(func(fd uintptr) {
				// Sent but unacknowledged for 15 s means a dead path.
				_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 15_000)
				// Little unsent data in the kernel, so that a short request does not wait
				// behind bulk there.
				_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, outboxLimit)
			})
			return
		}
		inner, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			return
		}
		conn = inner.NetConn()
	}
}
