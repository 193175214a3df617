package site

import (
	"sync/atomic"
	"time"

	"wormhole/edge/balance"
	"wormhole/edge/usage"
)

// Site is one host name, or all names below a parent, with its backends and its
// rules. Its methods may be called concurrently.
type Site struct {
	host  string
	since time.Time
	pool  balance.Pool // of requests
	tcp   balance.Pool // of raw connections
	state atomic.Pointer[state]
	used  atomic.Pointer[usage.Counter] // nil until it is asked for

	attached int // backends registered now; guarded by Registry.mu
}

// state is what an operator's change replaces as a whole.
type state struct {
	spec  Spec
	rules *Rules
	// configured says that an operator applied the spec.
	configured bool
}

func newSite(host string, rules *Rules) *Site {
	s := &Site{host: host, since: time.Now()}
	s.state.Store(&state{spec: Spec{Host: host}, rules: rules})
	return s
}

// Host is the canonical host name or wildcard.
func (s *Site) Host() string { return s.host }

// Since is when this process first knew the site.
func (s *Site) Since() time.Time { return s.since }

// Pool holds the backends that take the site's requests. It is the same for the site's life.
func (s *Site) Pool() *balance.Pool { return &s.pool }

// onPoolChange has f called after each change of the site's backends.
func (s *Site) onPoolChange(f func(*Site)) {
	s.pool.OnChange(func() { f(s) })
	s.tcp.OnChange(func() { f(s) })
}

// Usage counts what the site uses. The same counter is returned for the site's life.
func (s *Site) Usage() *usage.Counter {
	if c := s.used.Load(); c != nil {
		return c
	}
	s.used.CompareAndSwap(nil, usage.NewCounter(s.host))
	return s.used.Load()
}

// TCP holds the backends that may take raw TCP connections.
func (s *Site) TCP() *balance.Pool { return &s.tcp }

// Rules are the rules in force now. A request should ask once and keep them.
func (s *Site) Rules() *Rules { return s.state.Load().rules }

// Spec is what an operator applied; without that it holds the host only.
func (s *Site) Spec() Spec { return s.state.Load().spec }

// Configured reports whether an operator applied a Spec.
func (s *Site) Configured() bool { return s.state.Load().configured }
