package certs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

var (
	// errHeld says that another edge orders for the host.
	errHeld = errors.New("another edge orders it")
	// errLeaseLost says that another edge may order now, so this one must not go on.
	errLeaseLost = errors.New("the lease was lost")
)

// lease is the right to order for one host. The holder counts a number up while it
// lives; an edge that has seen the number unchanged for Lease takes over. No clock
// is compared with another's. The fence grows with every lease, so that what a
// holder writes late, after it was replaced, is recognised.
type lease struct {
	host  string
	fence uint64
	lost  chan struct{} // closed when it is lost

	end  context.CancelFunc
	beat sync.WaitGroup
}

// acquire takes the lease of a host and notes a try, or says why not: errHeld, a
// *putOff after failures, or an error of the cache. Having written it also proves
// that the cache can be written before anything is ordered. fence is that of the
// certificate in the cache.
func (m *ACME) acquire(ctx context.Context, h *acmeHost, fence uint64) (*lease, hostRecord, error) {
	var rec hostRecord
	err := m.update(ctx, kindHost, h.name, func(old []byte) (_ []byte, err error) {
		if rec, err = decodeHost(old, h.name); err != nil {
			return nil, err
		}
		now := m.cfg.Now()
		if rec.Holder != "" && !m.silent(h, rec) {
			return nil, errHeld
		}
		if next := time.Unix(rec.Next, 0); now.Before(next) {
			return nil, &putOff{next, rec.Error}
		}
		if rec.Tries = within(rec.Tries, time.Hour, now); len(rec.Tries) >= triesPerHour {
			return nil, &putOff{time.Unix(rec.Tries[0], 0).Add(time.Hour), fmt.Sprintf("%d tries within the hour; %s", len(rec.Tries), rec.Error)}
		}
		rec.Tries = append(rec.Tries, now.Unix())
		rec.Fence = max(rec.Fence, fence) + 1
		rec.Holder, rec.Beat = m.cfg.Holder, 0
		return encodeJSON(rec)
	})
	if err != nil {
		return nil, rec, err
	}
	l := &lease{host: h.name, fence: rec.Fence, lost: make(chan struct{})}
	var life context.Context
	life, l.end = context.WithCancel(ctx)
	l.beat.Go(func() { m.keepAlive(life, l) })
	return l, rec, nil
}

// silent reports whether the holder in rec has been seen without a sign of life for
// long enough.
func (m *ACME) silent(h *acmeHost, rec hostRecord) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.sight; s.since.IsZero() || s.fence != rec.Fence || s.beat != rec.Beat {
		h.sight = sight{fence: rec.Fence, beat: rec.Beat, since: time.Now()}
		return false
	}
	return time.Since(h.sight.since) > m.cfg.Lease
}

// keepAlive counts up until life ends. It closes lost when another edge has the
// lease, or may have: when nothing could be written for two thirds of Lease.
func (m *ACME) keepAlive(life context.Context, l *lease) {
	tick := time.NewTicker(m.cfg.Lease / 6)
	defer tick.Stop()
	written := time.Now()
	for {
		select {
		case <-life.Done():
			return
		case <-tick.C:
		}
		begun := time.Now()
		err := m.withLease(life, l, func(rec *hostRecord) { rec.Beat++ })
		switch {
		case life.Err() != nil:
			return
		case err == nil:
			written = begun
			continue
		case errors.Is(err, errLeaseLost), time.Since(written) > m.cfg.Lease*2/3:
			m.log.Warn("lease lost while ordering", "host", l.host, "err", err)
			close(l.lost)
			return
		}
	}
}

// held reports whether the holder may go on.
func (l *lease) held() bool {
	select {
	case <-l.lost:
		return false
	default:
		return true
	}
}

// stop ends the signs of life. It is idempotent and waits.
func (l *lease) stop() {
	l.end()
	l.beat.Wait()
}

// giveBack lets others order, and notes what came of it. If that fails they take
// over when the lease has been silent long enough.
func (m *ACME) giveBack(l *lease, note func(*hostRecord)) {
	l.stop()
	// Also when the edge stops, so that others need not wait.
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	err := m.withLease(ctx, l, func(rec *hostRecord) {
		note(rec)
		rec.Holder = ""
	})
	if err != nil && !errors.Is(err, errLeaseLost) {
		m.log.Warn("lease not given back; it runs out by itself", "host", l.host, "err", err)
	}
}

// withLease changes the record of a host while the lease is held.
func (m *ACME) withLease(ctx context.Context, l *lease, change func(*hostRecord)) error {
	return m.update(ctx, kindHost, l.host, func(old []byte) ([]byte, error) {
		rec, err := decodeHost(old, l.host)
		if err != nil {
			return nil, err
		}
		if rec.Fence != l.fence || rec.Holder != m.cfg.Holder {
			return nil, errLeaseLost
		}
		change(&rec)
		return encodeJSON(rec)
	})
}
