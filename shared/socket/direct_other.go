//go:build !linux

package socket

import "net"

// direct returns tcp: elsewhere system calls are not stable enough to be made
// without the standard library.
func direct(tcp *net.TCPConn) net.Conn { return tcp }
