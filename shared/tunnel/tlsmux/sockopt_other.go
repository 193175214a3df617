//go:build !linux

package tlsmux

import "net"

// tune has nothing to set here; keep-alives find a dead peer a little later.
func tune(net.Conn, string) {}

// unsentLimit is nil: nothing bounds what the kernel holds here.
func unsentLimit(net.Conn) func(bytes int) { return nil }
