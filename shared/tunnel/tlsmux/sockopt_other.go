//go:build !linux

package tlsmux

import "net"

// tune has nothing to set here; keep-alives find a dead peer a little later.
func tune(net.Conn) {}
