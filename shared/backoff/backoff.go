// Package backoff says how long to wait before the next try.
package backoff

import (
	"math/rand/v2"
	"sync"
	"time"
)

// Backoff grows the wait between tries exponentially, with full jitter: each wait
// is anywhere between 0 and the current ceiling, so that many who failed together
// do not come back together. The ceiling falls back to its base only after a
// connection that lasted: one that is accepted and dropped at once is a failure.
//
// All methods may be called concurrently.
type Backoff struct {
	base, max, stable time.Duration
	now               func() time.Time
	random            func(n int64) int64

	mu        sync.Mutex // guards what follows
	ceiling   time.Duration
	connected time.Time // zero while there is no connection
}

// New returns a Backoff whose ceiling starts at base, doubles with every Next up
// to max, and starts over after a connection of at least stable. base must be
// above 0; a max below base means base.
func New(base, max, stable time.Duration) *Backoff {
	if base <= 0 {
		panic("backoff: base must be above 0")
	}
	if max < base {
		max = base
	}
	return &Backoff{base: base, max: max, stable: stable, now: time.Now, random: rand.Int64N, ceiling: base}
}

// NewSimulated is New on another clock and another source of chance, for
// simulations. random returns a number in [0, n).
func NewSimulated(base, max, stable time.Duration, now func() time.Time, random func(n int64) int64) *Backoff {
	b := New(base, max, stable)
	b.now, b.random = now, random
	return b
}

// Next returns how long to wait before the next try and raises the ceiling.
func (b *Backoff) Next() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	wait := time.Duration(b.random(int64(b.ceiling) + 1))
	if b.ceiling > b.max/2 {
		b.ceiling = b.max
	} else {
		b.ceiling *= 2
	}
	return wait
}

// Connected notes that a try succeeded.
func (b *Backoff) Connected() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.connected = b.now()
}

// Disconnected notes that the connection of the last Connected ended. If it lasted,
// the ceiling starts over.
func (b *Backoff) Disconnected() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.connected.IsZero() && b.now().Sub(b.connected) >= b.stable {
		b.ceiling = b.base
	}
	b.connected = time.Time{}
}
