package nameserver

import (
	"hash/maphash"
	"net/netip"
	"sync/atomic"
	"time"
)

// buckets is how many networks are told apart, in half a megabyte. Networks that
// share a bucket share a limit; which do depends on a secret, and those over it
// are still answered over TCP.
const buckets = 1 << 16

// limiter gives each network a rate (generic cell rate algorithm: a bucket is the
// time at which it will be empty). Its memory is fixed.
type limiter struct {
	seed    maphash.Seed
	start   time.Time
	every   int64 // ns for one answer
	most    int64 // ns by which a bucket may be ahead
	buckets [buckets]atomic.Int64
	slips   atomic.Uint64
}

func newLimiter(rate, burst int) *limiter {
	every := int64(time.Second) / int64(rate)
	return &limiter{seed: maphash.MakeSeed(), start: time.Now(), every: every, most: every * int64(burst)}
}

// network is whom addr is limited with: who can send from one address can often
// send from its neighbours.
func network(addr netip.Addr) netip.Prefix {
	length := 24
	if addr.Is6() {
		length = 56
	}
	p, _ := addr.Prefix(length)
	return p
}

// allow reports whether addr may have an answer now. If not, slip says that it
// should be told to come by TCP, which every second one is: an answer of that kind
// is no longer than the query.
func (l *limiter) allow(addr netip.Addr, now time.Time) (ok, slip bool) {
	at := int64(now.Sub(l.start))
	b := &l.buckets[maphash.Comparable(l.seed, network(addr))%buckets]
	for {
		old := b.Load()
		full := max(old, at)
		if full+l.every-at > l.most {
			return false, l.slips.Add(1)%2 == 0
		}
		if b.CompareAndSwap(old, full+l.every) {
			return true, false
		}
	}
}
