//go:build unix && !linux

package socket

import "syscall"

// Offer writes as much of p as the socket fd takes at once. fd must never block, as
// those that syscall.RawConn lends; n is 0 with an error.
func Offer(fd uintptr, p []byte) (n int, err error) {
	n, err = syscall.Write(int(fd), p)
	return max(n, 0), err
}
