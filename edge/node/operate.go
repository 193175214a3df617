package node

import (
	"context"
	"errors"
	"sort"

	"wormhole/edge/admin"
	"wormhole/edge/balance"
	"wormhole/edge/site"
	"wormhole/shared/hostname"
)

var _ admin.Node = (*Node)(nil)

// Status describes the node now.
func (n *Node) Status() admin.Status {
	s := admin.Status{
		Node:      n.id,
		Hostname:  n.cfg.Hostname,
		Region:    n.cfg.Region,
		Version:   n.version,
		State:     "serving",
		Started:   n.started,
		Addresses: n.addresses(),
		DataDir:   n.cfg.DataDir,
		CA:        n.CAFile(),
		Sites:     len(n.sites.List()),
		Cluster:   n.Cluster(),
		RawTCP:    n.rawStatus(),
		Backends:  []admin.Backend{},
	}
	if n.draining.Load() {
		s.State = "draining"
	}
	for _, t := range n.door.Tunnels() {
		b := t.Backend()
		info := b.Info()
		s.Backends = append(s.Backends, admin.Backend{
			ID: info.ID, Name: info.Name, Hosts: t.Hosts(), State: stateOf(b), InFlight: b.InFlight(), Streams: t.Streams(), Kinds: info.Kinds,
			Carrier: info.Carrier, Remote: info.Remote, TokenID: info.TokenID, Instance: info.Instance, Tags: info.Tags,
			Release: info.Release, Branch: info.Branch, Version: info.Version, Since: info.Since, LastBeat: t.LastBeat(),
		})
	}
	sort.Slice(s.Backends, func(i, j int) bool {
		a, b := s.Backends[i], s.Backends[j]
		return a.Name < b.Name || a.Name == b.Name && a.ID < b.ID
	})
	return s
}

func stateOf(b *balance.Backend) string {
	switch {
	case b.Draining():
		return "draining"
	case !b.Ready():
		return "not_ready"
	case b.Suspect():
		return "suspect"
	case b.Ejected():
		return "ejected"
	}
	return "ready"
}

func (n *Node) addresses() map[string]string {
	out := map[string]string{}
	addrs := n.ingress.Addrs()
	if addrs.HTTPS != nil {
		out["https"] = addrs.HTTPS.String()
	}
	if addrs.HTTP != nil {
		out["http"] = addrs.HTTP.String()
	}
	if n.dns != nil {
		out["dns"] = n.dns.Addr().String()
	}
	if n.adminListener != nil {
		out["admin"] = n.adminListener.Addr().String()
	}
	return out
}

// Ready returns nil when the node takes requests.
func (n *Node) Ready() error {
	if n.draining.Load() {
		return errors.New("draining")
	}
	select {
	case <-n.ready:
		return nil
	default:
		return errors.New("starting")
	}
}

// Drain begins to take the node out of service; Run returns when it is done. It is
// idempotent.
func (n *Node) Drain() { n.drainOnce.Do(func() { close(n.drain) }) }

// Sites lists the sites.
func (n *Node) Sites() []admin.Site {
	list := n.sites.List()
	out := make([]admin.Site, 0, len(list))
	for _, s := range list {
		row := admin.Site{Host: s.Host(), Configured: s.Configured()}
		for _, b := range s.Pool().Backends() {
			row.Backends++
			row.InFlight += b.InFlight()
		}
		out = append(out, row)
	}
	return out
}

// SiteSpec is what was applied to a host.
func (n *Node) SiteSpec(host string) (site.Spec, bool) {
	pattern, err := hostname.CanonicalPattern(host)
	if err != nil {
		return site.Spec{}, false
	}
	s, ok := n.sites.Site(pattern)
	if !ok {
		return site.Spec{}, false
	}
	spec := s.Spec()
	spec.Host = s.Host()
	return spec, true
}

// DeleteSite withdraws them.
func (n *Node) DeleteSite(ctx context.Context, host string) (bool, error) {
	return n.keeper.Delete(ctx, host)
}
