//go:build !linux

package process

import "net/netip"

func listeningSockets() map[uint64]struct{} { return nil }

func (p *Process) listeners() ([]netip.AddrPort, error) { return nil, ErrUnsupported }
