package agent

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// network is the TCP connection under a tunnel; zero for QUIC.
type network struct{ tcp *net.TCPConn }

// quiet is how long the other machine has not been heard on TCP's level, and
// whether that is known.
func (n network) quiet() (time.Duration, bool) {
	if n.tcp == nil {
		return 0, false
	}
	raw, err := n.tcp.SyscallConn()
	if err != nil {
		return 0, false
	}
	var info *unix.TCPInfo
	var infoErr error
	err = raw.Control(func(fd uintptr) {
		info, infoErr = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	})
	if err != nil || infoErr != nil {
		return 0, false
	}
	return time.Duration(min(info.Last_data_recv, info.Last_ack_recv)) * time.Millisecond, true
}
