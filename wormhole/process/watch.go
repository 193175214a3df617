package process

import (
	"cmp"
	"context"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

const (
	// pollInterval is how soon after it listens an app is found.
	pollInterval = 50 * time.Millisecond
	// settle is how long after its first listener an app may open others
	// before one is chosen.
	settle = 250 * time.Millisecond
	// settlePreferred replaces settle while the port that PORT names is missing.
	settlePreferred = 3 * time.Second
)

// otherProtocols are ports which programs in an app's container open beside
// HTTP: they are chosen last.
var otherProtocols = []uint16{
	22,    // ssh
	25,    // smtp
	3306,  // mysql
	4369,  // erlang port mapper
	5005,  // java debugger
	5432,  // postgresql
	6379,  // redis
	9229,  // node inspector
	11211, // memcached
	27017, // mongodb
}

// WatchPort waits until the app listens and returns the address to send
// requests to. The port named by PORT in the app's environment is taken as soon
// as anything listens on it. Else the app has a moment to open all its
// listeners, of which [ChoosePort] picks one; the choice is logged. It returns
// ErrExited if the app ends before, the cause of ctx if that ends before, and
// ErrUnsupported where ListeningPorts does.
func (p *Process) WatchPort(ctx context.Context) (netip.AddrPort, error) {
	preferred := p.preferredPort()
	wait := settle
	if preferred != 0 {
		wait = settlePreferred
	}
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	var settled <-chan time.Time // nil until the first listener
	for {
		found, err := p.ListeningPorts()
		if err != nil {
			return netip.AddrPort{}, err
		}
		if addr, ok := ChoosePort(found, preferred); ok {
			if preferred != 0 && addr.Port() == preferred {
				p.logger.Info("app listens", "addr", addr)
				return addr, nil
			}
			if settled == nil {
				timer := time.NewTimer(wait)
				defer timer.Stop()
				settled = timer.C
			}
		}
		select {
		case <-tick.C:
		case <-settled:
			found, err := p.ListeningPorts()
			if err != nil {
				return netip.AddrPort{}, err
			}
			addr, ok := ChoosePort(found, preferred)
			if !ok { // it listened only for a moment: begin again
				settled = nil
				continue
			}
			if preferred != 0 && addr.Port() != preferred {
				p.logger.Warn("app does not listen on the port that PORT names", "addr", addr, "port", preferred)
			} else {
				p.logger.Info("app listens", "addr", addr, "listeners", len(found))
			}
			return addr, nil
		case <-p.done:
			return netip.AddrPort{}, ErrExited
		case <-ctx.Done():
			return netip.AddrPort{}, context.Cause(ctx)
		}
	}
}

func (p *Process) preferredPort() uint16 {
	value, _ := lookupEnv(p.env, "PORT")
	port, err := strconv.ParseUint(value, 10, 16)
	if err != nil {
		return 0
	}
	return uint16(port)
}

// ChoosePort picks, of the addresses an app listens on, the one that most likely
// takes the public's requests: the preferred port (0 for none); else ports that
// are not known for another protocol; else a wildcard address before one
// interface's before loopback, because debuggers and control ports hide on the
// latter; else the lowest port. It returns false if there is nothing to pick.
func ChoosePort(found []netip.AddrPort, preferred uint16) (netip.AddrPort, bool) {
	if len(found) == 0 {
		return netip.AddrPort{}, false
	}
	rank := func(a netip.AddrPort) int {
		r := 0
		if a.Port() != preferred {
			r += 8
			if slices.Contains(otherProtocols, a.Port()) {
				r += 4
			}
		}
		switch ip := a.Addr().Unmap(); {
		case ip.IsUnspecified():
		case ip.IsLoopback():
			r += 2
		default:
			r++
		}
		return r
	}
	return slices.MinFunc(found, func(a, b netip.AddrPort) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Port(), b.Port()), a.Compare(b))
	}), true
}

// DialTargets returns the host:port addresses at which a listener on addr
// can be reached from this machine, the likeliest first. A wildcard is
// reached over loopback; [::] usually takes IPv4 as well, and containers often
// have no ::1.
func DialTargets(addr netip.AddrPort) []string {
	port := strconv.Itoa(int(addr.Port()))
	switch {
	case !addr.Addr().IsUnspecified():
		return []string{addr.String()}
	case addr.Addr().Is4():
		return []string{net.JoinHostPort("127.0.0.1", port)}
	default:
		return []string{net.JoinHostPort("127.0.0.1", port), net.JoinHostPort("::1", port)}
	}
}
