package balance

import "sync/atomic"

// Budget bounds the extra load that retries put on a site. The zero value is ready.
// Retries that run at the same time may be 20 % of the requests that are active,
// and always retryFloor, so that a quiet site can retry at all.
type Budget struct {
	active   atomic.Int64
	retrying atomic.Int64
}

const (
	retryFloor = 3
	retryShare = 5 // one in five active requests
)

// Enter counts an active request in, Leave counts it out.
func (b *Budget) Enter() { b.active.Add(1) }
func (b *Budget) Leave() { b.active.Add(-1) }

// Active counts the requests between Enter and Leave.
func (b *Budget) Active() int64 { return b.active.Load() }

// Take asks for one retry; when it returns true, Give must follow when the retried
// request is over.
func (b *Budget) Take() bool {
	if b.retrying.Add(1) <= max(retryFloor, b.active.Load()/retryShare) {
		return true
	}
	b.retrying.Add(-1)
	return false
}

// Give ends a retry that Take allowed.
func (b *Budget) Give() { b.retrying.Add(-1) }

// Slots counts holders of a bounded number of places. The zero value is ready.
type Slots struct {
	taken atomic.Int64
}

// Take takes a place if fewer than limit are taken; Give must follow.
func (s *Slots) Take(limit int) bool {
	if s.taken.Add(1) <= int64(limit) {
		return true
	}
	s.taken.Add(-1)
	return false
}

// Give gives a place back.
func (s *Slots) Give() { s.taken.Add(-1) }

// Taken counts the places taken.
func (s *Slots) Taken() int64 { return s.taken.Load() }
