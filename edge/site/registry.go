package site

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"wormhole/edge/balance"
	"wormhole/shared/hostname"
	"wormhole/shared/token"
)

// Registry is all sites that the edge knows. Its zero value is not usable; see
// New. All methods may be called concurrently; Lookup and Pattern take no lock.
type Registry struct {
	defaults *Rules
	exact    *index // by host
	wild     *index // by the parent of a wildcard

	mu        sync.Mutex // guards writing to the indexes, Site.attached and the functions below
	onNewHost []func(pattern string)
	onPool    func(*Site)
	onRules   func(pattern string)
}

// New returns an empty registry. Sites without a Spec of their own have the rules
// defaults, nil meaning DefaultRules.
func New(defaults *Rules) *Registry {
	if defaults == nil {
		defaults = DefaultRules()
	}
	return &Registry{defaults: defaults, exact: newIndex(), wild: newIndex()}
}

// Lookup returns the site of a canonical host: the one with exactly this name,
// else the wildcard one label above. An exact site without backends still comes
// before a wildcard with some, since they may belong to different owners.
func (r *Registry) Lookup(host string) (*Site, bool) {
	if s := r.exact.get(host); s != nil {
		return s, true
	}
	if i := strings.IndexByte(host, '.'); i >= 0 {
		if s := r.wild.get(host[i+1:]); s != nil {
			return s, true
		}
	}
	return nil, false
}

// Pattern returns the host pattern of the site that a canonical host belongs to,
// and whether there is one: the question a source of certificates asks.
func (r *Registry) Pattern(host string) (string, bool) {
	s, ok := r.Lookup(host)
	if !ok {
		return "", false
	}
	return s.host, true
}

// Site returns the site with exactly this canonical pattern.
func (r *Registry) Site(pattern string) (*Site, bool) {
	x, name := r.place(pattern)
	s := x.get(name)
	return s, s != nil
}

// Attach adds a backend to the pools of a site that its kinds are for, by canonical
// host pattern; the site becomes known if it was not. The returned function takes the backend out again; it is
// idempotent, and the site stays known. Whether the agent may serve the pattern is
// for the caller to decide.
func (r *Registry) Attach(pattern string, b *balance.Backend) (detach func()) {
	r.mu.Lock()
	s, isNew := r.ensure(pattern)
	s.attached++
	told := r.onNewHost
	r.mu.Unlock()

	var removes []func()
	if b.Serves(token.KindHTTP) {
		removes = append(removes, s.pool.Add(b))
	}
	if b.Serves(token.KindTCP) {
		removes = append(removes, s.tcp.Add(b))
	}
	if isNew {
		tell(told, pattern)
	}
	var once sync.Once
	return func() {
		once.Do(func() {
			for _, remove := range removes {
				remove()
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			s.attached--
		})
	}
}

// Remember makes hosts known from before a restart, without backends. Those that
// are no valid host patterns are reported in the error; the others are kept.
// Functions given to OnNewHost are not called.
func (r *Registry) Remember(hosts ...string) error {
	var f faults
	for _, host := range hosts {
		pattern, err := hostname.CanonicalPattern(host)
		if err != nil {
			f.add("remember", err)
			continue
		}
		r.mu.Lock()
		r.ensure(pattern)
		r.mu.Unlock()
	}
	return f.err()
}

// Apply puts the rules of spec into force: at once for requests that begin later,
// not at all if spec has a fault. Backends and requests in flight are untouched.
func (r *Registry) Apply(spec Spec) error {
	rules, err := Compile(spec, r.defaults)
	if err != nil {
		return fmt.Errorf("site %s: %w", clip(spec.Host), err)
	}
	pattern, err := hostname.CanonicalPattern(spec.Host)
	if err != nil {
		return err
	}
	spec.Host = pattern
	r.mu.Lock()
	s, isNew := r.ensure(pattern)
	s.state.Store(&state{spec: spec, rules: rules, configured: true})
	told, changed := r.onNewHost, r.onRules
	r.mu.Unlock()
	if isNew {
		tell(told, pattern)
	}
	if changed != nil {
		changed(pattern)
	}
	return nil
}

// Delete withdraws what was applied for a host pattern and forgets the site,
// unless backends serve it now: then it goes on with the default rules, and is
// known until it is deleted without backends. It reports whether the pattern was
// known.
func (r *Registry) Delete(host string) bool {
	pattern, err := hostname.CanonicalPattern(host)
	if err != nil {
		return false
	}
	r.mu.Lock()
	x, name := r.place(pattern)
	s := x.get(name)
	switch {
	case s == nil:
	case s.attached > 0:
		s.state.Store(&state{spec: Spec{Host: pattern}, rules: r.defaults})
	default:
		x.remove(name)
	}
	changed := r.onRules
	r.mu.Unlock()
	if s != nil && changed != nil {
		changed(pattern)
	}
	return s != nil
}

// List returns all sites ordered by host.
func (r *Registry) List() []*Site {
	list := slices.AppendSeq(slices.Collect(r.exact.all), r.wild.all)
	slices.SortFunc(list, func(a, b *Site) int { return strings.Compare(a.host, b.host) })
	return list
}

// OnNewHost registers f to be called with each pattern that becomes known through
// Attach or Apply, after it can be looked up. f must return soon.
func (r *Registry) OnNewHost(f func(pattern string)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.onNewHost = append(slices.Clip(r.onNewHost), f)
}

// OnPoolChange sets what is called after each change of a site's backends, or of
// whether one of them is ready, suspect or draining. f must return soon. Set it
// before the first site is known.
func (r *Registry) OnPoolChange(f func(*Site)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.onPool = f
	for s := range r.exact.all {
		s.onPoolChange(f)
	}
	for s := range r.wild.all {
		s.onPoolChange(f)
	}
}

// OnRules sets what is called with a pattern after each Apply and Delete of it. f
// looks up for itself what holds now, since others may have changed it since.
func (r *Registry) OnRules(f func(pattern string)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.onRules = f
}

func tell(fs []func(string), pattern string) {
	for _, f := range fs {
		f(pattern)
	}
}

// ensure returns the site of a canonical pattern, made if need be. r.mu is held.
func (r *Registry) ensure(pattern string) (s *Site, isNew bool) {
	x, name := r.place(pattern)
	if s := x.get(name); s != nil {
		return s, false
	}
	s = newSite(pattern, r.defaults)
	if f := r.onPool; f != nil {
		s.onPoolChange(f)
	}
	x.put(name, s)
	return s, true
}

// place says where a canonical pattern is indexed, and under which name.
func (r *Registry) place(pattern string) (*index, string) {
	if parent, wild := strings.CutPrefix(pattern, "*."); wild {
		return r.wild, parent
	}
	return r.exact, pattern
}
