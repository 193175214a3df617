package upstream

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
)

// Config of a Pool. The zero value means the defaults.
type Config struct {
	// MaxIdle is how many streams are kept for reuse. Default 256: what a few
	// HTTP/2 clients ask for at once. The surplus ends with IdleTimeout.
	MaxIdle int
	// IdleTimeout is how long a stream is kept without a request. What the app's
	// Keep-Alive header says, less a second, has precedence. Default 4 s: below the
	// 5 s after which Node.js and others close.
	IdleTimeout time.Duration
	// OpenTimeout is how long the agent may take to answer for a new stream, its
	// connecting to the app included. Default 3 s.
	OpenTimeout time.Duration
	// QueueTimeout is how long a request waits for one of the tunnel's streams when
	// all that it may have are taken. Default 5 s.
	QueueTimeout time.Duration
	// Tick is how often timeouts are checked, and so their precision. Default 500 ms.
	Tick time.Duration
	// Port names the app's port; empty is the only one.
	Port string
	// Buffers may be shared by several pools; nil means buffers of its own.
	Buffers *Buffers
}

// Limits that need no setting.
const (
	maxKeepAlive  = 60 * time.Second       // whatever the app promises
	retireTime    = time.Second            // for the app to close after our END
	retireTick    = 20 * time.Millisecond  // how often to look whether it has
	queueInterval = 50 * time.Millisecond  // how often to try again without being woken
	headTime      = 200 * time.Millisecond // for heads that are being written when a drain begins
)

var errPoolClosed = errors.New("tunnel closed")

// Pool is the streams of one tunnel, kept between requests. All methods may be
// called concurrently.
type Pool struct {
	opener  Opener
	cfg     Config
	buffers *Buffers
	epoch   time.Time // what deadlines count from

	refusing atomic.Bool  // no further exchange begins
	sending  atomic.Int64 // exchanges between their beginning and the end of their head

	mu       sync.Mutex // guards the fields below
	conns    map[*conn]struct{}
	idle     []*conn // the one used last is at the end
	retired  []*conn // said END, waiting for the app to close
	waiting  []*waiter
	sweeper  *time.Timer // runs while there are conns
	draining bool
	closed   bool
	http2    *http.Transport // made when first needed
}

// waiter is a request that waits for a stream: it is handed one, or nil to try to
// open one.
type waiter struct {
	conn  chan *conn
	fresh bool
}

// New returns a pool over the tunnel that o opens streams of. It starts nothing.
func New(o Opener, cfg Config) *Pool {
	if cfg.MaxIdle <= 0 {
		cfg.MaxIdle = 256
	}
	if cfg.IdleTimeout <= 0 {
		cfg.IdleTimeout = 4 * time.Second
	}
	if cfg.OpenTimeout <= 0 {
		cfg.OpenTimeout = 3 * time.Second
	}
	if cfg.QueueTimeout <= 0 {
		cfg.QueueTimeout = 5 * time.Second
	}
	if cfg.Tick <= 0 {
		cfg.Tick = 500 * time.Millisecond
	}
	if cfg.Buffers == nil {
		cfg.Buffers = new(Buffers)
	}
	return &Pool{
		opener:  o,
		cfg:     cfg,
		buffers: cfg.Buffers,
		epoch:   time.Now(),
		conns:   make(map[*conn]struct{}),
	}
}

// Stats counts the streams that carry an exchange and those kept idle.
func (p *Pool) Stats() (active, idle int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	idle = len(p.idle)
	return len(p.conns) - idle - len(p.retired), idle
}

// CloseIdle closes the streams that carry no request and keeps none from now on: it
// is what a draining tunnel needs. Exchanges that run go on. New ones are refused as
// a draining agent refuses them, so that they may be sent elsewhere; when CloseIdle
// returns, every head of a request that will be sent has been. The app sees the end
// of its input, not a reset.
func (p *Pool) CloseIdle() {
	p.refusing.Store(true)
	p.awaitHeads()
	p.mu.Lock()
	p.draining = true
	idle := p.idle
	p.idle = nil
	http2 := p.http2
	p.mu.Unlock()
	for _, c := range idle {
		p.retire(c)
	}
	if http2 != nil {
		http2.CloseIdleConnections()
	}
}

// begin reports whether an exchange may be sent now; sent must follow if so. The
// order, count first and then look, is what makes CloseIdle's promise true.
func (p *Pool) begin() bool {
	p.sending.Add(1)
	if p.refusing.Load() {
		p.sending.Add(-1)
		return false
	}
	return true
}

// sent follows begin when the head has been written.
func (p *Pool) sent() { p.sending.Add(-1) }

// awaitHeads waits until no head is being written. One that the agent does not take
// is not waited for: the agent cannot be hurt by what it does not read.
func (p *Pool) awaitHeads() {
	const look = 100 * time.Microsecond
	for waited := time.Duration(0); p.sending.Load() > 0 && waited < headTime; waited += look {
		time.Sleep(look)
	}
}

// draining is what a request is told that came too late.
func draining() *Error {
	return &Error{Stage: NotSent, Cause: Unreachable, Err: &Refused{Answer: protocol.AnswerDraining}}
}

// DropIdle closes the streams that carry no request now, without a reset. Unlike
// CloseIdle it goes on keeping streams afterwards.
func (p *Pool) DropIdle() {
	p.mu.Lock()
	idle := p.idle
	p.idle = nil
	http2 := p.http2
	p.mu.Unlock()
	for _, c := range idle {
		p.retire(c)
	}
	if http2 != nil {
		http2.CloseIdleConnections()
	}
}

// OpenStream opens a stream that the pool does not keep: for those who carry bytes
// and not requests. Its errors are the Opener's.
func (p *Pool) OpenStream(ctx context.Context, h protocol.StreamHeader) (Stream, error) {
	return p.opener.OpenStream(ctx, h)
}

// Close aborts every stream. Exchanges that run fail. It is idempotent.
func (p *Pool) Close() error {
	p.mu.Lock()
	p.closed, p.draining = true, true
	if p.sweeper != nil {
		p.sweeper.Stop()
	}
	conns := make([]*conn, 0, len(p.conns))
	for c := range p.conns {
		conns = append(conns, c)
	}
	unused := slices.Concat(p.idle, p.retired)
	p.idle, p.retired = nil, nil
	waiting := p.waiting
	p.waiting = nil
	http2 := p.http2
	p.mu.Unlock()

	for _, c := range conns {
		c.abort()
	}
	for _, c := range unused {
		p.drop(c)
	}
	for _, w := range waiting {
		w.conn <- nil
	}
	if http2 != nil {
		http2.CloseIdleConnections()
	}
	return nil
}

// acquire returns a stream for the request: a kept one if that is allowed and there
// is one that is still good.
func (p *Pool) acquire(ctx context.Context, r *Request) (*conn, error) {
	// A body that cannot be sent twice deserves a stream that cannot be stale.
	if r.Fresh || r.streams() || r.Upgrade != "" {
		return p.open(ctx, r, true)
	}
	if c := p.reuse(false); c != nil {
		return c, nil
	}
	c, err := p.open(ctx, r, false)
	if err != nil && ctx.Err() == nil {
		if c := p.reuse(true); c != nil { // behind bulk, but it gets there
			return c, nil
		}
	}
	return c, err
}

// reuse returns a kept stream that is still good, or nil. behind takes also those
// where the request waits behind bulk.
func (p *Pool) reuse(behind bool) *conn {
	for {
		c := p.popIdle(behind)
		if c == nil || c.expires > p.now() && c.quiet() {
			return c
		}
		p.drop(c)
	}
}

// popIdle takes the stream that was used last; those that are behind bulk only if
// asked to. They are left, as their connection may soon be free.
func (p *Pool) popIdle(behind bool) *conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := len(p.idle) - 1; i >= 0; i-- {
		c := p.idle[i]
		if !behind && c.placed != nil && c.placed.Behind() {
			continue
		}
		copy(p.idle[i:], p.idle[i+1:])
		p.idle[len(p.idle)-1] = nil
		p.idle = p.idle[:len(p.idle)-1]
		return c
	}
	return nil
}

// open opens a stream. When the tunnel has no more to give, it waits in a queue for
// one that becomes free.
func (p *Pool) open(ctx context.Context, r *Request, fresh bool) (*conn, error) {
	var giveUp <-chan time.Time
	for {
		s, err := p.openStream(ctx, r.ID)
		if err == nil {
			return p.adopt(s)
		}
		if !r.Queue || !full(err) {
			return nil, err
		}
		if giveUp == nil {
			t := time.NewTimer(p.cfg.QueueTimeout)
			defer t.Stop()
			giveUp = t.C
		}
		c, ok := p.queue(ctx, giveUp, fresh)
		if c != nil {
			return c, nil
		}
		if !ok {
			return nil, err
		}
	}
}

func (p *Pool) openStream(ctx context.Context, id string) (Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.OpenTimeout)
	defer cancel()
	return p.opener.OpenStream(ctx, protocol.StreamHeader{Kind: protocol.KindHTTP, Port: p.cfg.Port, RequestID: id})
}

// full reports whether a stream could not be had because too many are open.
func full(err error) bool {
	var refused *Refused
	return errors.Is(err, tunnel.ErrTooManyStreams) ||
		errors.As(err, &refused) && refused.Answer == protocol.AnswerFull
}

// queue waits for a stream. It returns one, or nil and whether to try opening again.
func (p *Pool) queue(ctx context.Context, giveUp <-chan time.Time, fresh bool) (*conn, bool) {
	w := &waiter{conn: make(chan *conn, 1), fresh: fresh}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, false
	}
	// A kept stream that may not be used takes the place of one that may.
	if n := len(p.idle); n > 0 {
		c := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		if !fresh {
			return c, true
		}
		p.drop(c)
		return nil, true
	}
	p.waiting = append(p.waiting, w)
	p.mu.Unlock()

	again := time.NewTimer(queueInterval)
	defer again.Stop()
	ok := false
	select {
	case c := <-w.conn:
		return c, true
	case <-again.C:
		ok = true
	case <-giveUp:
	case <-ctx.Done():
	}
	p.mu.Lock()
	if i := slices.Index(p.waiting, w); i >= 0 {
		p.waiting = slices.Delete(p.waiting, i, i+1)
		p.mu.Unlock()
		return nil, ok
	}
	p.mu.Unlock()
	return <-w.conn, true // it was handed over at that very moment
}

// adopt makes a new stream one of the pool's.
func (p *Pool) adopt(s Stream) (*conn, error) {
	c := &conn{pool: p, stream: s}
	c.placed, _ = s.(Placed)
	c.rd.src, c.rd.lender, c.rd.buffers = s, lenderOf(s), p.buffers
	if err := p.add(c); err != nil {
		s.Abort()
		_ = s.Close()
		return nil, err
	}
	return c, nil
}

func (p *Pool) add(c *conn) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return errPoolClosed
	}
	p.conns[c] = struct{}{}
	if p.sweeper == nil {
		p.sweeper = time.AfterFunc(p.cfg.Tick, p.sweep)
	} else if len(p.conns) == 1 {
		p.sweeper.Reset(p.cfg.Tick)
	}
	return nil
}

// put takes a stream back after an exchange that left it clean.
func (p *Pool) put(c *conn) {
	c.rd.release()
	if c.placed != nil {
		c.placed.Rest()
	}
	keep := p.cfg.IdleTimeout
	if n := c.head.keepAlive; n >= 0 {
		keep = min(time.Duration(n-1)*time.Second, maxKeepAlive)
	}
	c.head.fields = trimmed(c.head.fields)
	c.since = p.now()
	c.expires = c.since + int64(keep)

	p.mu.Lock()
	switch {
	case p.draining || keep <= 0:
		p.mu.Unlock()
		p.retire(c)
	case len(p.waiting) > 0 && !p.waiting[0].fresh:
		w := p.waiting[0]
		p.waiting = p.waiting[1:]
		p.mu.Unlock()
		w.conn <- c
	case len(p.waiting) > 0 || len(p.idle) >= p.cfg.MaxIdle:
		p.mu.Unlock()
		p.drop(c)
	default:
		p.idle = append(p.idle, c)
		p.mu.Unlock()
	}
}

// trimmed forgets what the fields refer to, and their memory if it is much.
func trimmed(fields []Field) []Field {
	if cap(fields) > 32 {
		return nil
	}
	clear(fields[:cap(fields)])
	return fields[:0]
}

// retire ends a stream without a reset: it says END and lets the app close. The
// sweep does the rest.
func (p *Pool) retire(c *conn) {
	if c.stream.CloseWrite() != nil {
		p.drop(c)
		return
	}
	c.expires = p.now() + int64(retireTime)
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		p.drop(c)
		return
	}
	p.retired = append(p.retired, c)
	p.sweeper.Reset(retireTick)
	p.mu.Unlock()
}

// drop ends a stream and lets the next in the queue try.
func (p *Pool) drop(c *conn) {
	if c.stream != nil {
		c.rd.release()
		_ = c.stream.Close() // aborts what is not over
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
	if len(p.waiting) > 0 {
		w := p.waiting[0]
		p.waiting = p.waiting[1:]
		w.conn <- nil
	}
}

// now is the time since the pool's epoch, in ns.
func (p *Pool) now() int64 { return int64(time.Since(p.epoch)) }

// sweep is the pool's only clock: it ends exchanges past their deadline, streams
// idle for too long, and those whose app has closed. It runs on the timer's
// goroutine and arms the timer again while there is anything to look at.
func (p *Pool) sweep() {
	now := p.now()
	var stalled, due, old, dead []*conn
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return
	}
	for c := range p.conns {
		if c.watch.expire(now) {
			stalled = append(stalled, c)
		} else if c.watch.due(now) {
			due = append(due, c)
		}
	}
	kept := p.idle[:0]
	for _, c := range p.idle {
		switch prober, ok := c.stream.(Prober); {
		case ok && !prober.Quiet():
			dead = append(dead, c)
		case c.expires <= now:
			old = append(old, c)
		default:
			kept = append(kept, c)
		}
	}
	clear(p.idle[len(kept):])
	p.idle = kept
	retired := p.retired
	p.retired = nil
	p.mu.Unlock()

	for _, c := range stalled {
		c.abort()
		c.watch.interrupt(turn(c.watch.turn.Load()) == clientTakes)
	}
	for _, c := range due {
		if c.watch.stall(now) {
			// First: once the exchange has ended, the server would say goodbye to a client
			// that does not listen.
			c.watch.interrupt(true)
			c.abort()
		}
	}
	for _, c := range old {
		p.retire(c)
	}
	leaving := retired[:0]
	for _, c := range retired {
		c.since = 0
		if c.expires > now && c.quiet() {
			leaving = append(leaving, c)
		} else {
			dead = append(dead, c)
		}
	}
	for _, c := range dead {
		p.drop(c)
	}

	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		for _, c := range leaving {
			p.drop(c)
		}
		return
	}
	p.retired = append(p.retired, leaving...)
	switch {
	case len(p.retired) > 0:
		p.sweeper.Reset(retireTick)
	case len(p.conns) > 0:
		p.sweeper.Reset(p.cfg.Tick)
	}
	p.mu.Unlock()
}
