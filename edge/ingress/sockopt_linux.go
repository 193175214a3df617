package ingress

import (
	"net"

	"golang.org/x/sys/unix"
)

// unsent is how many bytes the kernel keeps that it cannot send yet. Its own limit
// is some MiB for every connection: with many clients that do not read, GiB, and
// answers that seem to progress while nobody takes them.
const unsent = 128 << 10

// boundUnsent applies that limit to a client's connection. Failure is no error: the
// kernel's own limit holds then.
func boundUnsent(c net.Conn) {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsent) })
}
