//go:build !linux

package agent

import (
	"net"
	"time"
)

// network is the TCP connection under a tunnel; zero for QUIC.
type network struct{ tcp *net.TCPConn }

// quiet is how long the other machine has not been heard on TCP's level, and
// whether that is known: never, on this system.
func (n network) quiet() (time.Duration, bool) { return 0, false }
