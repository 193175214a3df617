package upstream

import (
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// conn is one kept stream, or (stream nil) one HTTP/2 exchange that is watched like
// one.
type conn struct {
	pool   *Pool
	stream Stream
	placed Placed // the stream, nil if it is none
	cancel func() // ends an HTTP/2 exchange
	rd     reader
	head   head

	exchanges int
	written   uint64        // bytes after the stream header, in all exchanges
	keep      time.Duration // how long the app lets it be idle
	since     int64         // when idle: since when
	expires   int64         // when idle or retired: the time to let go

	watch watch
}

// abort ends the stream, whatever happens on it. It may be called concurrently.
func (c *conn) abort() {
	if c.stream != nil {
		c.stream.Abort()
		return
	}
	c.cancel()
}

// expect gives whoever has to move next the time d.
func (c *conn) expect(t turn, d time.Duration) {
	c.watch.set(t, c.pool.now()+int64(d))
}

// handOut gives the client the time d to take a piece of the answer, and from now on
// not more than d without taking anything.
func (c *conn) handOut(d time.Duration) {
	c.watch.patience.Store(int64(d))
	c.expect(clientTakes, d)
}

// write writes all of b and counts it.
func (c *conn) write(b []byte) error {
	n, err := c.stream.Write(b)
	c.written += uint64(max(n, 0))
	return err
}

// quiet reports whether an idle stream is still good: nothing has come that was not
// asked for, neither bytes nor the app's close.
func (c *conn) quiet() bool {
	if p, ok := c.stream.(Prober); ok {
		return p.Quiet()
	}
	if c.pool.now()-c.since < int64(trustTime) {
		return true
	}
	// A deadline in the past would not do: most connections then do not look at what
	// has arrived.
	var b [1]byte
	if c.stream.SetReadDeadline(time.Now().Add(probeTime)) != nil {
		return false
	}
	n, err := c.stream.Read(b[:])
	if n > 0 || !isTimeout(err) {
		return false
	}
	return c.stream.SetReadDeadline(time.Time{}) == nil
}

// How streams that are no Prober are probed.
const (
	trustTime = 20 * time.Millisecond  // idle for less: not probed
	probeTime = 500 * time.Microsecond // how long the probe waits
)

func isTimeout(err error) bool {
	if err == nil {
		return false
	}
	t, ok := err.(interface{ Timeout() bool }) // the stream's own error, not one wrapped by us
	return ok && t.Timeout() || os.IsTimeout(err)
}

// turn says who has to move next in an exchange.
type turn uint32

const (
	appTurn     turn = iota
	clientSends      // the request's body
	clientTakes      // the answer
)

// watch is the deadline of an exchange. Setting it is an atomic store, and the
// pool's sweep looks at it: no timer is touched on the way of a request.
type watch struct {
	deadline atomic.Int64 // ns since the pool's epoch; 0 none, negative when over
	turn     atomic.Uint32

	// How long a client may take nothing of what it is owed, in ns; 0 before it is.
	// That the kernel still accepts pieces for it says nothing, nor does it matter who
	// has to move next: a client that has ceased to read is gone also while the app's
	// next piece is on its way.
	patience atomic.Int64
	looked   atomic.Int64 // when the sweep last looked what the client has taken

	mu     sync.Mutex // guards what follows, and is held while the client is called
	client Client
	known  bool   // what follows is of this exchange
	taken  uint64 // bytes, when the sweep last looked
	since  int64  // when the client had last taken something, or was owed nothing
}

// What deadline is when it is over.
const (
	watchExpired = -1 // whoever had to move next did not
	watchStalled = -2 // the client took nothing for longer than its patience
)

// looks is how often the sweep looks at a client within its patience, and so how
// precise that is where it is longer than some ticks.
const looks = 32

// begin starts an exchange.
func (w *watch) begin(client Client) {
	if client != nil || w.client != nil {
		w.mu.Lock()
		w.client, w.known = client, false
		w.mu.Unlock()
	}
	w.patience.Store(0)
	w.deadline.Store(0)
}

// set moves the deadline, unless it is over.
func (w *watch) set(t turn, deadline int64) {
	w.turn.Store(uint32(t))
	if old := w.deadline.Load(); old >= 0 {
		// A failed swap is the sweep's, which has just ended the exchange, or that of
		// the exchange's other goroutine, whose deadline is as good.
		w.deadline.CompareAndSwap(old, deadline)
	}
}

// end stops the watch and reports whether it held. The client is not called any
// more when it returns.
func (w *watch) end() bool {
	held := w.deadline.Swap(0) >= 0
	w.patience.Store(0)
	if w.client != nil {
		w.mu.Lock()
		w.client = nil
		w.mu.Unlock()
	}
	return held
}

// expire ends the watch if its deadline is over and reports whether it did.
func (w *watch) expire(now int64) bool {
	d := w.deadline.Load()
	return d > 0 && d < now && w.deadline.CompareAndSwap(d, watchExpired)
}

// due reports whether it is time to look at what the client has taken. To one of
// those who ask at the same moment only.
func (w *watch) due(now int64) bool {
	patience, looked := w.patience.Load(), w.looked.Load()
	return patience > 0 && now-looked >= patience/looks && w.looked.CompareAndSwap(looked, now)
}

// stall looks at what the client has taken, ends the watch if that was nothing for
// too long, and reports whether it did.
func (w *watch) stall(now int64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	client, ok := w.client.(Taker)
	if !ok {
		return false
	}
	taken, owed := client.Taken()
	if !owed || !w.known || taken != w.taken {
		w.known, w.taken, w.since = true, taken, now
		return false
	}
	if patience := w.patience.Load(); patience == 0 || now-w.since < patience {
		return false
	}
	for {
		d := w.deadline.Load()
		if d <= 0 {
			return false
		}
		if w.deadline.CompareAndSwap(d, watchStalled) {
			return true
		}
	}
}

// expired reports whether the exchange did not end in its time.
func (w *watch) expired() bool { return w.deadline.Load() < 0 }

// stalled reports whether that was for the client.
func (w *watch) stalled() bool {
	d := w.deadline.Load()
	return d == watchStalled || d == watchExpired && turn(w.turn.Load()) != appTurn
}

// interrupt frees whoever waits for the client.
func (w *watch) interrupt(write bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.client == nil {
		return
	}
	w.client.InterruptRead()
	if write {
		w.client.InterruptWrite()
	}
}
