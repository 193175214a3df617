package agent

import (
	"sync"
	"time"
)

// pulse keeps the time of beats and of the last sign of life. Its methods may be
// called concurrently.
type pulse struct {
	mu       sync.Mutex // guards what follows
	seq      uint64
	sent     [8]time.Time // by sequence number
	last     time.Time    // when the edge was last heard
	judged   time.Time    // when silence was last judged
	suspects bool
	trip     time.Duration
}

func newPulse() *pulse {
	now := time.Now()
	return &pulse{last: now, judged: now}
}

// next is the sequence number of a beat that is sent now.
func (p *pulse) next(now time.Time) uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seq++
	p.sent[p.seq%uint64(len(p.sent))] = now
	return p.seq
}

// heard notes a sign of life.
func (p *pulse) heard(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last, p.suspects = now, false
}

// answered notes the answer to a beat.
func (p *pulse) answered(seq uint64, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if seq <= p.seq && p.seq-seq < uint64(len(p.sent)) {
		p.trip = now.Sub(p.sent[seq%uint64(len(p.sent))])
	}
}

// stalled reports whether it was not called for as long as limit, so that the
// silence since may be our own, and begins the silence anew if so.
func (p *pulse) stalled(now time.Time, limit time.Duration) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	stalled := now.Sub(p.judged) > limit
	if stalled {
		p.last = now
	}
	p.judged = now
	return stalled
}

func (p *pulse) silence(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return now.Sub(p.last)
}

// suspect reports true once per silence.
func (p *pulse) suspect() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	first := !p.suspects
	p.suspects = true
	return first
}

func (p *pulse) rtt() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.trip
}
