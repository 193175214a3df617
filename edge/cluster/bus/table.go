package bus

import (
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
)

// Route is one edge that reaches a pattern.
type Route struct {
	Node  string
	State State
}

// table is all routes by pattern. Reading takes a read lock of one shard; the
// slices it gives out are never changed.
type table struct {
	seed  maphash.Seed
	size  atomic.Int64
	parts [shards]struct {
		sync.RWMutex
		m map[string][]Route
	}
}

func newTable() *table { return &table{seed: maphash.MakeSeed()} }

func (t *table) set(pattern, node string, state State) {
	part := &t.parts[maphash.String(t.seed, pattern)%shards]
	part.Lock()
	defer part.Unlock()
	old := part.m[pattern]
	routes := slices.DeleteFunc(slices.Clone(old), func(r Route) bool { return r.Node == node })
	if state != Gone {
		routes = append(routes, Route{node, state})
	}
	switch {
	case len(routes) > 0:
		if part.m == nil {
			part.m = map[string][]Route{}
		}
		part.m[pattern] = slices.Clip(routes)
	default:
		delete(part.m, pattern)
	}
	if (len(old) == 0) != (len(routes) == 0) {
		if len(routes) == 0 {
			t.size.Add(-1)
		} else {
			t.size.Add(1)
		}
	}
}

func (t *table) get(pattern string) []Route {
	if t.size.Load() == 0 {
		return nil
	}
	part := &t.parts[maphash.String(t.seed, pattern)%shards]
	part.RLock()
	defer part.RUnlock()
	return part.m[pattern]
}

// getBelow does not allocate the name it looks for.
func (t *table) getBelow(parent string) []Route {
	if t.size.Load() == 0 || len(parent) > 253 {
		return nil
	}
	var buf [256]byte
	pattern := append(append(buf[:0], "*."...), parent...)
	part := &t.parts[maphash.Bytes(t.seed, pattern)%shards]
	part.RLock()
	defer part.RUnlock()
	return part.m[string(pattern)]
}

func (t *table) all(yield func(string) bool) {
	for i := range t.parts {
		part := &t.parts[i]
		part.RLock()
		names := make([]string, 0, len(part.m))
		for pattern := range part.m {
			names = append(names, pattern)
		}
		part.RUnlock()
		for _, name := range names {
			if !yield(name) {
				return
			}
		}
	}
}
