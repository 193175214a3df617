package tunnel

import (
	"sync/atomic"
	"time"
)

const (
	// BulkBytes is how much a stream moves one way before it counts as bulk.
	BulkBytes = 256 << 10
	// BulkRatio says how far one way must outweigh the other: each byte that goes
	// back takes so many from what counts. Exchanges of small messages never add up
	// to bulk, and the window updates of an HTTP/2 connection do not hide it.
	BulkRatio = 256
	// BulkRest is how long a stream that counts as bulk may move nothing before
	// others need not mind it.
	BulkRest = 3 * time.Second
)

// Load knows which streams of one carrier connection move bulk now: what is sent on
// the same connection waits behind them, and behind every packet that they lose. Its
// methods may be called concurrently. It must not be copied.
type Load struct {
	began  func() // a stream became bulk; nil is nobody asked
	epoch  time.Time
	bulk   atomic.Int32 // streams that count as bulk
	latest atomic.Int64 // when one of them last moved, in nanoseconds since epoch
}

// NewLoad makes the Load of a connection without streams. began, if not nil, is
// called whenever a stream becomes bulk, by who moves its bytes; it must not block.
func NewLoad(began func()) *Load { return &Load{began: began, epoch: time.Now()} }

// Bulk counts the streams that move bulk now.
func (l *Load) Bulk() int { return l.BulkWithin(BulkRest) }

// BulkWithin counts the streams that move bulk, if one of them did in the time that
// has just passed.
func (l *Load) BulkWithin(d time.Duration) int {
	n := l.bulk.Load()
	if n <= 0 || time.Since(l.epoch)-time.Duration(l.latest.Load()) > d {
		return 0
	}
	return int(n)
}

// Track returns s with what it moves counted.
func (l *Load) Track(s Stream) *Tracked { return &Tracked{Stream: s, load: l} }

// Tracked is a stream whose connection's Load knows whether it moves bulk.
type Tracked struct {
	Stream
	load *Load
	// How much each way has outweighed the other, at most BulkBytes. A reader and a
	// writer that meet may lose a little of it.
	in, out atomic.Int64
	bulk    atomic.Bool
	over    atomic.Bool
}

// Read implements Stream.
func (t *Tracked) Read(p []byte) (int, error) {
	n, err := t.Stream.Read(p)
	t.Took(n)
	return n, err
}

// Took counts n bytes that were received otherwise than by Read.
func (t *Tracked) Took(n int) {
	if n > 0 {
		t.moved(&t.in, &t.out, int64(n))
	}
}

// Write implements Stream.
func (t *Tracked) Write(p []byte) (int, error) {
	n, err := t.Stream.Write(p)
	if n > 0 {
		t.moved(&t.out, &t.in, int64(n))
	}
	return n, err
}

// moved counts n bytes that went one way.
func (t *Tracked) moved(way, back *atomic.Int64, n int64) {
	level := way.Add(n)
	if level >= BulkBytes {
		way.Store(BulkBytes)
	}
	if back.Load() > 0 && back.Add(-BulkRatio*n) < 0 {
		back.Store(0)
	}
	switch bulk := t.bulk.Load(); {
	case bulk && max(t.in.Load(), t.out.Load()) < BulkBytes/2:
		t.settle()
	case bulk:
		t.load.latest.Store(int64(time.Since(t.load.epoch)))
	case level >= BulkBytes:
		t.begin()
	}
}

// begin makes the stream count as bulk.
func (t *Tracked) begin() {
	if t.over.Load() {
		return
	}
	t.load.latest.Store(int64(time.Since(t.load.epoch)))
	if t.bulk.CompareAndSwap(false, true) {
		t.load.bulk.Add(1)
		if t.over.Load() { // closed meanwhile, before or after the swap
			t.settle()
		}
		if t.load.began != nil {
			t.load.began()
		}
	}
}

// settle makes it count no more.
func (t *Tracked) settle() {
	if t.bulk.CompareAndSwap(true, false) {
		t.load.bulk.Add(-1)
	}
}

// Direct returns the side of the stream that passes bytes on, with them counted; nil if
// it has none.
func (t *Tracked) Direct() Direct {
	if d := DirectOf(t.Stream); d != nil {
		return trackedDirect{t, d}
	}
	return nil
}

// trackedDirect is a Direct whose bytes are counted.
type trackedDirect struct {
	tracked *Tracked
	direct  Direct
}

// Offer implements Sink.
func (d trackedDirect) Offer(p []byte) bool {
	if !d.direct.Offer(p) {
		return false
	}
	d.tracked.moved(&d.tracked.out, &d.tracked.in, int64(len(p)))
	return true
}

// Flush implements Sink.
func (d trackedDirect) Flush() { d.direct.Flush() }

// PassTo implements Direct.
func (d trackedDirect) PassTo(sink Sink) { d.direct.PassTo(trackedSink{d.tracked, sink}) }

// trackedSink is where a tracked stream passes to what it receives.
type trackedSink struct {
	tracked *Tracked
	Sink
}

// Offer implements Sink.
func (s trackedSink) Offer(p []byte) bool {
	if !s.Sink.Offer(p) {
		return false
	}
	s.tracked.Took(len(p))
	return true
}

// Rest says that what was moved is over and what follows has nothing to do with it,
// as between two exchanges.
func (t *Tracked) Rest() {
	t.in.Store(0)
	t.out.Store(0)
	t.settle()
}

// Close implements Stream.
func (t *Tracked) Close() error {
	t.over.Store(true)
	t.settle()
	return t.Stream.Close()
}
