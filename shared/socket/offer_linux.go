package socket

// Offer writes as much of p as the socket fd takes at once, in one system call of
// which the scheduler does not hear. fd must never block, as those that
// syscall.RawConn lends; n is 0 with an error.
func Offer(fd uintptr, p []byte) (n int, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, errno := write(fd, p)
	if errno != 0 {
		return 0, errno
	}
	return n, nil
}
