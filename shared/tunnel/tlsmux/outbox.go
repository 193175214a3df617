package tlsmux

import (
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"wormhole/shared/tunnel"
)

const (
	// outboxLimit is how much data may be queued for the next TLS write. More would
	// make short requests wait behind bulk.
	outboxLimit = 32 << 10
	// maxBody keeps a data frame within one TLS record of 16 KiB.
	maxBody = 16<<10 - headerLen
	// maxControl bounds the queued control frames, which do not wait for room: more
	// means that the peer provokes them and does not read.
	maxControl = 1 << 20

	// A sender writes by itself only if nothing was written for the time of quiet,
	// at most quietBatch, and maxUnheard while the peer says nothing: far less than a
	// socket's buffer, so that a stalled peer does not block it.
	quiet      = 100 * time.Microsecond
	quietBatch = 4 << 10
	maxUnheard = 16 << 10

	// calm is how long nothing was given to run before it ends with the queue, so
	// that an idle session does not keep its stack.
	calm = 50 * time.Millisecond
)

// buffers holds the outboxes' buffers while they are empty, so that an idle
// session has none.
var buffers = sync.Pool{New: func() any { return &buffer{b: make([]byte, 0, outboxLimit+1024)} }}

type buffer struct{ b []byte }

// outbox gathers frames and writes them with one goroutine (run), which comes and
// goes. Data waits for
// room, first come first served, so that streams share the connection fairly;
// control frames never wait.
type outbox struct {
	// writing is when the current write began, in nanoseconds since the session's
	// start, 0 if there is none.
	writing atomic.Int64
	w       io.Writer
	now     func() int64  // the session's time
	heard   *atomic.Int64 // when the peer was last heard
	start   func()        // calls run; on a goroutine of its own

	mu       sync.Mutex // guards what follows, and each stream's send half
	pending  sync.Cond  // signalled when run has something to do
	queue    *buffer
	flushing bool      // a batch is being written
	flushed  int64     // when the last batch was written
	unheard  int       // bytes written by senders themselves since the peer was last heard
	heardAt  int64     // when that was
	failed   error     // a sender's own write failed
	waiting  []*stream // streams that wait for room, in order
	reserved int       // bytes promised to streams that were taken off waiting
	closed   bool
	running  bool  // start was called, and run will look again
	kicked   int64 // when run was last given something
	lull     int64 // how long it had nothing before
	resting  bool  // run is to end with the queue
}

func newOutbox(w io.Writer, now func() int64, heard *atomic.Int64, start func()) *outbox {
	o := &outbox{w: w, now: now, heard: heard, start: start}
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
			n := min(len(p), maxBody, int(h.window))
			if h.reserved > 0 || o.room(n) {
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
	return len(o.waiting) == 0 && (used == 0 || used+n+headerLen <= outboxLimit)
}

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
	for len(o.waiting) > 0 && (used == 0 || used+maxBody+headerLen <= outboxLimit) {
		st := o.waiting[0]
		o.waiting[0] = nil
		o.waiting = o.waiting[1:]
		st.send.queued = false
		st.send.reserved = maxBody + headerLen
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
	if err := o.write(); err != nil {
		o.failed = err
		o.closed = true
	}
	if o.queue != nil || o.closed {
		o.kick()
	}
}

// mayWrite reports whether a sender may write the queue itself: the connection
// was quiet, and the kernel takes it without blocking, because little is
// unanswered by the peer.
func (o *outbox) mayWrite() bool {
	n := len(o.queue.b)
	if n > quietBatch || o.now()-o.flushed < int64(quiet) {
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
// to do; kick starts another.
func (o *outbox) run() (over bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for {
		for o.flushing || o.queue == nil && !o.closed {
			if !o.flushing && (o.resting || o.lull > int64(calm)) {
				o.running = false
				return false, nil
			}
			o.pending.Wait()
		}
		if o.failed != nil || o.queue == nil {
			return true, o.failed
		}
		if err := o.write(); err != nil {
			return true, err
		}
	}
}

// write writes the queue. The caller holds mu, which is released meanwhile.
func (o *outbox) write() error {
	batch := o.queue
	o.queue = nil
	o.flushing = true
	o.admit()
	o.mu.Unlock()
	o.writing.Store(o.now())
	_, err := o.w.Write(batch.b)
	o.writing.Store(0)
	if cap(batch.b) <= 2*outboxLimit {
		batch.b = batch.b[:0]
		buffers.Put(batch)
	}
	o.mu.Lock()
	o.flushing = false
	o.flushed = o.now()
	return err
}
