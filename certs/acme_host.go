package certs

import (
	"crypto/tls"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// State says where a host stands.
type State string

// The states.
const (
	StateWaiting  State = "waiting"  // an order is to be made, or another edge makes it
	StateOrdering State = "ordering" // this edge orders
	StateValid    State = "valid"    // the certificate is good
	StateFailed   State = "failed"   // the last order failed; see NextTry
	StateBlocked  State = "blocked"  // the cache cannot be read or written, so nothing is ordered
	StateRemoved  State = "removed"  // the policy allows the host no more: not renewed
)

// acmeHost is one host on this edge. cert may be read at any time.
type acmeHost struct {
	name  string
	below string // the wildcard that it counts for, or empty
	cert  atomic.Pointer[served]

	mu      sync.Mutex // guards below
	state   State
	err     string        // why it is failed, blocked or waiting
	next    time.Time     // no order before, if one failed or was put off
	due     time.Time     // when to look after it again; zero for not at all
	running bool          // somebody looks after it now
	urgent  bool          // a handshake waits
	blocked int           // failures of the cache in a row
	changed chan struct{} // closed and replaced at every change
	sight   sight         // of the lease of another edge
}

// served is a certificate in memory; immutable.
type served struct {
	tls                 *tls.Certificate
	fence               uint64
	notBefore, notAfter time.Time
	renew               time.Time // when this edge begins to think of a new one
}

// sight is a state of another edge's lease and since when it has been seen
// unchanged, by the monotonic clock: other edges' clocks are not compared.
type sight struct {
	fence, beat uint64
	since       time.Time
}

func newHost(name string) *acmeHost {
	return &acmeHost{name: name, state: StateWaiting, changed: make(chan struct{})}
}

// change wakes those who wait. h.mu is held.
func (h *acmeHost) change() {
	close(h.changed)
	h.changed = make(chan struct{})
}

// serve puts a certificate in the place of an older one, and reports whether it is
// news.
func (h *acmeHost) serve(cert *tls.Certificate, fence uint64) bool {
	leaf := cert.Leaf
	c := &served{tls: cert, fence: fence, notBefore: leaf.NotBefore, notAfter: leaf.NotAfter}
	third := lastThird(leaf.NotBefore, leaf.NotAfter)
	c.renew = third.Add(rand.N(min(leaf.NotAfter.Sub(third)/10, time.Hour) + 1))
	h.mu.Lock()
	defer h.mu.Unlock()
	if old := h.cert.Load(); old != nil && (fence < old.fence || fence == old.fence && !c.notAfter.After(old.notAfter)) {
		return false
	}
	h.cert.Store(c)
	h.state, h.err, h.next, h.blocked, h.urgent = StateValid, "", time.Time{}, 0, false
	h.due = c.renew
	h.change()
	return true
}

// lastThird is when a third of a certificate's life is left: then it is renewed,
// whether it lives for 90 days or for ten minutes.
func lastThird(notBefore, notAfter time.Time) time.Time {
	return notAfter.Add(-notAfter.Sub(notBefore) / 3)
}
