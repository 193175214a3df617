package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"wormhole/shared/hostname"
)

// Directories of Let's Encrypt.
const (
	LetsEncrypt        = "https://acme-v02.api.letsencrypt.org/directory"
	LetsEncryptStaging = "https://acme-staging-v02.api.letsencrypt.org/directory"
)

// ACMEConfig says for what an ACME source orders, and from whom. Allow and Holder
// are required.
type ACMEConfig struct {
	// Directory is the URL of the CA's directory (default LetsEncrypt).
	Directory string
	// Email is where the CA may write to about the account; empty for none.
	Email string
	// Roots are the authorities that the CA's own server is verified with (default:
	// those of the system).
	Roots *x509.CertPool
	// Allow says under which pattern a canonical host may have a certificate: the
	// host itself or the wildcard above it. It is asked in every handshake and must
	// not block.
	Allow func(host string) (pattern string, ok bool)
	// Default is the name for clients that send none; empty refuses them.
	Default string
	// Holder names this edge among those that share the cache; unique for each
	// process.
	Holder string
	// HTTP01 says that HTTPHandler answers on port 80 of every edge. Without it only
	// tls-alpn-01 is used.
	HTTP01 bool

	// Parallel bounds the orders at one time (default 8).
	Parallel int
	// Wait bounds how long a handshake waits for a certificate that is being
	// ordered (default 9s, a little less than the ingress gives a handshake).
	Wait time.Duration
	// Spread is the longest time by which an order ahead of demand is put off, so
	// that edges which learn of a host at once do not all begin at once (default 2s).
	Spread time.Duration
	// Lease is how long an edge that orders may be silent before another takes over
	// (default 20s).
	Lease time.Duration
	// MaxSubdomains bounds the certificates below one wildcard (default 100).
	MaxSubdomains int
	// MaxSkew is how far this machine's clock may be from the CA's; beyond it nothing
	// is ordered (default 2m).
	MaxSkew time.Duration
	// Limits are those of the CA (default: Let's Encrypt's published ones for its
	// production directory, none for others).
	Limits *Limits
	// Now is the clock (default time.Now).
	Now func() time.Time
}

// ACME orders certificates from a CA, one for each host, and shares them with
// other edges through a Cache. Handshakes are served from memory; a host without
// a certificate is ordered for when it is wanted or first asked for.
//
// # Guarantees
//
// At any time at most one edge orders for a host, whoever crashes; a certificate
// ordered by an edge that lost its lease is not stored. No order is made while
// the cache cannot be read or written, for an entry that is damaged, by an edge
// whose clock differs from the CA's, or beyond the limits. A handshake reads no
// storage, whatever name it asks for.
//
// Lost if an edge dies between the CA's issuing and the write to the cache: that
// one certificate; the next edge orders another.
type ACME struct {
	cfg       ACMEConfig
	cache     Cache
	log       *slog.Logger
	limits    Limits
	transport *http.Transport
	chains    interned
	preferred atomic.Value // string: the challenge that worked last

	hosts  sync.Map      // string -> *acmeHost; written with mu held
	wake   chan struct{} // capacity 1: something is due
	loaded chan struct{} // closed when the cache has been read once

	life context.Context // of Run and of whatever autocert leaves behind
	end  context.CancelFunc

	tokens     sync.Map // token name -> []byte
	tokenReads *rate.Limiter

	mu      sync.Mutex           // guards below
	parents map[string]*parent   // by wildcard
	paused  time.Time            // no order before: the CA was out of reach
	pauses  int                  // such failures in a row
	usage   map[string]BudgetUse // by limit
	running int

	counts counters
}

// parent is what is known of the hosts below a wildcard.
type parent struct {
	hosts int
	fresh *rate.Limiter // of names never seen before
}

// New names below a wildcard: this many at once, and then one every few minutes.
// It bounds what a stranger who invents names can make the edge order.
const (
	newSubdomains      = 20
	newSubdomainsEvery = 3 * time.Minute
)

// NewACME prepares an ACME source; nothing is read or ordered before Run.
func NewACME(cfg ACMEConfig, cache Cache, logger *slog.Logger) (*ACME, error) {
	if cfg.Allow == nil || cfg.Holder == "" || cache == nil {
		return nil, errors.New("acme: a policy, a holder and a cache are required")
	}
	setDefault(&cfg.Directory, LetsEncrypt)
	setDefault(&cfg.Parallel, 8)
	setDefault(&cfg.Wait, 9*time.Second)
	setDefault(&cfg.Spread, 2*time.Second)
	setDefault(&cfg.Lease, 20*time.Second)
	setDefault(&cfg.MaxSubdomains, 100)
	setDefault(&cfg.MaxSkew, 2*time.Minute)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	m := &ACME{
		cfg: cfg, cache: cache, log: logger,
		wake: make(chan struct{}, 1), loaded: make(chan struct{}),
		parents: make(map[string]*parent), usage: make(map[string]BudgetUse),
		// A CA looks from several places, and for several hosts at once.
		tokenReads: rate.NewLimiter(50, 100),
	}
	if cfg.Limits != nil {
		m.limits = *cfg.Limits
	} else if cfg.Directory == LetsEncrypt {
		m.limits = LetsEncryptLimits()
	}
	m.preferred.Store(challengeALPN)
	if cfg.HTTP01 {
		m.preferred.Store(challengeHTTP)
	}
	m.transport = &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		TLSClientConfig:     &tls.Config{RootCAs: cfg.Roots, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2:   true,
		TLSHandshakeTimeout: 10 * time.Second,
		IdleConnTimeout:     60 * time.Second,
	}
	m.life, m.end = context.WithCancel(context.Background())
	return m, nil
}

func setDefault[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}

// GetCertificate implements Certificates.
func (m *ACME) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if hello.ServerName == "" {
		if h := m.known(m.cfg.Default); h != nil {
			if c := h.cert.Load(); c != nil {
				return c.tls, nil
			}
		}
		return nil, ErrUnknownName
	}
	host, err := hostname.Canonical(hello.ServerName)
	if err != nil {
		return nil, ErrUnknownName
	}
	pattern, ok := m.allow(host)
	if !ok || wantsChallenge(hello) {
		return nil, ErrUnknownName
	}
	h := m.known(host)
	if h != nil {
		if c := h.cert.Load(); c != nil && m.cfg.Now().Before(c.notAfter) {
			return c.tls, nil
		}
	} else if h = m.add(host, pattern); h == nil {
		return nil, ErrUnknownName
	}
	return m.await(hello, h)
}

// allow is the policy. Names that no public CA knows are not for ACME.
func (m *ACME) allow(host string) (pattern string, ok bool) {
	if !strings.Contains(host, ".") || strings.HasSuffix(host, ".localhost") {
		return "", false
	}
	return m.cfg.Allow(host)
}

// await asks for an order and waits for its end. A certificate that has expired is
// better than none: it may be our clock that is wrong.
func (m *ACME) await(hello *tls.ClientHelloInfo, h *acmeHost) (*tls.Certificate, error) {
	var gone <-chan struct{} // closed when the client has left
	if ctx := hello.Context(); ctx != nil {
		gone = ctx.Done()
	}
	limit := time.NewTimer(m.cfg.Wait)
	defer limit.Stop()
	m.demand(h)
	for {
		now := m.cfg.Now()
		h.mu.Lock()
		c, state, text, next, changed := h.cert.Load(), h.state, h.err, h.next, h.changed
		h.mu.Unlock()
		if c != nil && now.Before(c.notAfter) {
			return c.tls, nil
		}
		if now.Before(next) || state == StateBlocked {
			if c != nil {
				return c.tls, nil
			}
			return nil, fmt.Errorf("no certificate for %s yet: %s", h.name, text)
		}
		select {
		case <-changed:
			continue
		case <-gone:
		case <-limit.C:
		}
		if c != nil {
			return c.tls, nil
		}
		return nil, fmt.Errorf("no certificate for %s yet: the order takes its time", h.name)
	}
}

// Want has a certificate ordered for a pattern, if the policy allows it, without
// waiting for the first visitor. A wildcard stands for no name that could be
// ordered. It does not block.
func (m *ACME) Want(pattern string) {
	host, err := hostname.Canonical(pattern)
	if err != nil {
		return
	}
	allowed, ok := m.allow(host)
	if !ok {
		return
	}
	h := m.known(host)
	if h == nil {
		if h = m.add(host, allowed); h == nil {
			return
		}
	}
	now := m.cfg.Now()
	h.mu.Lock()
	// A host that has a date already keeps it.
	if h.due.IsZero() || h.state == StateRemoved {
		h.due = now
		if h.cert.Load() == nil {
			h.due = now.Add(rand.N(m.cfg.Spread + 1))
		}
	}
	h.mu.Unlock()
	m.nudge()
}

// Retry forgets what went wrong for a host, and a damaged entry, and has it ordered
// for anew, for an operator who has mended what was wrong. A certificate that is
// in order stays.
func (m *ACME) Retry(ctx context.Context, host string) error {
	host, err := hostname.Canonical(host)
	if err != nil {
		return err
	}
	if _, ok := m.allow(host); !ok {
		return fmt.Errorf("%s: %w", host, ErrUnknownName)
	}
	if _, _, err := m.load(ctx, host); err != nil && !errors.Is(err, ErrCacheMiss) {
		if !errors.Is(err, ErrDamaged) {
			return err
		}
		if err := m.cache.Delete(ctx, kindCertificate, host); err != nil {
			return err
		}
	}
	err = m.cache.Update(ctx, kindHost, host, func(old []byte) ([]byte, error) {
		rec, _ := decodeHost(old, host) // what is damaged is made anew
		rec.Failures, rec.Wrong, rec.Error, rec.Next, rec.Tries = 0, 0, "", 0, nil
		return encodeJSON(rec)
	})
	if err != nil {
		return err
	}
	m.Want(host)
	if h := m.known(host); h != nil {
		h.mu.Lock()
		if h.cert.Load() == nil || h.state != StateValid {
			h.state, h.due, h.next, h.blocked = StateWaiting, m.cfg.Now(), time.Time{}, 0
		}
		h.mu.Unlock()
	}
	m.nudge()
	return nil
}

// known returns what is known of a host, or nil.
func (m *ACME) known(host string) *acmeHost {
	v, ok := m.hosts.Load(host)
	if !ok {
		return nil
	}
	return v.(*acmeHost)
}

// add makes a host known. It returns nil for one too many below a wildcard.
func (m *ACME) add(host, pattern string) *acmeHost {
	m.mu.Lock()
	defer m.mu.Unlock()
	if h := m.known(host); h != nil {
		return h
	}
	h := newHost(host)
	if hostname.IsWildcard(pattern) {
		p := m.parent(pattern)
		if p.hosts >= m.cfg.MaxSubdomains || !p.fresh.Allow() {
			m.counts.capped.Add(1)
			return nil
		}
		p.hosts++
		h.below = pattern
	}
	m.hosts.Store(host, h)
	return h
}

// parent returns the count of a wildcard. m.mu is held.
func (m *ACME) parent(pattern string) *parent {
	p := m.parents[pattern]
	if p == nil {
		p = &parent{fresh: rate.NewLimiter(rate.Every(newSubdomainsEvery), newSubdomains)}
		m.parents[pattern] = p
	}
	return p
}

// drop forgets a host.
func (m *ACME) drop(h *acmeHost) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.hosts.CompareAndDelete(h.name, h) && h.below != "" {
		m.parents[h.below].hosts--
	}
}

// demand notes that somebody waits for a host.
func (m *ACME) demand(h *acmeHost) {
	now := m.cfg.Now()
	h.mu.Lock()
	h.urgent = true
	if !h.running && h.state != StateBlocked && !now.Before(h.next) && (h.due.IsZero() || h.due.Sub(now) > lookAgain) {
		h.due = now
	}
	h.mu.Unlock()
	m.nudge()
}

func (m *ACME) nudge() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}
