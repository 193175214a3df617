package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"wormhole/edge/balance"
	"wormhole/edge/site"
	"wormhole/edge/usage"
	"wormhole/shared/hostname"
)

// Lookup finds the site of a canonical host; *site.Registry does.
type Lookup interface {
	Lookup(host string) (*site.Site, bool)
}

// Metrics counts what happens. The methods must be cheap and safe for concurrent
// use; they may not keep the record.
type Metrics interface {
	// RequestDone is called once for every request, when its answer's body has ended.
	RequestDone(r *Record)
	// Retried is called before a request is sent again. Reason is one of "refused",
	// "stale" and "closed".
	Retried(site, reason string)
}

// Config of a Proxy. The zero value means the defaults; what differs by site is in
// site.Rules.
type Config struct {
	// SilenceTimeout is how long an app may be silent within an answer's body.
	// Default 5 min.
	SilenceTimeout time.Duration
	// StreamTimeout is the same for answers that are quiet by nature: event streams,
	// gRPC, WebSocket. Default 1 h.
	StreamTimeout time.Duration
	// RequestID names a request, as a middleware before the proxy may have done. The
	// proxy makes an id where it returns "". Nil means always.
	RequestID func(*http.Request) string
	// Taken returns how many bytes of answers the other end of the request's connection
	// has acknowledged, and whether it is owed more: sent or waiting in the kernel.
	// (0, false) is unknown. It must not block. Nil means that nobody knows: what the
	// kernel accepts counts as taken then.
	Taken func(*http.Request) (bytes uint64, owed bool)
	// AccessLog is called once for every request; it may not keep the record. Nil
	// means no log.
	AccessLog func(*Record)
	// Usage counts what each site uses. Nil counts nothing.
	Usage *usage.Meter
}

// Proxy is an http.Handler that carries requests to backends. It may serve any
// number of them concurrently.
type Proxy struct {
	cfg     Config
	sites   Lookup
	metrics Metrics
	logger  *slog.Logger
	bodies  bodyBuffers
	joined  hijacked
}

// New returns a proxy over the sites. A nil metrics counts nothing.
func New(cfg Config, sites Lookup, metrics Metrics, logger *slog.Logger) (*Proxy, error) {
	if sites == nil || logger == nil {
		return nil, errors.New("proxy: sites and logger are required")
	}
	if cfg.SilenceTimeout < 0 || cfg.StreamTimeout < 0 {
		return nil, fmt.Errorf("proxy: timeouts must not be negative: %v, %v", cfg.SilenceTimeout, cfg.StreamTimeout)
	}
	if cfg.SilenceTimeout == 0 {
		cfg.SilenceTimeout = 5 * time.Minute
	}
	if cfg.StreamTimeout == 0 {
		cfg.StreamTimeout = time.Hour
	}
	if metrics == nil {
		metrics = noMetrics{}
	}
	return &Proxy{cfg: cfg, sites: sites, metrics: metrics, logger: logger}, nil
}

// visit is one request on its way through the proxy. It belongs to the goroutine of
// ServeHTTP, but for what stall guards.
type visit struct {
	p     *Proxy
	w     http.ResponseWriter
	r     *http.Request
	site  *site.Site
	rules *site.Rules
	pool  *balance.Pool
	rec   Record

	port  string // of the Host field with its colon, as the client wrote it
	body  body
	begun bool // something of an answer went to the client

	joinedBytes bool // they are counted as they pass

	holding holder // what has been asked to hold, or nil
	carriage
}

// ServeHTTP carries the request. It panics with http.ErrAbortHandler where the
// client must not take what it got for a whole answer.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v := &visit{p: p, w: w, r: r}
	v.rec.Start = time.Now()
	v.rec.describe(r)
	if p.cfg.RequestID != nil {
		v.rec.RequestID = p.cfg.RequestID(r)
	}
	if v.rec.RequestID == "" {
		v.rec.RequestID = newRequestID()
	}
	defer v.finish()
	if f := v.route(); f != nil {
		v.refuse(f)
		return
	}
	budget := &v.pool.Retries
	budget.Enter()
	defer budget.Leave()
	v.carry()
}

// finish reports what became of the request, also while a panic unwinds.
func (v *visit) finish() {
	v.p.bodies.giveBack(v.body.memory)
	v.rec.BytesIn = v.body.end()
	v.rec.Duration = time.Since(v.rec.Start)
	v.account()
	v.p.metrics.RequestDone(&v.rec)
	if v.p.cfg.AccessLog != nil {
		v.p.cfg.AccessLog(&v.rec)
	}
}

// route finds the site and refuses what may not be carried.
func (v *visit) route() *fault {
	host, err := hostname.FromHostHeader(v.r.Host)
	if err != nil {
		v.rec.Err = err
		return &badHost
	}
	v.rec.Host = host
	if i := strings.LastIndexByte(v.r.Host, ':'); i >= 0 {
		v.port = v.r.Host[i:]
	}
	s, ok := v.p.sites.Lookup(host)
	if !ok {
		return &noSuchSite
	}
	v.site, v.rules, v.pool = s, s.Rules(), s.Pool()
	v.rec.Site = s.Host()
	if v.rules.StrictSNI && v.misdirected(host) {
		return &misdirected
	}
	if v.r.Method == http.MethodConnect {
		return &badMethod
	}
	return v.openBody()
}

// misdirected reports whether the connection was made for another site (RFC 9110,
// section 7.4; fault D18). A client without SNI asked for no name at all.
func (v *visit) misdirected(host string) bool {
	if v.r.TLS == nil || v.r.TLS.ServerName == "" || v.r.TLS.ServerName == host {
		return false
	}
	sni, err := hostname.Canonical(v.r.TLS.ServerName)
	if err != nil {
		return true
	}
	other, ok := v.p.sites.Lookup(sni)
	return !ok || other != v.site
}

// newRequestID returns 128 random bits as text. They need to be unique, not secret.
func newRequestID() string {
	const hex = "0123456789abcdef"
	var b [32]byte
	for i := 0; i < len(b); i += 16 {
		for j, r := 0, rand.Uint64(); j < 16; j++ {
			b[i+j] = hex[r&15]
			r >>= 4
		}
	}
	return string(b[:])
}

// Hijacked counts the connections that were taken out of the server by an upgrade
// and are still open: http.Server.Shutdown does not know them.
func (p *Proxy) Hijacked() int { return p.joined.count() }

// Drain waits until no upgraded connection is left, or ctx ends; then it closes
// those that are. It returns how many it had to close. New ones may still come: stop
// the servers first.
func (p *Proxy) Drain(ctx context.Context) int { return p.joined.drain(ctx) }

// hijacked is the registry of upgraded connections. The zero value is ready.
type hijacked struct {
	mu    sync.Mutex // guards the fields below
	conns map[*visit]context.CancelFunc
	empty chan struct{} // closed when conns becomes empty; nil while nobody waits
}

func (h *hijacked) add(v *visit, abort context.CancelFunc) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.conns == nil {
		h.conns = make(map[*visit]context.CancelFunc)
	}
	h.conns[v] = abort
}

func (h *hijacked) remove(v *visit) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.conns, v)
	if len(h.conns) == 0 && h.empty != nil {
		close(h.empty)
		h.empty = nil
	}
}

func (h *hijacked) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.conns)
}

func (h *hijacked) drain(ctx context.Context) int {
	h.mu.Lock()
	if len(h.conns) == 0 {
		h.mu.Unlock()
		return 0
	}
	if h.empty == nil {
		h.empty = make(chan struct{})
	}
	empty := h.empty
	h.mu.Unlock()
	select {
	case <-empty:
		return 0
	case <-ctx.Done():
	}
	h.mu.Lock()
	closed := len(h.conns)
	for _, abort := range h.conns {
		abort()
	}
	h.mu.Unlock()
	<-empty
	return closed
}
