//go:build !linux

package ingress

import "net"

// awaiter would tell when connections have something to read. It takes none, so that
// somebody waits at each.
type awaiter struct{}

func newAwaiter() (*awaiter, error)         { return &awaiter{}, nil }
func (*awaiter) add(*h1Conn, net.Conn) bool { return false }
func (*awaiter) remove(*h1Conn)             {}
func (*awaiter) run(func(*h1Conn))          {}
func (*awaiter) close()                     {}
