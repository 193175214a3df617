package node

import (
	"errors"
	"fmt"

	"wormhole/edge/cluster"
	"wormhole/edge/nameserver"
)

// openDNS binds the sockets for queries, if this edge answers any.
func (n *Node) openDNS() error {
	if n.cfg.DNS == "" {
		if s := n.inherited; s != nil && s.DNS != nil {
			// Left open, they would take queries that nobody answers.
			return errors.Join(s.DNS.Close(), s.DNSPackets.Close())
		}
		return nil
	}
	cfg := nameserver.Config{Listen: n.cfg.DNS, Zones: n.cfg.DNSZones, TTL: n.cfg.DNSTTL, Places: n.cfg.Places()}
	if s := n.inherited; s != nil {
		cfg.Listener, cfg.PacketConn = s.DNS, s.DNSPackets
	}
	server, err := nameserver.New(cfg, named{n}, n.logger)
	if err != nil {
		return fmt.Errorf("--dns: %w", err)
	}
	n.dns = server
	return nil
}

// public is how the world finds this edge.
func (n *Node) public() cluster.Public {
	return cluster.Public{
		Node: n.id, Region: n.cfg.Region, Hostname: n.cfg.Hostname, Addrs: n.cfg.PublicAddresses(), DNS: n.cfg.DNS != "",
		Live: !n.draining.Load(),
	}
}

// named is the network as its name server sees it.
type named struct{ n *Node }

// Edges are this edge and the others. One that drains is live while there is no
// other: better a last answer than none.
func (v named) Edges() []nameserver.Edge {
	self := v.n.public()
	list := []cluster.Public{self}
	others := false
	if v.n.cluster != nil {
		for _, p := range v.n.cluster.Others() {
			others = others || p.Live && len(p.Addrs) > 0
			list = append(list, p)
		}
	}
	list[0].Live = self.Live || !others
	out := make([]nameserver.Edge, 0, len(list))
	for _, p := range list {
		out = append(out, nameserver.Edge{Region: p.Region, Hostname: p.Hostname, Addrs: p.Addrs, DNS: p.DNS, Live: p.Live})
	}
	return out
}

// Pattern is the pattern of the site that a host belongs to, at whichever edge.
func (v named) Pattern(host string) (string, bool) {
	if sites, ok := v.n.network.(*cluster.Sites); ok {
		return sites.PatternOf(host)
	}
	return v.n.sites.Pattern(host)
}

// Patterns yields the patterns of all sites.
func (v named) Patterns(yield func(string) bool) {
	if sites, ok := v.n.network.(*cluster.Sites); ok {
		sites.Patterns(yield)
		return
	}
	for _, s := range v.n.sites.List() {
		if !yield(s.Host()) {
			return
		}
	}
}
