package agents

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"wormhole/shared/protocol"
	"wormhole/shared/token"
)

func door(t *testing.T, cfg Config) *Door {
	t.Helper()
	cfg.Node = "e1"
	d, err := New(cfg, &fickle{}, &counted{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func hello(raw string) *protocol.Hello {
	return &protocol.Hello{Token: raw, Instance: strings.Repeat("a", 32)}
}

// A storm of agents is let in at the rate of the limit, and those turned away are
// told to come back at different times.
func TestB8AStormIsAdmittedInPortions(t *testing.T) {
	d := door(t, Config{HellosPerSecond: 10})
	admitted, waits := 0, map[time.Duration]bool{}
	for range 300 {
		_, err := d.admit(hello("t"))
		if err == nil {
			admitted++
			continue
		}
		var reject *protocol.Reject
		if !errors.As(err, &reject) || reject.Code != protocol.CodeBusy || reject.Code.Permanent() {
			t.Fatalf("turned away with %v, want busy, which heals", err)
		}
		if w := reject.RetryAfter(); w < 500*time.Millisecond || w > 5*time.Second {
			t.Errorf("told to wait %s, want 0.5 s to 5 s", w)
		}
		waits[reject.RetryAfter()] = true
	}
	if admitted < 10 || admitted > 15 {
		t.Errorf("%d of 300 were admitted at once, want about 10", admitted)
	}
	if len(waits) < 200 {
		t.Errorf("290 agents were given only %d different times", len(waits))
	}
}

func TestATokenHoldsAsManyTunnelsAsItMay(t *testing.T) {
	d := door(t, Config{MaxTunnels: 2})
	for range 2 {
		if _, err := d.admit(hello("one")); err != nil {
			t.Fatal(err)
		}
	}
	var reject *protocol.Reject
	if _, err := d.admit(hello("one")); !errors.As(err, &reject) || reject.Code != protocol.CodeTooManyTunnels {
		t.Errorf("third tunnel: %v, want %s", err, protocol.CodeTooManyTunnels)
	}
	if _, err := d.admit(hello("another")); err != nil {
		t.Errorf("another token's tunnel: %v", err)
	}
	d.release("one")
	if _, err := d.admit(hello("one")); err != nil {
		t.Errorf("after one has gone: %v", err)
	}
}

func TestHostsAreServedWithinTheTokenOnly(t *testing.T) {
	claims := func(hosts ...string) *token.Claims { return &token.Claims{Hosts: hosts} }
	cases := []struct {
		name    string
		asked   []string
		granted *token.Claims
		want    string // comma-separated; empty is a refusal
	}{
		{"nothing asked", nil, claims("b.example.com", "*.x.example.com"), "b.example.com"},
		{"nothing asked, wildcards only", nil, claims("*.x.example.com"), ""},
		{"within a wildcard", []string{"A.x.example.com"}, claims("*.x.example.com"), "a.x.example.com"},
		{"the wildcard itself", []string{"*.x.example.com"}, claims("*.x.example.com"), "*.x.example.com"},
		{"two labels below", []string{"a.b.x.example.com"}, claims("*.x.example.com"), ""},
		{"the wildcard's parent", []string{"x.example.com"}, claims("*.x.example.com"), ""},
		{"a wildcard over an exact host", []string{"*.example.com"}, claims("a.example.com"), ""},
		{"another host", []string{"b.example.com"}, claims("a.example.com"), ""},
		{"one of two", []string{"a.example.com", "b.example.com"}, claims("a.example.com"), ""},
		{"no host at all", []string{"a..b"}, claims("a.example.com"), ""},
	}
	for _, c := range cases {
		got, err := hostsToServe(c.asked, c.granted)
		if strings.Join(got, ",") != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s: got %v, %v; want %q", c.name, got, err, c.want)
		}
	}
}
