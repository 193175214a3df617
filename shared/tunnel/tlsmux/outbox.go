package tlsmux

import (
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"wormhole/shared/gather"
	"wormhole/shared/tunnel"
)

const (
	// outboxLimit is how much data may be queued for the next TLS write. More would
	// make short requests wait behind bulk.
	outboxLimit = 32 << 10
	// fastLimit holds instead while the kernel takes what it is given within
	// fastWrite: then it is no wait, and each write of twice the size saves half of
	// what one costs.
	fastLimit = 64 << 10
	fastWrite = 2 * time.Millisecond
	// The kernel may hold unsentTime of what is sent now without having sent it, from
	// outboxLimit to maxUnsent: a short request waits that long behind bulk, and less
	// would leave a fast path idle until this process is woken, which bbr takes for a
	// sender that has nothing to say. The rate is measured over rateTime.
	unsentTime = 10 * time.Millisecond
	maxUnsent  = 512 << 10
	rateTime   = 50 * time.Millisecond

	// maxControl bounds the queued control frames, which do not wait for room: more
	// means that the peer provokes them and does not read.
	maxControl = 1 << 20

	// controlRoom is how much of the control conversation may be queued beyond the
	// room that data has. It does not wait its turn among the streams: behind a
	// thousand of them a beat would come so late that the peer takes us for dead.
	controlRoom = 64 << 10

	// A sender writes by itself only if nothing was written for the time of quiet,
	// at most quietBatch, and maxUnheard while the peer says nothing: far less than a
	// socket's buffer, so that a stalled peer does not block it.
	quiet      = 100 * time.Microsecond
	quietBatch = 4 << 10
	maxUnheard = 16 << 10

	// promptBatch is how much whoever receives on another session writes by itself.
	promptBatch = 16 << 10

	// calm is how long nothing was given to run before it ends with the queue, so
	// that an idle session does not keep its stack.
	calm = 50 * time.Millisecond
)

// buffers holds the outboxes' buffers while they are empty, so that an idle
// session has none.
var buffers = sync.Pool{New: func() any { return &buffer{b: make([]byte, 0, outboxLimit+1024)} }}

type buffer struct{ b []byte }

// outbox gathers frames and writes them with one goroutine (run), which comes and
// goes. Data waits for room, first come first served, so that streams share the
// connection fairly; control frames never wait, and the control conversation only
// when much of it is queued.
type outbox struct {
	// writing is when the current write began, in nanoseconds since the session's
	// start, 0 if there is none.
	writing atomic.Int64
	w       io.Writer
	under   holder        // below w; nil without
	now     func() int64  // the session's time
	heard   *atomic.Int64 // when the peer was last heard
	start   func()        // calls run; on a goroutine of its own
	hold    func(int)     // sets how many bytes the kernel may hold unsent; nil where it cannot

	// Whoever writes owns these.
	since   int64 // when the rate was last measured
	written int   // bytes since then
	unsent  int   // what hold was last told, 0 for outboxLimit

	mu       sync.Mutex // guards what follows, and each stream's send half
	pending  sync.Cond  // signalled when run has something to do
	queue    *buffer
	limit    int       // outboxLimit or fastLimit
	flushing bool      // a batch is being written
	flushed  int64     // when the last batch was written
	unheard  int       // bytes written by senders themselves since the peer was last heard
	heardAt  int64     // when that was
	failed   error     // a sender's own write failed
	left     bool      // under keeps bytes that the kernel did not take
	waiting  []*stream // streams that wait for room, in order
	reserved int       // bytes promised to streams that were taken off waiting
	closed   bool
	running  bool  // start was called, and run will look again
	kicked   int64 // when run was last given something
	lull     int64 // how long it had nothing before
	resting  bool  // run is to end with the queue
}

func newOutbox(w io.Writer, now func() int64, heard *atomic.Int64, start func()) *outbox {
	o := &outbox{limit: outboxLimit, w: w, now: now, heard: heard, start: start}
	o.pending.L = &o.mu
	return o
}

// sendHalf is the sending direction of a stream; outbox.mu guards it.
type sendHalf struct {
	window   int64 // bytes the peer may still be sent
	err      error // why nothing more may be sent
	deadline time.Time
	queued   bool // is in outbox.waiting
	reserved int  // bytes of room that are kept for it
	wake     chan struct{}
}

// signal makes a waiting send look again.
func (h *sendHalf) signal() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// send queues one data frame with as much of p as window and room allow, at least
// a byte, and returns how much that was. It waits for both.
func (o *outbox) send(st *stream, p []byte) (int, error) {
	h := &st.send
	o.mu.Lock()
	defer o.mu.Unlock()
	for {
		var expired bool
		if !h.deadline.IsZero() {
			expired = !time.Now().Before(h.deadline)
		}
		switch {
		case h.err != nil:
			o.leave(st)
			return 0, h.err
		case o.closed:
			o.leave(st)
			return 0, tunnel.ErrAborted
		case expired:
			o.leave(st)
			return 0, os.ErrDeadlineExceeded
		case h.window > 0:
			n := min(len(p), o.maxBody(), int(h.window))
			if h.reserved > 0 || o.room(n) || st.id == controlID && o.urgent(n) {
				if h.queued {
					o.leave(st) // or room would be kept that nobody comes for
				}
				o.reserved -= h.reserved
				h.reserved = 0
				h.window -= int64(n)
				o.append(header{kind: typeData, id: st.id, length: uint32(n)}, p[:n])
				if st.id == controlID {
					// Nothing waits for it, and whoever has the control conversation is there
					// as long as the session: its stack stays small.
					o.kick()
				} else {
					o.flush()
				}
				return n, nil
			}
			if !h.queued {
				h.queued = true
				o.waiting = append(o.waiting, st)
			}
		}
		o.wait(h)
	}
}

// offer queues one data frame with all of p if that needs no waiting. It goes out with
// flushOffers.
func (o *outbox) offer(st *stream, p []byte) bool {
	h := &st.send
	o.mu.Lock()
	defer o.mu.Unlock()
	n := len(p)
	if h.err != nil || o.closed || !h.deadline.IsZero() || int64(n) > h.window || n > o.maxBody() || !o.room(n) {
		return false
	}
	h.window -= int64(n)
	o.append(header{kind: typeData, id: st.id, length: uint32(n)}, p)
	return true
}

// flushOffers sees to it that what is queued is written. It comes from the goroutine
// that receives on another session, for which waiting for this peer would be to stop:
// so it writes what the kernel takes at once, and leaves the rest to run.
func (o *outbox) flushOffers() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.flushing || o.queue == nil {
		return // whoever writes now looks again afterwards
	}
	if o.under == nil || o.left || o.closed || len(o.queue.b) > promptBatch {
		o.kick()
		return
	}
	o.wrote(o.write(false))
}

// wait releases the lock until the send half is signalled or its deadline passes.
func (o *outbox) wait(h *sendHalf) {
	deadline := h.deadline
	o.mu.Unlock()
	defer o.mu.Lock()
	if deadline.IsZero() {
		<-h.wake
		return
	}
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case <-h.wake:
	case <-timer.C:
	}
}

// room reports whether a newcomer may queue n bytes now: there is space and
// nobody was here before.
func (o *outbox) room(n int) bool {
	used := o.reserved
	if o.queue != nil {
		used += len(o.queue.b)
	}
	return len(o.waiting) == 0 && (used == 0 || used+n+headerLen <= o.limit)
}

// urgent reports whether n bytes of the control conversation may be queued although
// data must wait.
func (o *outbox) urgent(n int) bool {
	return o.queue == nil || len(o.queue.b)+n+headerLen <= o.limit+controlRoom
}

// maxBody is how long the body of a data frame may be: two frames of different
// streams find room beside each other.
func (o *outbox) maxBody() int { return o.limit/2 - headerLen }

// leave gives up a stream's place and room.
func (o *outbox) leave(st *stream) {
	if st.send.queued {
		st.send.queued = false
		for i, w := range o.waiting {
			if w == st {
				o.waiting = append(o.waiting[:i], o.waiting[i+1:]...)
				break
			}
		}
	}
	if st.send.reserved > 0 {
		o.reserved -= st.send.reserved
		st.send.reserved = 0
		o.admit()
	}
}

// admit promises room to the streams that waited longest.
func (o *outbox) admit() {
	used := o.reserved
	if o.queue != nil {
		used += len(o.queue.b)
	}
	for len(o.waiting) > 0 && (used == 0 || used+o.maxBody()+headerLen <= o.limit) {
		st := o.waiting[0]
		o.waiting[0] = nil
		o.waiting = o.waiting[1:]
		st.send.queued = false
		st.send.reserved = o.maxBody() + headerLen
		o.reserved += st.send.reserved
		used += st.send.reserved
		st.send.signal()
	}
	if len(o.waiting) == 0 {
		o.waiting = nil
	}
}

// append queues one frame. The caller holds mu.
func (o *outbox) append(h header, body []byte) {
	if o.queue == nil {
		o.queue = buffers.Get().(*buffer)
	}
	o.queue.b = append(h.append(o.queue.b), body...)
}

// control queues a frame without a body. It never waits; it reports false if the
// outbox is closed or so full of control frames that the session must end.
func (o *outbox) control(h header) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed || o.queue != nil && len(o.queue.b) > maxControl {
		return false
	}
	o.append(h, nil)
	o.kick()
	return true
}

// credit lets st send delta bytes more. It reports false if the window would
// become larger than any honest peer makes it.
func (o *outbox) credit(st *stream, delta uint32) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	st.send.window += int64(delta)
	if st.send.window == int64(delta) {
		st.send.signal()
	}
	return st.send.window <= 1<<32
}

// finish makes every present and future send of st return err. The first err stays.
func (o *outbox) finish(st *stream, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if st.send.err == nil {
		st.send.err = err
		st.send.signal()
	}
}

// setDeadline sets the write deadline of st.
func (o *outbox) setDeadline(st *stream, t time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	st.send.deadline = t
	st.send.signal()
}

// close refuses further frames; run returns after what is queued.
func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.kick()
}

// flush sees to it that what is queued is written: by run, where frames of many
// streams gather, or at once by the caller if the connection is quiet, which saves
// the wake-up of another goroutine. The caller holds mu, and only releases it while
// it writes.
func (o *outbox) flush() {
	if o.flushing {
		return // whoever writes now looks again afterwards
	}
	if !o.mayWrite() {
		o.kick()
		return
	}
	o.wrote(o.write(true))
}

// wrote follows a write by another than run.
func (o *outbox) wrote(err error) {
	if err != nil {
		o.failed = err
		o.closed = true
	}
	if o.queue != nil || o.left || o.closed {
		o.kick()
	}
}

// mayWrite reports whether a sender may write the queue itself: the connection
// was quiet, and the kernel takes it without blocking, because little is
// unanswered by the peer.
func (o *outbox) mayWrite() bool {
	n := len(o.queue.b)
	if o.left || n > quietBatch || o.now()-o.flushed < int64(quiet) {
		return false
	}
	if heard := o.heard.Load(); heard != o.heardAt {
		o.heardAt, o.unheard = heard, 0
	}
	o.unheard += n
	return o.unheard <= maxUnheard
}

// kick makes run look at the queue. The caller holds mu.
func (o *outbox) kick() {
	now := o.now()
	o.kicked, o.lull = now, now-o.kicked
	if o.running {
		o.pending.Signal()
		return
	}
	o.running, o.resting = true, false
	go o.start()
}

// rest ends a run that had nothing to do since the given time.
func (o *outbox) rest(since int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.running && o.kicked < since {
		o.resting = true
		o.pending.Signal()
	}
}

// run writes what is queued until close, and until a write fails: then over is
// true. A failed write loses what was queued. It ends before when there is little
// to do; kick starts another. It is made ready by the first who sends and would run
// right after him: so it lets all others run once before it writes little.
func (o *outbox) run() (over bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	yielded := false
	for {
		for o.flushing || o.queue == nil && !o.left && !o.closed {
			if !o.flushing && (o.resting || o.lull > int64(calm)) {
				o.running = false
				return false, nil
			}
			o.pending.Wait()
		}
		if o.failed != nil || o.queue == nil && !o.left {
			return true, o.failed
		}
		if !o.left && len(o.queue.b) < quietBatch && !o.closed && !yielded {
			// Whoever is about to send shares the write. Where nothing else can run, this
			// is no wait.
			yielded = true
			o.mu.Unlock()
			runtime.Gosched()
			o.mu.Lock()
			continue
		}
		yielded = false
		if err := o.write(true); err != nil {
			return true, err
		}
	}
}

// holder is a connection under TLS that can make one write of many; see gather.
type holder interface {
	Hold()
	Release() error
	ReleaseNow() (all bool, err error)
}

// gathering is a dialed connection that is a holder.
type gathering struct {
	net.Conn
	gather.Writer
}

func (g *gathering) Write(p []byte) (int, error) { return g.Writer.Write(p) }
func (g *gathering) NetConn() net.Conn           { return g.Conn }

// pass writes b and what was left before. Without wait some may be left again.
func (o *outbox) pass(b []byte, wait, left bool) (stillLeft bool, err error) {
	if o.under == nil || wait && !left && len(b) <= 16<<10 {
		_, err := o.w.Write(b)
		return false, err
	}
	o.under.Hold()
	if len(b) > 0 {
		_, err = o.w.Write(b)
	}
	all, late := true, error(nil)
	if wait {
		late = o.under.Release()
	} else {
		all, late = o.under.ReleaseNow()
	}
	if err == nil {
		err = late
	}
	return !all, err
}

// measure notes that n bytes were written, and adjusts how many the kernel may hold.
func (o *outbox) measure(n int, now int64) {
	o.written += n
	past := now - o.since
	if past < int64(rateTime) {
		return
	}
	rate := float64(o.written) / float64(past)
	o.since, o.written = now, 0
	fit := outboxLimit
	for fit < maxUnsent && float64(fit) < rate*float64(unsentTime) {
		fit *= 2
	}
	if fit != max(o.unsent, outboxLimit) && o.hold != nil {
		o.unsent = fit
		o.hold(fit)
	}
}

// write writes the queue and what was left of the one before; without wait, what the
// kernel takes at once. The caller holds mu, which is released meanwhile.
func (o *outbox) write(wait bool) error {
	batch, left := o.queue, o.left
	o.queue = nil
	o.flushing = true
	o.admit()
	o.mu.Unlock()
	var b []byte
	if batch != nil {
		b = batch.b
	}
	began := o.now()
	o.writing.Store(began)
	left, err := o.pass(b, wait, left)
	o.writing.Store(0)
	n, took := len(b), time.Duration(o.now()-began)
	o.measure(n, began+int64(took))
	if batch != nil && cap(b) <= 2*fastLimit {
		batch.b = b[:0]
		buffers.Put(batch)
	}
	o.mu.Lock()
	o.left = left
	switch {
	case took > fastWrite:
		o.limit = outboxLimit
	case n > outboxLimit/2:
		o.limit = fastLimit
	}
	o.flushing = false
	o.flushed = o.now()
	return err
}
