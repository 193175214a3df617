package cluster

import (
	"net/netip"
	"strings"

	"wormhole/edge/cluster/bus"
	"wormhole/edge/cluster/relay"
	"wormhole/shared/hostname"
)

// Public is an edge as the world finds it.
type Public struct {
	Node, Region string
	Hostname     string       // its own canonical name, or empty
	Addrs        []netip.Addr // those under which it can be reached
	DNS          bool         // whether it answers DNS queries
	Live         bool         // whether it takes requests, as far as is seen from here
}

// Publish says how the world finds this edge.
func (c *Cluster) Publish(p Public) {
	c.bus.Describe(func(i *bus.Info) { i.Hostname, i.Addrs, i.DNS = p.Hostname, p.Addrs, p.DNS })
}

// Others are the other edges that have said how the world finds them.
func (c *Cluster) Others() []Public {
	live := map[string]bool{}
	for _, l := range c.Edges() {
		// Agents may stay with an edge that has fallen silent for a moment; new visitors
		// are better sent elsewhere.
		p := c.peer(l.Node)
		live[l.Node] = p != nil && p.Health() != relay.Suspect
	}
	var out []Public
	for _, m := range c.Members() {
		info, ok := c.bus.Info(m.Node)
		if !ok || m.Left || m.Node == c.cfg.Node {
			continue
		}
		p := Public{Node: m.Node, Region: info.Region, Addrs: info.Addrs, DNS: info.DNS, Live: live[m.Node]}
		if name, err := hostname.Canonical(info.Hostname); err == nil {
			p.Hostname = name
		}
		out = append(out, p)
	}
	return out
}

// PatternOf is Pattern without making the site one of this edge's own registry: for
// those who ask only whether there is one.
func (s *Sites) PatternOf(host string) (string, bool) {
	b := s.cluster.bus
	if len(b.Reach(host)) > 0 {
		return host, true
	}
	pattern, ok := s.registry.Pattern(host)
	if ok && pattern == host {
		return pattern, true
	}
	if i := strings.IndexByte(host, '.'); i >= 0 && len(b.ReachBelow(host[i+1:])) > 0 {
		return "*" + host[i:], true
	}
	return pattern, ok
}

// Patterns yields the patterns of all sites, in no order, some of them twice.
func (s *Sites) Patterns(yield func(string) bool) {
	for _, known := range s.registry.List() {
		if !yield(known.Host()) {
			return
		}
	}
	s.cluster.bus.Patterns(yield)
}
