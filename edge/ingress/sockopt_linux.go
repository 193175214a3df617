package ingress

import (
	"net"

	"golang.org/x/sys/unix"

	"wormhole/shared/socket"
)

// unsent is how many bytes the kernel keeps that it cannot send yet. Its own limit
// is some MiB for every connection: with many clients that do not read, GiB, and
// answers that seem to progress while nobody takes them.
const unsent = 128 << 10

// boundUnsent applies that limit to a client's connection. Failure is no error: the
// kernel's own limit holds then.
func boundUnsent(c net.Conn) {
	tcp := socket.TCP(c)
	if tcp == nil {
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsent) })
}

// hasUnread reports whether the kernel holds bytes of c that were not read yet.
func hasUnread(c net.Conn) bool {
	tcp := socket.TCP(c)
	if tcp == nil {
		return false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return false
	}
	n := 0
	_ = raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	return n > 0
}

// acknowledged returns how many bytes the other end of c has acknowledged, and
// whether the kernel holds more for it. Probes of a closed window and what is sent
// again do not count, as they would in the times that the kernel keeps.
func acknowledged(c net.Conn) (bytes uint64, owed bool) {
	tcp := socket.TCP(c)
	if tcp == nil {
		return 0, false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0, false
	}
	_ = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return
		}
		bytes, owed = info.Bytes_acked, info.Unacked > 0 || info.Notsent_bytes > 0
	})
	return bytes, owed
}
