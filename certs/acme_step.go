package certs

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// outcome is what came of looking after a host once.
type outcome struct {
	state State     // empty: the certificate in memory is good
	err   error     // why not, for the operator
	due   time.Time // when to look again
	fresh bool      // the failure happened just now, and not when err was recorded
}

// triesPerHour bounds the failed orders for one host, by all edges together. Let's
// Encrypt allows five failed validations.
const triesPerHour = 3

// step brings one host a step further: it takes a certificate from the cache,
// orders one, or finds out for whom or what to wait.
func (m *ACME) step(ctx context.Context, h *acmeHost) outcome {
	now := m.cfg.Now()
	if _, ok := m.allow(h.name); !ok {
		m.forget(ctx, h)
		return outcome{state: StateRemoved, due: now.Add(time.Hour)}
	}
	fence, fresh, err := m.fetch(ctx, h)
	if err != nil {
		return m.cacheFault(h, err)
	}
	if fresh {
		return outcome{}
	}
	l, rec, err := m.acquire(ctx, h, fence)
	var off *putOff
	switch {
	case errors.Is(err, errHeld):
		return outcome{state: StateWaiting, err: err, due: now.Add(lookAgain)}
	case errors.As(err, &off):
		return outcome{state: StateFailed, err: off, due: off.until}
	case err != nil:
		return m.cacheFault(h, err)
	}
	defer l.stop()
	// Whoever held the lease before may have been quicker.
	if _, fresh, err = m.fetch(ctx, h); err != nil || fresh {
		m.giveBack(l, func(rec *hostRecord) { rec.Tries = rec.Tries[:len(rec.Tries)-1] })
		if err != nil {
			return m.cacheFault(h, err)
		}
		return outcome{}
	}
	return m.orderUnder(ctx, h, l, rec)
}

// orderUnder orders while the lease l is held, and gives it back.
func (m *ACME) orderUnder(ctx context.Context, h *acmeHost, l *lease, rec hostRecord) outcome {
	kind := m.challengeFor(rec)
	h.mu.Lock()
	h.state = StateOrdering
	h.change()
	h.mu.Unlock()
	m.log.Info("certificate order begins", "host", h.name, "challenge", kind, "renewal", h.cert.Load() != nil)
	began := time.Now()
	cert, err := m.order(ctx, h, l, kind)
	now := m.cfg.Now()
	if err == nil {
		m.reachable()
		m.preferred.Store(kind)
		err = m.keep(ctx, l, cert)
	}
	if err == nil {
		m.counts.issued.Add(1)
		h.serve(cert, l.fence)
		m.log.Info("certificate obtained", "host", h.name, "serial", serial(cert.Leaf), "not_after", cert.Leaf.NotAfter,
			"challenge", kind, "duration", time.Since(began))
		m.giveBack(l, func(rec *hostRecord) {
			rec.Tries, rec.Failures, rec.Wrong, rec.Error, rec.Next = nil, 0, 0, "", 0
			rec.Issued = append(within(rec.Issued, 7*24*time.Hour, now), now.Unix())
		})
		return outcome{}
	}
	if ctx.Err() != nil || errors.Is(err, errLeaseLost) {
		// Not this host's failure; the next edge begins anew, and counts the try.
		m.giveBack(l, func(*hostRecord) {})
		return outcome{state: StateWaiting, err: err, due: now.Add(lookAgain)}
	}
	var off *putOff
	if errors.As(err, &off) { // nothing was ordered
		m.counts.putOff.Add(1)
		m.giveBack(l, func(rec *hostRecord) { rec.Tries = rec.Tries[:len(rec.Tries)-1] })
		return outcome{state: StateWaiting, err: off, due: off.until}
	}
	m.counts.failed.Add(1)
	if errors.Is(err, errUnreachable) {
		m.unreachable(now)
	} else {
		m.reachable()
	}
	next := now.Add(m.afterFailure(rec.Failures+1, err))
	m.giveBack(l, func(rec *hostRecord) {
		rec.Failures++
		if errors.Is(err, errChallenge) {
			rec.Wrong++
		}
		rec.Error, rec.Next = err.Error(), next.Unix()
	})
	return outcome{state: StateFailed, err: err, due: next, fresh: true}
}

// forget removes a host that is served no more, once its certificate has been of no
// use to anybody for a while.
func (m *ACME) forget(ctx context.Context, h *acmeHost) {
	c := h.cert.Load()
	if c == nil || m.cfg.Now().Sub(c.notAfter) < forgetExpired {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, cacheTimeout)
	defer cancel()
	if err := m.cache.Delete(ctx, kindCertificate, h.name); err == nil {
		m.drop(h)
	}
}

// afterFailure is how long to wait after the nth failure in a row: one minute, ten,
// an hour, and then double up to a day. A CA that could not be reached is asked
// again within the hour, as it may be back; one that said when to come again is
// obeyed.
func (m *ACME) afterFailure(n int, err error) time.Duration {
	var d time.Duration
	switch {
	case n <= 1:
		d = time.Minute
	case n == 2:
		d = 10 * time.Minute
	default:
		d = min(time.Hour<<min(n-3, 5), 24*time.Hour)
		if errors.Is(err, errUnreachable) {
			d = time.Hour
		}
	}
	d += rand.N(d / 10)
	return max(d, retryAfter(err))
}

// unreachable keeps all hosts from trying a CA that did not answer one.
func (m *ACME) unreachable(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pauses++
	m.paused = now.Add(min(time.Second<<min(m.pauses, 10), 5*time.Minute))
}

func (m *ACME) reachable() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pauses, m.paused = 0, time.Time{}
}

// cacheFault is the outcome of a cache that cannot be used. Whatever is served
// goes on being served.
func (m *ACME) cacheFault(h *acmeHost, err error) outcome {
	h.mu.Lock()
	h.blocked++
	n := h.blocked
	h.mu.Unlock()
	d := min(2*time.Second<<min(n, 8), 5*time.Minute)
	return outcome{state: StateBlocked, err: err, due: m.cfg.Now().Add(d + rand.N(d/4))}
}

// fetch reads a host's certificate from the cache into memory, and reports whether
// it needs no renewal yet. fence is that of what was read, 0 if there is none.
func (m *ACME) fetch(ctx context.Context, h *acmeHost) (fence uint64, fresh bool, err error) {
	cert, fence, err := m.load(ctx, h.name)
	if errors.Is(err, ErrCacheMiss) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	if h.serve(cert, fence) {
		m.log.Info("certificate received", "host", h.name, "serial", serial(cert.Leaf), "not_after", cert.Leaf.NotAfter)
	}
	// In memory may be a newer one that could not be written yet.
	c := h.cert.Load()
	return fence, m.cfg.Now().Before(lastThird(c.notBefore, c.notAfter)), nil
}

func (m *ACME) load(ctx context.Context, host string) (*tls.Certificate, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, cacheTimeout)
	defer cancel()
	value, err := m.cache.Get(ctx, kindCertificate, host)
	if err != nil {
		return nil, 0, err
	}
	return decodeCert(value, host, &m.chains)
}

// keep writes a new certificate to the cache, unless another edge has taken over
// the lease and perhaps ordered one itself. It tries for as long as the lease lasts:
// a certificate that is not stored would have to be ordered again.
func (m *ACME) keep(ctx context.Context, l *lease, cert *tls.Certificate) error {
	value, err := encodeCert(cert, l.fence)
	if err != nil {
		return err
	}
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		err := m.update(ctx, kindCertificate, l.host, func(old []byte) ([]byte, error) {
			if old == nil {
				return value, nil
			}
			_, fence, err := decodeCert(old, l.host, &m.chains)
			if err != nil {
				return nil, err
			}
			if fence > l.fence {
				return nil, errLeaseLost
			}
			return value, nil
		})
		if err == nil || errors.Is(err, errLeaseLost) || errors.Is(err, ErrDamaged) {
			return err
		}
		m.log.Warn("new certificate cannot be stored, trying again", "host", l.host, "err", err)
		select {
		case <-time.After(pause):
		case <-l.lost:
			return fmt.Errorf("%w, and the certificate could not be stored: %w", errLeaseLost, err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// update is Cache.Update within bounds of time.
func (m *ACME) update(ctx context.Context, kind, name string, change func([]byte) ([]byte, error)) error {
	ctx, cancel := context.WithTimeout(ctx, cacheTimeout)
	defer cancel()
	return m.cache.Update(ctx, kind, name, change)
}

func encodeJSON(v any) ([]byte, error) { return json.Marshal(v) }

// putOff says that no order was made, and may not be before a time.
type putOff struct {
	until time.Time
	why   string
}

// Error is the reason.
func (e *putOff) Error() string { return e.why }
