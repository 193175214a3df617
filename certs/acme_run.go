package certs

import (
	"context"
	"errors"
	"sync"
	"time"
)

const (
	// cacheTimeout bounds one access to the cache; nobody's handshake waits for it.
	cacheTimeout = 5 * time.Second
	// lookAgain is how long an order of another edge is left alone before the next
	// look.
	lookAgain = time.Second
	// idleScan is the longest time between two looks at all hosts.
	idleScan = 30 * time.Second
	// forgetFailed is how long a host below a wildcard is remembered that never had a
	// certificate.
	forgetFailed = time.Hour
	// forgetExpired is how long a certificate is kept after it expired, if its host is
	// served no more.
	forgetExpired = 30 * 24 * time.Hour
)

// Run orders, renews and follows the cache until ctx ends. It waits for what it
// began; an order under way is given up, and its lease given back.
func (m *ACME) Run(ctx context.Context) error {
	defer m.transport.CloseIdleConnections()
	defer m.end()
	var wg sync.WaitGroup
	wg.Go(func() { m.follow(ctx, kindCertificate, m.followCert) })
	wg.Go(func() { m.follow(ctx, kindToken, m.followToken) })
	wg.Go(func() { m.schedule(ctx, &wg) })
	wg.Wait()
	return nil
}

// follow keeps memory in step with one kind of the cache.
func (m *ACME) follow(ctx context.Context, kind string, apply func(Change)) {
	const most = 15 * time.Second
	for pause := 100 * time.Millisecond; ctx.Err() == nil; pause = min(2*pause, most) {
		changes, err := m.cache.Watch(ctx, kind)
		if err == nil {
			for c := range changes {
				if c.Ready {
					pause = 100 * time.Millisecond
				}
				apply(c)
			}
			err = errors.New("the watch ended")
		}
		if ctx.Err() == nil {
			m.log.Warn("certificate cache cannot be followed", "kind", kind, "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

func (m *ACME) followCert(c Change) {
	switch {
	case c.Ready:
		select {
		case <-m.loaded:
		default:
			close(m.loaded)
			m.nudge()
		}
		return
	case c.Deleted: // what is in memory is good until it expires
		return
	case c.Err != nil:
		m.blocked(m.stored(c.Name), c.Err)
		return
	}
	cert, fence, err := decodeCert(c.Value, c.Name, &m.chains)
	if err != nil {
		m.blocked(m.stored(c.Name), err)
		return
	}
	if h := m.stored(c.Name); h.serve(cert, fence) {
		m.log.Info("certificate received", "host", c.Name, "serial", serial(cert.Leaf), "not_after", cert.Leaf.NotAfter)
		m.nudge()
	}
}

func (m *ACME) followToken(c Change) {
	switch {
	case c.Deleted:
		m.tokens.Delete(c.Name)
	case c.Value != nil:
		m.tokens.Store(c.Name, c.Value)
	}
}

// stored returns the host of an entry of the cache. What is stored was allowed
// once, so it counts for its wildcard but is never one too many.
func (m *ACME) stored(host string) *acmeHost {
	if h := m.known(host); h != nil {
		return h
	}
	pattern, _ := m.allow(host)
	m.mu.Lock()
	defer m.mu.Unlock()
	if h := m.known(host); h != nil {
		return h
	}
	h := newHost(host)
	if pattern != "" && pattern != host {
		h.below = pattern
		m.parent(pattern).hosts++
	}
	m.hosts.Store(host, h)
	return h
}

// schedule looks after hosts whose time has come, those first for whom somebody
// waits, and never more than Parallel at a time. wg waits for them.
func (m *ACME) schedule(ctx context.Context, wg *sync.WaitGroup) {
	// Before the cache was read, an order might be one too many. Each order looks into
	// the cache itself; the wait only saves looking for what is about to arrive.
	select {
	case <-m.loaded:
	case <-time.After(cacheTimeout):
	case <-ctx.Done():
		return
	}
	for ctx.Err() == nil {
		due, wait := m.dueHosts()
		for _, h := range due {
			wg.Go(func() {
				m.attend(ctx, h)
				m.mu.Lock()
				m.running--
				m.mu.Unlock()
				m.nudge()
			})
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-m.wake:
			// Wakes come in swarms; one look serves them all.
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
			}
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// dueHosts marks as running the hosts to look after now, as many as there is room
// for, and says how long nothing else is due.
func (m *ACME) dueHosts() (due []*acmeHost, wait time.Duration) {
	now := m.cfg.Now()
	m.mu.Lock()
	room, paused := m.cfg.Parallel-m.running, m.paused
	m.mu.Unlock()
	wait = idleScan
	if left := paused.Sub(now); left > 0 {
		room, wait = 0, min(wait, left)
	}
	var stale []*acmeHost
	take := func(urgent bool) {
		m.hosts.Range(func(_, v any) bool {
			h := v.(*acmeHost)
			h.mu.Lock()
			defer h.mu.Unlock()
			switch {
			case h.running || h.due.IsZero() || h.urgent != urgent:
			case h.due.After(now):
				wait = min(wait, h.due.Sub(now))
			case h.below != "" && h.cert.Load() == nil && h.state == StateFailed && !h.urgent && now.After(h.next.Add(forgetFailed)):
				stale = append(stale, h)
			case room > 0:
				h.running = true
				room--
				due = append(due, h)
			}
			return true
		})
	}
	take(true)
	take(false)
	for _, h := range stale {
		m.drop(h)
	}
	m.mu.Lock()
	m.running += len(due)
	m.mu.Unlock()
	return due, max(wait, 10*time.Millisecond)
}

// attend does what is due for a host, and notes what came of it and when to look
// again.
func (m *ACME) attend(ctx context.Context, h *acmeHost) {
	out := m.step(ctx, h)
	now := m.cfg.Now()
	h.mu.Lock()
	was := h.state
	h.running, h.urgent = false, false
	if c := h.cert.Load(); out.state == "" && c != nil {
		out.state, out.due = StateValid, c.renew
	}
	h.state, h.due, h.err = out.state, out.due, ""
	if out.err != nil {
		h.err = out.err.Error()
	}
	h.next = time.Time{}
	var off *putOff
	if out.state == StateFailed || errors.As(out.err, &off) {
		h.next = out.due // no visitor hurries it
	}
	if out.state != StateBlocked {
		h.blocked = 0
	}
	h.change()
	h.mu.Unlock()

	switch {
	case ctx.Err() != nil:
	case out.state == StateFailed && out.fresh:
		m.log.Warn("certificate order failed", "host", h.name, "err", out.err, "next", out.due)
	case out.state == StateBlocked && was != StateBlocked:
		m.log.Error("certificate not ordered: the cache is at fault", "host", h.name, "err", out.err)
	case out.state == StateRemoved && was != StateRemoved:
		m.log.Info("certificate no longer renewed: the host is not served any more", "host", h.name)
	case out.state == StateWaiting && out.err != nil && !errors.Is(out.err, errHeld):
		m.log.Warn("certificate order put off", "host", h.name, "err", out.err, "next", out.due, "after", now)
	}
}

// blocked notes that the entry of a host cannot be read.
func (m *ACME) blocked(h *acmeHost, err error) {
	h.mu.Lock()
	was := h.state
	h.state, h.err = StateBlocked, err.Error()
	h.change()
	h.mu.Unlock()
	if was != StateBlocked {
		m.log.Error("certificate in the cache is unusable", "host", h.name, "err", err)
	}
}
