package middleware

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"wormhole/edge/site"
)

// Limiter keeps the token buckets of all sites in bounded memory. Its zero value is
// not usable; see NewLimiter. It may be used concurrently.
type Limiter struct {
	seed   maphash.Seed
	shards [64]limiterShard
}

type limiterShard struct {
	most int

	mu      sync.Mutex // guards buckets
	buckets map[bucketKey]*bucket
}

// bucketKey names a bucket. The address is invalid where a site has one for all.
type bucketKey struct {
	site *site.Site
	addr netip.Addr
}

type bucket struct {
	limiter *rate.Limiter
	rate    site.Rate
}

// NewLimiter returns a limiter with room for about most buckets, 0 meaning 100,000
// (some 20 MiB). When it is full, a random bucket makes room: its client begins
// anew with a full one, which lets it send a burst more.
func NewLimiter(most int) *Limiter {
	if most == 0 {
		most = 100_000
	}
	l := &Limiter{seed: maphash.MakeSeed()}
	for i := range l.shards {
		l.shards[i].most = max(most/len(l.shards), 1)
		l.shards[i].buckets = make(map[bucketKey]*bucket)
	}
	return l
}

// take takes one token. It returns 0 if there was one, else how long to wait.
func (l *Limiter) take(s *site.Site, client netip.Addr, r site.Rate, now time.Time) time.Duration {
	key := bucketKey{site: s}
	if r.PerClient {
		key.addr = client
		if client.Is6() {
			// One subscriber commonly has a whole /64, and so would have as many buckets.
			if p, err := client.Prefix(64); err == nil {
				key.addr = p.Addr()
			}
		}
	}
	shard := &l.shards[maphash.Comparable(l.seed, key)%uint64(len(l.shards))]
	b := shard.bucket(key, r)
	reservation := b.ReserveN(now, 1)
	if !reservation.OK() {
		return time.Second
	}
	wait := reservation.DelayFrom(now)
	if wait > 0 {
		reservation.CancelAt(now)
	}
	return wait
}

func (s *limiterShard) bucket(key bucketKey, r site.Rate) *rate.Limiter {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.buckets[key]; b != nil && b.rate == r {
		return b.limiter
	}
	if len(s.buckets) >= s.most {
		for victim := range s.buckets { // in random order
			delete(s.buckets, victim)
			break
		}
	}
	b := &bucket{rate: r, limiter: rate.NewLimiter(rate.Limit(r.PerSecond), r.Burst)}
	s.buckets[key] = b
	return b.limiter
}
