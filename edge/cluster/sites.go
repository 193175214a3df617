package cluster

import (
	"strings"
	"sync"

	"wormhole/edge/cluster/bus"
	"wormhole/edge/site"
)

// Sites are the sites of the whole network as this edge sees them: its own, and
// those that other edges reach. The latter become sites of the registry, with the
// other edges as their backends, when first asked for: a hundred thousand that
// nobody asks for here cost an entry in a table each.
type Sites struct {
	cluster  *Cluster
	registry *site.Registry

	mu   sync.RWMutex // guards used
	used map[string]*reach
}

// reach is the other edges in the pool of one site.
type reach struct {
	mu       sync.Mutex // guards attached
	attached map[bus.Route]func()
}

func newSites(c *Cluster, registry *site.Registry) *Sites {
	return &Sites{cluster: c, registry: registry, used: map[string]*reach{}}
}

// Lookup returns the site of a canonical host, as site.Registry does: exact before
// wildcard, whichever edge has it.
func (s *Sites) Lookup(host string) (*site.Site, bool) {
	local, ok := s.registry.Lookup(host)
	b := s.cluster.bus
	if b.Len() == 0 {
		return local, ok
	}
	exact := ok && local.Host() == host
	if routes := b.Reach(host); len(routes) > 0 {
		s.use(host)
		return s.registry.Site(host)
	}
	if exact {
		return local, true
	}
	i := strings.IndexByte(host, '.')
	if i < 0 || len(b.ReachBelow(host[i+1:])) == 0 {
		return local, ok
	}
	pattern := "*" + host[i:]
	s.use(pattern)
	return s.registry.Site(pattern)
}

// Pattern is the pattern of the site that a canonical host belongs to.
func (s *Sites) Pattern(host string) (string, bool) {
	found, ok := s.Lookup(host)
	if !ok {
		return "", false
	}
	return found.Host(), true
}

// use makes the other edges backends of pattern here.
func (s *Sites) use(pattern string) {
	s.mu.RLock()
	r := s.used[pattern]
	s.mu.RUnlock()
	if r != nil {
		return
	}
	s.mu.Lock()
	if r = s.used[pattern]; r == nil {
		r = &reach{attached: map[bus.Route]func(){}}
		s.used[pattern] = r
	}
	s.mu.Unlock()
	s.sync(pattern, r)
}

// changed hears that the routes of pattern changed.
func (s *Sites) changed(pattern string) {
	if s == nil {
		return // before Attach
	}
	s.mu.RLock()
	r := s.used[pattern]
	s.mu.RUnlock()
	if r != nil {
		s.sync(pattern, r)
		return
	}
	// Somebody may wait for a backend of a site that had none here.
	if _, known := s.registry.Site(pattern); known {
		s.use(pattern)
	}
}

// resync looks at all sites again, as when a peer came.
func (s *Sites) resync() {
	s.mu.RLock()
	used := make(map[string]*reach, len(s.used))
	for pattern, r := range s.used {
		used[pattern] = r
	}
	s.mu.RUnlock()
	for pattern, r := range used {
		s.sync(pattern, r)
	}
}

// sync makes the pool's other edges those that the table has now. Edges whose own
// backends are in doubt count only when there is no better one.
func (s *Sites) sync(pattern string, r *reach) {
	r.mu.Lock()
	defer r.mu.Unlock()
	routes := s.cluster.bus.Reach(pattern)
	best := bus.Suspect
	for _, route := range routes {
		if route.State.Live() == bus.Ready {
			best = bus.Ready
		}
	}
	wanted := map[bus.Route]bool{}
	for _, route := range routes {
		if route.State.Live() == best {
			route.State &= bus.H2C
			wanted[route] = true
		}
	}
	for route, detach := range r.attached {
		if !wanted[route] {
			detach()
			delete(r.attached, route)
			if peer := s.cluster.peer(route.Node); peer != nil {
				peer.Forget(pattern)
			}
		}
	}
	for route := range wanted {
		if r.attached[route] != nil {
			continue
		}
		peer := s.cluster.peer(route.Node)
		if peer == nil {
			continue
		}
		appProtocol := ""
		if route.State == bus.H2C {
			appProtocol = "h2c"
		}
		r.attached[route] = s.registry.Attach(pattern, peer.Backend(pattern, appProtocol))
	}
}
