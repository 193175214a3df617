package site

import (
	"hash/maphash"
	"maps"
	"sync/atomic"
)

// shards is how many pieces an index is cut into.
const shards = 4096

// index maps names to sites. Reading takes no lock: each shard is an immutable
// map behind a pointer. Writing copies one shard, which with a hundred thousand
// names holds some twenty-five, so that one registration costs microseconds
// whatever the size. A sync.Map would be as quick to write, but to ask it for a
// string allocates.
//
// Writers must be serialised by the owner.
type index struct {
	seed maphash.Seed
	part [shards]atomic.Pointer[map[string]*Site]
}

func newIndex() *index { return &index{seed: maphash.MakeSeed()} }

func (x *index) shard(name string) *atomic.Pointer[map[string]*Site] {
	return &x.part[maphash.String(x.seed, name)%shards]
}

func (x *index) get(name string) *Site {
	m := x.shard(name).Load()
	if m == nil {
		return nil
	}
	return (*m)[name]
}

func (x *index) put(name string, s *Site) {
	x.change(name, func(m map[string]*Site) { m[name] = s })
}

func (x *index) remove(name string) {
	x.change(name, func(m map[string]*Site) { delete(m, name) })
}

func (x *index) change(name string, f func(map[string]*Site)) {
	p := x.shard(name)
	next := map[string]*Site{}
	if old := p.Load(); old != nil {
		next = maps.Clone(*old)
	}
	f(next)
	p.Store(&next)
}

// all yields every site, in no order. Sites that come or go meanwhile may be
// among them or not.
func (x *index) all(yield func(*Site) bool) {
	for i := range x.part {
		m := x.part[i].Load()
		if m == nil {
			continue
		}
		for _, s := range *m {
			if !yield(s) {
				return
			}
		}
	}
}
