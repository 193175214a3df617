package node

import (
	"context"
	"net"
	"strconv"

	"wormhole/edge/admin"
	"wormhole/edge/rawtcp"
	"wormhole/edge/site"
	"wormhole/shared/hostname"
)

// openRawTCP opens the raw TCP ports of the sites known now, and follows changes.
// The other doors must be open, because their ports are taken.
func (n *Node) openRawTCP() {
	own := map[int]string{}
	add := func(flag, address string) {
		if _, text, err := net.SplitHostPort(address); err == nil {
			if port, err := strconv.Atoi(text); err == nil && port > 0 {
				own[port] = flag
			}
		}
	}
	addrs := n.addresses()
	add("--cluster-listen", n.cfg.ClusterListen)
	add("--dns", n.cfg.DNS)
	add("--admin", addrs["admin"])
	add("--http", addrs["http"])
	add("--https", addrs["https"])
	host, _, _ := net.SplitHostPort(n.cfg.HTTPS)
	cfg := rawtcp.Config{Host: host, Own: own, Quiet: n.cfg.AccessLog == "off", Usage: n.usage}
	if n.inherited != nil {
		cfg.Inherited = n.inherited.Raw
	}
	n.raw = rawtcp.New(cfg, n.sites, n.network, n.logger)
	n.sites.OnRules(n.raw.Sync)
	for _, s := range n.sites.List() {
		if s.Rules().TCP.Listen != "" {
			n.raw.Sync(s.Host())
		}
	}
}

// ApplySites puts rules into force, durably; if one asks for a port that it cannot
// have, none.
func (n *Node) ApplySites(ctx context.Context, specs []site.Spec) error {
	for _, spec := range specs {
		rules, err := site.Compile(spec, site.DefaultRules())
		if err != nil {
			return err
		}
		pattern, err := hostname.CanonicalPattern(spec.Host)
		if err != nil {
			return err
		}
		release, err := n.raw.Claim(pattern, rules.TCP)
		if err != nil {
			return &admin.Error{Status: 422, Code: "bad_port", Message: "site " + pattern + ": " + err.Error()}
		}
		defer release()
	}
	for _, spec := range specs {
		if err := n.keeper.Apply(ctx, spec); err != nil {
			return err
		}
	}
	return nil
}

// rawStatus lists the raw TCP ports.
func (n *Node) rawStatus() []admin.RawTCP {
	var out []admin.RawTCP
	for _, s := range n.raw.Status() {
		row := admin.RawTCP{Host: s.Host, Address: s.Address, Connections: s.Connections}
		if s.Err != nil {
			row.Error = s.Err.Error()
		}
		out = append(out, row)
	}
	return out
}
