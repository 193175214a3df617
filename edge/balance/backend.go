package balance

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"wormhole/edge/upstream"
	"wormhole/shared/token"
)

// Info describes a backend to people and to rules. It does not change.
type Info struct {
	ID       string // unique in this edge
	Name     string // what the agent calls itself
	Instance string // the agent process
	Tunnel   string
	Node     string // the edge that holds the tunnel
	Region   string
	TokenID  string
	Remote   string // the agent's address, host:port
	Version  string // of the agent
	Release  string
	Branch   string
	Carrier  string // tunnel.Carrier
	Tags     map[string]string
	Since    time.Time
	// Far says that the tunnel is another edge's, and requests go through that edge.
	Far bool
	// Kinds are what the backend may take, as in a token; none is "http" alone.
	Kinds []string
	// AppProtocol is what the app speaks: "http1" (also when empty) or "h2c".
	AppProtocol string
}

// Outcome is what one request taught about a backend.
type Outcome uint8

const (
	// Served: the app answered, whatever the status.
	Served Outcome = iota
	// Unreachable: no stream to the app could be had. One is enough to eject.
	Unreachable
	// Broken: the app took the request and gave no answer. It takes several in
	// a row to eject, because a single request can be the cause.
	Broken
)

// Ejection.
const (
	brokenInRow   = 3                // Broken outcomes that eject
	ejectBase     = time.Second      // the first ejection
	ejectMax      = 30 * time.Second // the longest; each doubles the one before
	slowStartTime = 5 * time.Second  // from the first requests back to a full share
)

// Flags of Backend.flags. Zero is fit.
const (
	flagNotReady uint32 = 1 << iota
	flagSuspect
	flagDraining
)

// Backend is one app instance behind one tunnel. It is ready when made. All
// methods may be called concurrently.
type Backend struct {
	info Info
	up   *upstream.Pool

	epoch    time.Time // what the times below count from
	load     atomic.Int64
	flags    atomic.Uint32
	returnAt atomic.Int64 // ns since epoch at which an ejection ends; 0 = not ejected lately
	broken   atomic.Int32 // Broken outcomes in a row
	ejected  atomic.Int32 // ejections in a row

	mu        sync.Mutex // guards the fields below
	listeners map[*Pool]int
	idle      chan struct{} // closed when load reaches 0; nil while nobody waits
}

// NewBackend returns a backend that serves through up, which stays the caller's to
// close.
func NewBackend(info Info, up *upstream.Pool) *Backend {
	return &Backend{info: info, up: up, epoch: time.Now()}
}

// Info describes the backend. Its Tags must not be changed.
func (b *Backend) Info() Info { return b.info }

// AppProtocol is Info().AppProtocol without the copy.
func (b *Backend) AppProtocol() string { return b.info.AppProtocol }

// Serves reports whether the backend may take a kind: "http", "tcp".
func (b *Backend) Serves(kind string) bool {
	if len(b.info.Kinds) == 0 {
		return kind == token.KindHTTP
	}
	return slices.Contains(b.info.Kinds, kind)
}

// ID is Info().ID without the copy.
func (b *Backend) ID() string { return b.info.ID }

// Name is Info().Name without the copy.
func (b *Backend) Name() string { return b.info.Name }

// Upstream is the streams to the app.
func (b *Backend) Upstream() *upstream.Pool { return b.up }

// SetReady says whether the app accepts requests. One that does not is never picked.
func (b *Backend) SetReady(ready bool) { b.setFlag(flagNotReady, !ready) }

// SetSuspect says whether the tunnel is in doubt, as after missed beats. A suspect
// backend is picked only when there is no better one.
func (b *Backend) SetSuspect(suspect bool) { b.setFlag(flagSuspect, suspect) }

// Drain takes the backend out of the choice for good. Once it has returned, no
// Pick returns the backend any more. Requests in flight go on; see WaitIdle.
func (b *Backend) Drain() { b.setFlag(flagDraining, true) }

// Far reports whether requests go through another edge.
func (b *Backend) Far() bool { return b.info.Far }

// Ready, Suspect, Draining and Ejected tell the state.
func (b *Backend) Ready() bool    { return b.flags.Load()&flagNotReady == 0 }
func (b *Backend) Suspect() bool  { return b.flags.Load()&flagSuspect != 0 }
func (b *Backend) Draining() bool { return b.flags.Load()&flagDraining != 0 }
func (b *Backend) Ejected() bool  { return b.ejectedFor() > 0 }

// InFlight counts the requests between Pick and Release.
func (b *Backend) InFlight() int64 { return b.load.Load() }

// Release gives back what Pick took, once the answer's body has ended.
func (b *Backend) Release() {
	n := b.load.Add(-1)
	if n == 0 && b.flags.Load()&flagDraining != 0 {
		b.mu.Lock()
		b.signalIdle()
		b.mu.Unlock()
	}
	if n < 0 {
		panic("balance: Release without Pick")
	}
}

// WaitIdle drains the backend and waits until it has no request in flight. It returns
// ctx's error if that ends first.
func (b *Backend) WaitIdle(ctx context.Context) error {
	b.Drain()
	b.mu.Lock()
	if b.idle == nil {
		b.idle = make(chan struct{})
	}
	idle := b.idle
	b.signalIdle()
	b.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// signalIdle wakes WaitIdle when nothing is in flight; b.mu is held.
func (b *Backend) signalIdle() {
	if b.idle != nil && b.load.Load() == 0 {
		close(b.idle)
		b.idle = nil
	}
}

// Report tells the backend how a request ended. A failure may eject it at once: it
// then leaves the choice for a time that doubles with each ejection in a row.
func (b *Backend) Report(o Outcome) {
	switch o {
	case Served:
		if b.broken.Load() != 0 {
			b.broken.Store(0)
		}
		// Back at a full share and still good: forget the past.
		if b.ejected.Load() != 0 && b.share() == fullShare {
			b.ejected.Store(0)
		}
	case Unreachable:
		b.eject()
	case Broken:
		if b.broken.Add(1) >= brokenInRow {
			b.eject()
		}
	}
}

func (b *Backend) eject() {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := int64(time.Since(b.epoch))
	if now < b.returnAt.Load() {
		return // requests that were under way when it was ejected
	}
	d := ejectMax
	if n := b.ejected.Load(); n < 5 {
		d = min(ejectBase<<n, ejectMax)
	}
	b.ejected.Add(1)
	b.broken.Store(0)
	b.returnAt.Store(now + int64(d))
}

// ejectedFor is how long the backend is still out of the choice.
func (b *Backend) ejectedFor() time.Duration {
	at := b.returnAt.Load()
	if at == 0 {
		return 0
	}
	return max(0, time.Duration(at)-time.Since(b.epoch))
}

// fullShare is the share of a backend that was not ejected lately.
const fullShare = 256

// share is the part of the requests, of fullShare, for which the backend may be
// chosen: 0 while ejected, growing during slow start.
func (b *Backend) share() int64 {
	at := b.returnAt.Load()
	if at == 0 {
		return fullShare
	}
	since := int64(time.Since(b.epoch)) - at
	switch {
	case since < 0:
		return 0
	case since >= int64(slowStartTime):
		b.returnAt.CompareAndSwap(at, 0)
		return fullShare
	}
	const least = fullShare / 16
	return least + (fullShare-least)*since/int64(slowStartTime)
}

// takesShare decides by the low bits of the random r whether a backend in slow
// start takes part in this choice.
func (b *Backend) takesShare(r uint64) bool {
	return b.returnAt.Load() == 0 || int64(r%fullShare) < b.share()
}

// fit reports whether the backend may be picked before others are considered.
func (b *Backend) fit() bool { return b.flags.Load() == 0 && b.ejectedFor() == 0 }

// take counts a request in, unless the backend has begun to drain. The order,
// count first and then look, is what makes Drain's promise true.
func (b *Backend) take() bool {
	b.load.Add(1)
	if b.flags.Load()&flagDraining == 0 {
		return true
	}
	b.Release()
	return false
}

func (b *Backend) setFlag(flag uint32, on bool) {
	if on {
		if b.flags.Or(flag)&flag != 0 {
			return
		}
	} else if b.flags.And(^flag)&flag == 0 {
		return
	}
	b.mu.Lock()
	pools := make([]*Pool, 0, len(b.listeners))
	for p := range b.listeners {
		pools = append(pools, p)
	}
	b.mu.Unlock()
	for _, p := range pools {
		if !on {
			p.wake()
		}
		p.tell()
	}
}

func (b *Backend) listen(p *Pool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.listeners == nil {
		b.listeners = make(map[*Pool]int)
	}
	b.listeners[p]++
}

func (b *Backend) unlisten(p *Pool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.listeners[p]--; b.listeners[p] <= 0 {
		delete(b.listeners, p)
	}
}
