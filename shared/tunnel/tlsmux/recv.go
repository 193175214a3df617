package tlsmux

import (
	"sync"
	"sync/atomic"
	"time"

	"wormhole/shared/tunnel"
)

// memory is what the receiving halves of a session share.
type memory struct {
	held  atomic.Int64 // bytes of chunks, full or not
	grown atomic.Int64 // how far windows exceed the first, in sum
	limit int64        // of grown
	max   uint64       // the largest window
}

// recvHalf is the receiving direction of a stream: what has come and was not read,
// and how much more may come. The wire is its only writer.
type recvHalf struct {
	mem  *memory
	wake chan struct{} // tells a waiting reader to look again

	mu       sync.Mutex  // guards what follows; table.mu may be held before it
	head     *chunk      // read from next
	tail     *chunk      // written to next
	filling  bool        // the wire writes to tail, behind its w
	waiting  bool        // a reader waits for wake
	fin      bool        // the peer's END came, and all that precedes it
	closed   bool        // nobody will read: what comes is dropped
	sink     tunnel.Sink // takes what comes while a reader waits; nil for none
	held     int         // bytes of chunks here
	granted  uint64      // bytes the peer may have sent in all
	received uint64      // bytes of the frames that began to arrive
	consumed uint64      // bytes that were read
	window   uint64      // how far granted is kept ahead of consumed
	lastRead int64       // session time of the last read
}

func (r *recvHalf) unread() int { return int(r.received - r.consumed) }

// beyond is how far a window exceeds the one that every stream starts with.
func beyond(window uint64) int64 { return int64(max(window, initialWindow) - initialWindow) }

// announce accounts for a frame of n bytes that begins to arrive. first says that
// nothing came on this stream before. If sink is not nil, the frame may be offered to
// it: the reader waits, so that it has no bytes in hand, and none are queued for it.
func (r *recvHalf) announce(n uint32) (first bool, sink tunnel.Sink, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fin && n > 0 {
		return false, nil, errAfterEnd
	}
	first = n > 0 && r.received == 0
	r.received += uint64(n)
	if r.received > r.granted {
		return false, nil, errWindow
	}
	if r.waiting && r.head == nil && !r.closed {
		sink = r.sink
	}
	return first, sink, nil
}

// passed accounts for n bytes that a sink took, and returns how much more the peer is
// to be granted.
func (r *recvHalf) passed(n int, now int64) (grant uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.consume(n, now)
}

// passTo sets the sink.
func (r *recvHalf) passTo(sink tunnel.Sink) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sink = sink
}

// space returns where up to n bytes that were announced may be written, before
// arrived is called. It is nil if nobody wants them; they still have to be
// taken off the connection.
func (r *recvHalf) space(n int) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.filling = true
	if r.tail != nil {
		if b := r.tail.room(n); b != nil {
			return b
		}
	}
	c := takeChunk(n)
	r.hold(len(c.buf))
	if r.tail == nil {
		r.head = c
	} else {
		r.tail.next = c
	}
	r.tail = c
	return c.room(n)
}

// arrived says that n bytes were written into space; tell wakes the reader.
func (r *recvHalf) arrived(n int, tell bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.filling = false
	if r.closed {
		r.dropAll()
		return
	}
	r.tail.w += n
	if r.head == r.tail && r.tail.r == r.tail.w {
		r.shift() // the connection failed
	}
	if tell {
		r.rouse()
	}
}

// hold counts bytes of chunks. The caller holds mu.
func (r *recvHalf) hold(n int) {
	r.held += n
	r.mem.held.Add(int64(n))
}

// rouse wakes the reader. The caller holds mu.
func (r *recvHalf) rouse() {
	if r.waiting {
		r.waiting = false
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
}

// notify makes a waiting reader look again.
func (r *recvHalf) notify() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rouse()
}

// shift frees the chunk that is read first. It was read; the caller holds mu.
func (r *recvHalf) shift() {
	c := r.head
	if r.head = c.next; r.head == nil {
		r.tail = nil
	}
	r.hold(-len(c.buf))
	c.free()
}

// worthLending is from how many bytes on a chunk is lent and not copied.
const worthLending = largeChunk / 2

// What a read that moved nothing found.
type found int

const (
	foundNothing found = iota // the reader was noted as waiting
	foundEnd                  // the END
	foundGone                 // the stream was given up
	foundSome                 // bytes that are better copied than lent
)

// read moves what has come to p. grant is how much more the peer is to be granted;
// why says why n is 0.
func (r *recvHalf) read(p []byte, now int64) (n int, grant uint32, why found) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting = false
	for r.head != nil && n < len(p) {
		c := r.head
		m := copy(p[n:], c.buf[c.r:c.w])
		c.r += m
		n += m
		if c.r < c.w || r.filling && c == r.tail {
			break
		}
		r.shift()
	}
	switch {
	case n > 0:
		return n, r.consume(n, now), foundNothing
	}
	return 0, 0, r.lacking()
}

// lacking is what a reader found that got no bytes. The caller holds mu.
func (r *recvHalf) lacking() found {
	switch {
	case r.fin && r.consumed == r.received:
		return foundEnd
	case r.closed:
		return foundGone
	}
	r.waiting = true
	return foundNothing
}

// lend hands out the chunk that would be read next, which takeBack must end. It is nil
// if that one is written to or holds so little that to copy it costs less; why says
// which. For the rest see read.
func (r *recvHalf) lend(now int64) (c *chunk, grant uint32, why found) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting = false
	c = r.head
	if c == nil || c.r == c.w {
		return nil, 0, r.lacking()
	}
	if c.w-c.r < worthLending || r.filling && c == r.tail {
		return nil, 0, foundSome
	}
	if r.head = c.next; r.head == nil {
		r.tail = nil
	}
	c.next = nil
	return c, r.consume(c.w-c.r, now), foundSome
}

// takeBack frees a chunk that was lent.
func (r *recvHalf) takeBack(c *chunk) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hold(-len(c.buf))
	c.free()
}

// ready reports whether a read would return at once.
func (r *recvHalf) ready() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.head != nil && r.head.r < r.head.w || r.closed || r.fin && r.consumed == r.received
}

// wait returns when the reader that read has noted as waiting should look again: at
// deadline, in Unix nanoseconds, at the latest, if that is not 0.
func (r *recvHalf) wait(deadline int64) {
	if deadline == 0 {
		<-r.wake
		return
	}
	timer := timers.Get().(*time.Timer)
	timer.Reset(time.Until(time.Unix(0, deadline)))
	select {
	case <-r.wake:
	case <-timer.C:
		r.mu.Lock()
		r.waiting = false
		r.mu.Unlock()
	}
	timer.Stop()
	timers.Put(timer)
}

// timers holds stopped timers. Nothing is left in the channel of one that was
// stopped or reset (package time, since Go 1.23).
var timers = sync.Pool{New: func() any {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}}

// consume accounts for n bytes that were read, and returns how much more the
// peer may be granted now. The caller holds mu.
func (r *recvHalf) consume(n int, now int64) (grant uint32) {
	r.consumed += uint64(n)
	r.lastRead = now
	if r.fin || r.consumed+r.window <= r.granted || r.consumed+r.window-r.granted < r.window/2 {
		return 0
	}
	// A stream whose queue is nearly empty is read as fast as it comes: the window
	// may be what holds it back. One whose queue is nearly full gains nothing from it.
	switch unread := uint64(r.unread()); {
	case unread <= r.window/4:
		r.resize(min(2*r.window, r.mem.max))
	case unread > r.window/2:
		r.resize(max(r.window/2, minWindow))
	}
	if r.consumed+r.window <= r.granted {
		return 0
	}
	grant = uint32(r.consumed + r.window - r.granted)
	r.granted += uint64(grant)
	return grant
}

// resize changes the window. What is granted cannot be taken back, and readers may
// all stall at once after a fast beginning: so together the windows of a session
// grow by half the ceiling at most. The caller holds mu.
func (r *recvHalf) resize(window uint64) {
	more := beyond(window) - beyond(r.window)
	if r.mem.grown.Add(more) > r.mem.limit && more > 0 {
		r.mem.grown.Add(-more)
		return
	}
	r.window = window
}

// end notes the peer's END. It reports whether it is the first.
func (r *recvHalf) end() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fin {
		return false
	}
	r.fin = true
	r.rouse()
	return true
}

// whole reports whether the peer's END came.
func (r *recvHalf) whole() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fin
}

// quiet reports whether nothing came that was not read: no byte, no END.
func (r *recvHalf) quiet() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.fin && !r.closed && r.received == r.consumed
}

// load returns how many bytes the stream holds and when it was last read.
func (r *recvHalf) load() (held int, lastRead int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.held, r.lastRead
}

// drop frees what came and was not read, and what will come. It may be called again.
func (r *recvHalf) drop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.closed, r.sink = true, nil
		r.mem.grown.Add(-beyond(r.window))
		r.window = 0
	}
	r.dropAll()
	r.rouse()
}

// dropAll frees all chunks but the one that the wire writes to. The caller holds mu.
func (r *recvHalf) dropAll() {
	for r.head != nil && (!r.filling || r.head != r.tail) {
		r.shift()
	}
}
