package config

import (
	"net"
	"net/netip"
	"slices"
	"time"

	"wormhole/edge/nameserver"
	"wormhole/shared/hostname"
)

// maxAddresses is how many addresses one edge may tell the others.
const maxAddresses = 8

func (c *Config) checkDNS(bad func(key, format string, args ...any)) {
	for i, zone := range c.DNSZones {
		name, err := hostname.Canonical(zone)
		switch {
		case err != nil:
			bad("dns_zone", "%v", err)
		case slices.Contains(c.DNSZones[:i], name):
			bad("dns_zone", "%s is there twice", name)
		default:
			c.DNSZones[i] = name
		}
	}
	if len(c.DNSAddresses) > maxAddresses {
		bad("dns_address", "%d addresses, at most %d are possible", len(c.DNSAddresses), maxAddresses)
	}
	for _, text := range c.DNSAddresses {
		if a, err := netip.ParseAddr(text); err != nil || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
			bad("dns_address", "%q is not an address that others can reach", text)
		}
	}
	for _, text := range c.DNSPlaces {
		if _, err := nameserver.ParsePlace(text); err != nil {
			bad("dns_place", "%v", err)
		}
	}
	if c.DNSTTL < time.Second || c.DNSTTL > 24*time.Hour || c.DNSTTL%time.Second != 0 {
		bad("dns_ttl", "%s is not in whole seconds from 1s to 24h", c.DNSTTL)
	}
	if c.DNS == "" {
		if len(c.DNSPlaces) > 0 {
			bad("dns_place", "needs dns")
		}
		if len(c.DNSAddresses) > 0 && c.ClusterListen == "" {
			bad("dns_address", "needs dns or cluster_listen")
		}
		return
	}
	if len(c.DNSZones) == 0 {
		bad("dns_zone", "say which names are answered, such as edge.example.com")
	}
	if c.Hostname == "" {
		bad("hostname", "dns needs it: it is the name server's own name")
	}
	if len(c.PublicAddresses()) == 0 {
		bad("dns_address", "say under which addresses the world reaches this edge")
	}
}

// PublicAddresses is where the world reaches this edge: DNSAddresses, else the
// address in Advertise or in HTTPS; none if those are not addresses.
func (c *Config) PublicAddresses() []netip.Addr {
	var out []netip.Addr
	for _, text := range c.DNSAddresses {
		if a, err := netip.ParseAddr(text); err == nil {
			out = append(out, a.Unmap())
		}
	}
	if len(out) > 0 {
		return out
	}
	for _, text := range []string{c.Advertise, c.HTTPS} {
		host, _, err := net.SplitHostPort(text)
		if err != nil {
			host = text
		}
		if a, err := netip.ParseAddr(host); err == nil && !a.IsUnspecified() {
			return []netip.Addr{a.Unmap().WithZone("")}
		}
	}
	return nil
}

// Places is DNSPlaces parsed; c must be valid.
func (c *Config) Places() []nameserver.Place {
	out := make([]nameserver.Place, 0, len(c.DNSPlaces))
	for _, text := range c.DNSPlaces {
		if p, err := nameserver.ParsePlace(text); err == nil {
			out = append(out, p)
		}
	}
	return out
}
