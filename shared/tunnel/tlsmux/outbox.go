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
)

// buffers holds the outboxes' buffers while they are empty, so that an idle
// session has none.
var buffers = sync.Pool{New: func() any { return &buffer{b: make([]byte, 0, outboxLimit+1024)} }}

type buffer struct{ b []byte }

// outbox gathers frames and writes them with one goroutine (run). Data waits for
// room, first come first served, so that streams share the connection fairly;
// control frames never wait.
type outbox struct {
	// writing is when the current write began, in nanoseconds since the session's
	// start, 0 if there is none.
	writing atomic.Int64
	now     func() int64

	mu       sync.Mutex // guards what follows, and each stream's send half
	pending  sync.Cond  // signalled when queue is not nil or closed is set
	queue    *buffer
	waiting  []*stream // streams that wait for room, in order
	reserved int       // bytes promised to streams that were taken off waiting
	closed   bool
}

func newOutbox(now func() int64) *outbox {
	o := &outbox{now: now}
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
		o.pending.Signal()
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
	o.pending.Signal()
}

// run writes what is queued until close, and until a write fails. A failed write
// loses what was queued.
func (o *outbox) run(w io.Writer) error {
	for {
		o.mu.Lock()
		for o.queue == nil && !o.closed {
			o.pending.Wait()
		}
		batch := o.queue
		o.queue = nil
		o.admit()
		o.mu.Unlock()
		if batch == nil {
			return nil
		}
		o.writing.Store(o.now())
		_, err := w.Write(batch.b)
		o.writing.Store(0)
		if cap(batch.b) <= 2*outboxLimit {
			batch.b = batch.b[:0]
			buffers.Put(batch)
		}
		if err != nil {
			return err
		}
	}
}
