package ingress

import (
	"context"
	"crypto/tls"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// h1Conn is a client's connection with HTTP/1.1 over TLS, as http.Server gets it. It
// saves most requests what the server does for the sake of a few.
//
// Deadlines: the server moves them six times for each request, and nearly always the
// bytes that they are for have come already. They are noted, and set when a read may
// have to wait for longer than they allow.
//
// Clients that leave: while a handler runs, the server has a goroutine of its own wait
// for a byte, to learn whether the client is there. That read returns at once, with
// nothing. When the door has found the handler running for a while, the connection is
// given to the awaiter, and the read begins in earnest when there is something to read,
// such as the client's end: see lookAfter.
type h1Conn struct {
	*tls.Conn
	door         *door
	leave        context.CancelFunc // ends the context of every request
	writeLimited atomic.Bool        // a write deadline is set

	mu      sync.Mutex // guards what follows
	until   time.Time  // the read deadline, zero for none
	armed   time.Time  // the socket's; never after until, unless nobody reads
	reading bool       // Read waits for the socket
	asked   bool       // the server would know if the client left, and has read nothing since
	noticed bool       // the door has seen that
	awaiter *awaiter   // tells when there is something to read; nil if nobody does
	awaited int32      // the descriptor that it knows c by; guarded by awaiter.mu
	lookout *lookout   // nil if none was begun, or it was ended
}

// lookout is a read of one byte beside a handler that runs.
type lookout struct {
	over chan struct{} // closed when the fields below are set
	b    [1]byte
	n    int
	err  error // nil if it was ended from outside
}

var longPast = time.Unix(1, 0)

// serveH1 hands a connection to the server of visitors.
func (d *door) serveH1(c *conn, secure *tls.Conn) {
	h1 := &h1Conn{Conn: secure, door: d, leave: func() {}}
	d.mu.Lock()
	c.http1 = h1
	d.mu.Unlock()
	d.in.handed.give(h1)
}

// withLeave makes the contexts of the requests on c end when its client leaves.
func (c *h1Conn) withLeave(ctx context.Context) context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	ctx, c.leave = context.WithCancel(ctx)
	return ctx
}

// Read implements net.Conn. It must not be called twice at a time.
func (c *h1Conn) Read(p []byte) (int, error) {
	if c.ask(p) {
		return 0, nil
	}
	if n, err := c.endLookout(p); n > 0 || err != nil {
		return n, err
	}
	for {
		c.beginRead()
		n, err := c.Conn.Read(p)
		if again := c.endRead(err); n > 0 || !again {
			return n, err
		}
	}
}

// ask notes what the server asks by reading p, and reports whether it is that: it
// reads a single byte, without a deadline, only to learn whether the client leaves.
func (c *h1Conn) ask(p []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(p) != 1 || !c.until.IsZero() || c.asked {
		return false
	}
	c.asked, c.noticed = true, false
	select {
	case c.door.asked <- struct{}{}:
	default: // it has enough to look for
	}
	return true
}

// beginRead makes the socket keep the deadline.
func (c *h1Conn) beginRead() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reading = true
	if !c.until.IsZero() && (c.armed.IsZero() || c.until.Before(c.armed)) {
		c.arm(c.until)
	}
}

// endRead reports whether the read only failed because the socket's deadline is over
// and the connection's is not.
func (c *h1Conn) endRead(err error) (again bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reading = false
	if err == nil || !os.IsTimeout(err) || !c.until.IsZero() && !time.Now().Before(c.until) {
		return false
	}
	c.arm(c.until)
	return true
}

// arm sets the socket's read deadline. The caller holds mu.
func (c *h1Conn) arm(t time.Time) {
	_ = c.Conn.SetReadDeadline(t)
	c.armed = t
}

// SetReadDeadline implements net.Conn.
func (c *h1Conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.until = t
	if c.reading {
		c.arm(t)
	}
	return nil
}

// SetWriteDeadline implements net.Conn.
func (c *h1Conn) SetWriteDeadline(t time.Time) error {
	if limited := !t.IsZero(); c.writeLimited.Swap(limited) || limited {
		return c.Conn.SetWriteDeadline(t)
	}
	return nil
}

// SetDeadline implements net.Conn.
func (c *h1Conn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

// Close implements net.Conn.
func (c *h1Conn) Close() error {
	c.gone()
	return c.Conn.Close()
}

// gone notes that the connection is closed, or about to be.
func (c *h1Conn) gone() {
	c.mu.Lock()
	c.asked = false
	c.endAwait()
	leave := c.leave
	c.mu.Unlock()
	leave()
}

// look is called by the door now and then. If the same handler runs as the last time,
// a has stirred called when there is something to read; if a cannot, a lookout begins.
// It reports whether there is reason to look again.
func (c *h1Conn) look(a *awaiter, start func(func())) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.asked || c.lookout != nil || c.awaiter != nil {
		return false
	}
	if !c.noticed {
		c.noticed = true
		return true
	}
	if under := acceptedUnder(c); a != nil && under != nil && a.add(c, under.Conn) {
		c.awaiter = a
	} else {
		c.begin(start)
	}
	return false
}

// stirred is called when there is something to read.
func (c *h1Conn) stirred(start func(func())) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.awaiter == nil {
		return // the handler has ended meanwhile
	}
	c.endAwait()
	c.begin(start)
}

// begin begins a lookout, which start runs on a goroutine of its own. The caller holds
// mu.
func (c *h1Conn) begin(start func(func())) {
	l := &lookout{over: make(chan struct{})}
	c.lookout = l
	c.arm(time.Time{})
	start(func() { c.lookOut(l) })
}

// endAwait has the awaiter forget c. The caller holds mu.
func (c *h1Conn) endAwait() {
	if c.awaiter != nil {
		c.awaiter.remove(c)
		c.awaiter = nil
	}
}

// lookOut waits for a byte, or for the client to leave, until endLookout.
func (c *h1Conn) lookOut(l *lookout) {
	defer close(l.over)
	n, err := c.Conn.Read(l.b[:])
	l.n = n
	if err != nil && !os.IsTimeout(err) {
		l.err = err
		c.leave()
	}
}

// endLookout ends the lookout, if there is one, before p is read. It returns what it
// has found.
func (c *h1Conn) endLookout(p []byte) (int, error) {
	c.mu.Lock()
	l := c.lookout
	c.asked, c.lookout = false, nil
	c.endAwait()
	if l != nil {
		c.arm(longPast)
	}
	c.mu.Unlock()
	if l == nil {
		return 0, nil
	}
	<-l.over
	return copy(p, l.b[:l.n]), l.err
}

// lookAfter sees to lookouts where handlers run for longer than patience, until the
// ingress is closed. It sleeps while no request comes.
func (d *door) lookAfter() {
	const patience = 200 * time.Millisecond
	a, err := newAwaiter()
	if err != nil {
		d.in.log.Warn("requests that run for long take a goroutine more each", "err", err)
	} else {
		d.in.work.Go(func() { a.run(func(c *h1Conn) { c.stirred(d.in.work.Go) }) })
		defer a.close()
	}
	pause := time.NewTimer(patience)
	defer pause.Stop()
	for {
		select {
		case <-d.asked:
		case <-d.in.closed:
			return
		}
		for again := true; again; again = d.look(a) {
			pause.Reset(patience)
			select {
			case <-pause.C:
			case <-d.in.closed:
				return
			}
		}
	}
}

// look looks once, and reports whether there is reason to look again.
func (d *door) look(a *awaiter) (again bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for c := range d.open {
		if c.http1 != nil && c.http1.look(a, d.in.work.Go) {
			again = true
		}
	}
	return again
}
