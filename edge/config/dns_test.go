package config

import (
	"strings"
	"testing"
)

func TestDNSIsRefusedWithoutWhatItAnswers(t *testing.T) {
	for _, c := range []struct {
		args  string
		wants string // in the error; empty: there is none
	}{
		{"--dns :5353 --dns-zone Edge.Example.com --hostname e1.example.com --dns-address 203.0.113.1,2001:db8::1 --dns-place 10.0.0.0/8=fra/yyz", ""},
		{"--dns :5353 --dns-zone edge.example.com --hostname e1.example.com --https 203.0.113.1:443", ""},
		{"--dns-zone edge.example.com", ""}, // an edge that only shares the name
		{"--dns :5353", "dns_zone: say which names"},
		{"--dns :5353", "hostname: dns needs it"},
		{"--dns :5353", "dns_address: say under which"},
		{"--dns nonsense", "dns: "},
		{"--dns-zone a.example,A.example.", "dns_zone: a.example is there twice"},
		{"--dns-zone 10.0.0.1", "dns_zone: "},
		{"--dns-address 203.0.113.1", "dns_address: needs dns or cluster_listen"},
		{"--dns-address 0.0.0.0", `dns_address: "0.0.0.0" is not an address`},
		{"--dns-address e1.example.com", `dns_address: "e1.example.com" is not an address`},
		{"--dns-address 1.1.1.1,1.1.1.2,1.1.1.3,1.1.1.4,1.1.1.5,1.1.1.6,1.1.1.7,1.1.1.8,1.1.1.9", "at most 8"},
		{"--dns-place 10.0.0.0/8=fra", "dns_place: needs dns"},
		{"--dns-place 10.0.0.1/8=fra", "dns_place: 10.0.0.1/8 has bits beyond its length: write 10.0.0.0/8"},
		{"--dns-ttl 500ms", "dns_ttl: "},
		{"--dns-ttl 25h", "dns_ttl: "},
	} {
		cfg, err := load(t, nil, "", strings.Fields(c.args+" --tls internal")...)
		switch {
		case c.wants == "" && err != nil:
			t.Errorf("%s: %v", c.args, err)
		case c.wants != "" && (err == nil || !strings.Contains(err.Error(), c.wants)):
			t.Errorf("%s: %v, want %q", c.args, err, c.wants)
		case c.wants == "" && cfg.DNSZones[0] != "edge.example.com":
			t.Errorf("%s: zones are %v", c.args, cfg.DNSZones)
		}
	}
	cfg, err := load(t, map[string]string{"EDGE_DNS": ":53", "EDGE_DNS_ADDRESS": "203.0.113.9"},
		"dns_zone: [edge.example.com]\ndns_place: [10.0.0.0/8=fra]\nhostname: e1.example.com\ndns_ttl: 10s\n")
	if err != nil || cfg.DNS != ":53" || cfg.DNSTTL.Seconds() != 10 || len(cfg.Places()) != 1 || cfg.PublicAddresses()[0].String() != "203.0.113.9" {
		t.Errorf("%+v, %v", cfg, err)
	}
}
