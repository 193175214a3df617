package edgetest

import (
	"errors"
	"syscall"
)

// smallSegments gives a socket the segments of an ordinary network. Those of
// loopback are larger than the whole memory of a thin pipe, which then stalls.
func smallSegments(_, _ string, c syscall.RawConn) error {
	var set error
	err := c.Control(func(fd uintptr) { set = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_MAXSEG, 1400) })
	return errors.Join(err, set)
}
