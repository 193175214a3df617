//go:build !linux

package ingress

import "net"

func boundUnsent(net.Conn) {}

// hasUnread would report whether the kernel holds bytes that were not read.
func hasUnread(net.Conn) bool { return false }

// acknowledged would return how many bytes the other end of c has acknowledged.
func acknowledged(net.Conn) (bytes uint64, owed bool) { return 0, false }
