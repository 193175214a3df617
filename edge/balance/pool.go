package balance

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Pool is the backends of one site. The zero value is an empty pool. All methods
// may be called concurrently; Pick takes no lock.
type Pool struct {
	// Retries bounds the requests of the site that are sent a second time.
	Retries Budget
	// Parked counts the requests that wait for a backend.
	Parked Slots

	random  func() uint64           // nil means the runtime's source
	members atomic.Pointer[members] // immutable, replaced as a whole
	hook    atomic.Pointer[func()]  // see OnChange

	mu      sync.Mutex    // guards the fields below and the replacement of backends
	changed chan struct{} // closed when a backend came or became better; nil while nobody waits
}

// members are the backends of a pool. Most pools have near ones only; then near
// and all are one slice.
type members struct {
	all  []*Backend // in the order they came
	near []*Backend // with a tunnel of this edge
	far  []*Backend // through other edges
}

// noMembers is what an empty pool has; it is never changed.
var noMembers members

// spill is how many requests a near backend may have in flight before those
// through other edges are considered too.
const spill = 256

// NewPool returns an empty pool that draws from random, which must be safe for
// concurrent use; nil means the runtime's own source.
func NewPool(random func() uint64) *Pool { return &Pool{random: random} }

// Add puts b into the choice. The returned function takes it out again; calling it
// twice does no harm.
func (p *Pool) Add(b *Backend) (remove func()) {
	b.listen(p)
	p.replace(func(old []*Backend) []*Backend { return append(slices.Clip(slices.Clone(old)), b) })
	p.wake()
	var once sync.Once
	return func() {
		once.Do(func() {
			p.replace(func(old []*Backend) []*Backend {
				i := slices.Index(old, b)
				if i < 0 {
					return old
				}
				return slices.Delete(slices.Clone(old), i, i+1)
			})
			b.unlisten(p)
		})
	}
}

func (p *Pool) replace(change func([]*Backend) []*Backend) {
	p.mu.Lock()
	next := &members{all: change(p.Backends())}
	next.near = next.all
	if slices.ContainsFunc(next.all, (*Backend).Far) {
		next.near = nil
		for _, b := range next.all {
			if b.Far() {
				next.far = append(next.far, b)
			} else {
				next.near = append(next.near, b)
			}
		}
	}
	p.members.Store(next)
	p.mu.Unlock()
	p.tell()
}

func (p *Pool) list() *members {
	if m := p.members.Load(); m != nil {
		return m
	}
	return &noMembers
}

// Backends returns the backends in the order they came. It must not be changed.
func (p *Pool) Backends() []*Backend { return p.list().all }

// Near returns the backends with a tunnel of this edge, in the order they came. It
// must not be changed.
func (p *Pool) Near() []*Backend { return p.list().near }

// OnChange sets what is called after each change of the backends or of whether one
// of them is ready, suspect or draining. f must return soon. Set it before the
// first Add.
func (p *Pool) OnChange(f func()) { p.hook.Store(&f) }

func (p *Pool) tell() {
	if f := p.hook.Load(); f != nil {
		(*f)()
	}
}

// Live counts the backends that are ready and not draining.
func (p *Pool) Live() int {
	n := 0
	for _, b := range p.Backends() {
		if b.flags.Load()&(flagNotReady|flagDraining) == 0 {
			n++
		}
	}
	return n
}

// Pick chooses a backend for one request and counts the request in; the caller
// calls Release on it when the answer's body has ended. Backends in tried are left
// out. Fit near backends come first, then fit far ones, also when the near ones have
// more than spill requests in flight; if there is none, suspect and ejected ones are
// tried all the same. One that is not ready or drains is never picked: nil means
// that no other is left.
func (p *Pool) Pick(tried ...*Backend) *Backend {
	list := p.list()
	// A backend can begin to drain between the choice and the count; then choose again.
	for range 4 {
		b := p.choose(list, tried)
		if b == nil || b.take() {
			return b
		}
	}
	return nil
}

// OutOfReach reports whether the pool's backends are all at other edges, none of
// which can be reached now.
func (p *Pool) OutOfReach() bool {
	list := p.list()
	return len(list.near) == 0 && len(list.far) > 0 && !slices.ContainsFunc(list.far, (*Backend).Ready)
}

// PickNear is Pick among the near backends only.
func (p *Pool) PickNear(tried ...*Backend) *Backend {
	near := p.Near()
	list := members{all: near, near: near}
	for range 4 {
		b := p.choose(&list, tried)
		if b == nil || b.take() {
			return b
		}
	}
	return nil
}

// Unready reports whether a near backend is there, and none but such as wait for
// their app or drain.
func (p *Pool) Unready() bool {
	waits := false
	for _, b := range p.Near() {
		switch flags := b.flags.Load(); {
		case flags&(flagNotReady|flagDraining) == 0:
			return false
		case flags&flagDraining == 0:
			waits = true
		}
	}
	return waits
}

// choose prefers near backends to far ones, and fit ones to all others.
func (p *Pool) choose(list *members, tried []*Backend) *Backend {
	b := p.fittest(list.near, tried)
	if len(list.far) > 0 && (b == nil || b.load.Load() >= spill) {
		if f := p.fittest(list.far, tried); f != nil {
			if b == nil {
				return f
			}
			b = lesser(b, f)
		}
	}
	if b != nil {
		return b
	}
	// All are unfit: try anyway, rather than fail for certain.
	usable := func(b *Backend) bool { return b.flags.Load()&(flagNotReady|flagDraining) == 0 }
	return lesser(p.scan(list.all, tried, usable))
}

// fittest draws two different fit backends, and falls back to looking at all of
// them when luck does not find one. It returns nil if none is fit.
func (p *Pool) fittest(list, tried []*Backend) *Backend {
	const draws = 4
	n := uint64(len(list))
	if n > 1 {
		for range draws {
			r := p.draw()
			i := (r >> 32) * n >> 32
			first := list[i]
			if !first.fit() || !first.takesShare(r) || slices.Contains(tried, first) {
				continue
			}
			for range draws {
				r := p.draw()
				j := (r >> 32) * (n - 1) >> 32
				if j >= i {
					j++
				}
				second := list[j]
				if !second.fit() || slices.Contains(tried, second) {
					continue
				}
				if !second.takesShare(r) {
					break // not drawn again: that would multiply its share
				}
				return lesser(first, second)
			}
			return first
		}
	}
	return lesser(p.scan(list, tried, (*Backend).fit))
}

// scan returns two different backends of those that satisfy ok and were not tried,
// starting from a random place; nil where there are fewer.
func (p *Pool) scan(list, tried []*Backend, ok func(*Backend) bool) (first, second *Backend) {
	n := uint64(len(list))
	if n == 0 {
		return nil, nil
	}
	// A uniform sample of two (reservoir), so that no backend profits from standing
	// behind a row of unfit ones.
	seen := uint64(0)
	for _, b := range list {
		if !ok(b) || slices.Contains(tried, b) {
			continue
		}
		seen++
		switch {
		case first == nil:
			first = b
		case second == nil:
			second = b
		default:
			switch (p.draw() >> 32) * seen >> 32 {
			case 0:
				first = b
			case 1:
				second = b
			}
		}
	}
	if second != nil && p.draw()&1 == 0 {
		first, second = second, first
	}
	return first, second
}

// lesser returns the one with fewer requests in flight, a if equal.
func lesser(a, b *Backend) *Backend {
	if b != nil && b.load.Load() < a.load.Load() {
		return b
	}
	return a
}

func (p *Pool) draw() uint64 {
	if p.random != nil {
		return p.random()
	}
	return rand.Uint64()
}

// Wait parks the caller until a fit backend is there, at once if one is. Backends
// registering, becoming ready or coming back from ejection release everybody. It
// returns ctx's error if that ends first. How many may wait is the caller's limit:
// see Parked.
func (p *Pool) Wait(ctx context.Context) error {
	for {
		changed := p.subscribe()
		soonest := time.Duration(-1)
		for _, b := range p.Backends() {
			if b.flags.Load() != 0 {
				continue
			}
			d := b.ejectedFor()
			if d == 0 {
				return nil
			}
			if soonest < 0 || d < soonest {
				soonest = d
			}
		}
		if err := waitChange(ctx, changed, soonest); err != nil {
			return err
		}
	}
}

// waitChange waits for changed to close, for d to pass (if not negative), or for ctx.
func waitChange(ctx context.Context, changed <-chan struct{}, d time.Duration) error {
	var timeout <-chan time.Time
	if d >= 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		timeout = t.C
	}
	select {
	case <-changed:
		return nil
	case <-timeout:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *Pool) subscribe() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.changed == nil {
		p.changed = make(chan struct{})
	}
	return p.changed
}

func (p *Pool) wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.changed != nil {
		close(p.changed)
		p.changed = nil
	}
}
