package tlsmux

import (
	"errors"
	"sync"

	"github.com/hashicorp/yamux"

	"wormhole/shared/tunnel"
)

// minWindow is the least receive window that a slowly read stream is kept at once
// its first 256 KiB, which yamux grants every stream, are gone.
const minWindow = 64 << 10

var (
	errPeerStreams = errors.New("peer opened too many streams")
	errDuplicate   = errors.New("peer opened a stream twice")
	errWindow      = errors.New("peer overran a receive window")
	errAfterEnd    = errors.New("peer sent data after its end")
)

// table knows every stream that yamux knows, from the SYN on, as the wire sees
// it: what was received and read, and how its two directions ended.
type table struct {
	opt      Options
	oddLocal bool // streams opened here have odd ids (the dialer's)

	mu       sync.Mutex // guards what follows, and each stream's recvHalf and life
	streams  map[uint32]*stream
	local    int             // open streams that were opened here, or are about to be
	remote   int             // open streams that the peer opened
	credits  int             // SYNs that the peer may still be sent before it answers one
	opening  []chan struct{} // who waits for a credit, in order
	controls int             // 1 while the control stream is open
	unread   int             // bytes received and not yet read, of all open streams
	grown    int             // how far the windows of open streams exceed the first, in sum
	dropped  []uint32        // streams that the local yamux must be told to forget
	dead     bool
}

// recvHalf is the receiving direction of a stream; table.mu guards it.
type recvHalf struct {
	granted  uint64 // bytes the peer may have sent in all
	received uint64
	consumed uint64
	window   uint64 // how far granted is kept ahead of consumed
	peak     int    // most unread bytes since the buffer was last given back
	lastRead int64  // session time of the last read
	fin      bool   // the peer's END is on its way through yamux
}

func (r *recvHalf) unread() int { return int(r.received - r.consumed) }

// beyond is how far a window exceeds the one that every stream starts with.
func beyond(window uint64) int { return int(max(window, initialWindow) - initialWindow) }

// life is what a stream has been through; table.mu guards it.
type life struct {
	acked    bool // the peer answered our SYN, or it is the peer's stream
	finSent  bool
	endRead  bool // io.EOF was returned to the reader
	released bool // no longer counts as open
}

func newTable(opt Options, oddLocal bool) *table {
	return &table{opt: opt, oddLocal: oddLocal, streams: make(map[uint32]*stream), credits: opt.synCredits()}
}

// isLocal reports whether streams with this id are opened here.
func (t *table) isLocal(id uint32) bool { return (id%2 == 1) == t.oddLocal }

// add registers a stream when its SYN passes the wire, in either direction.
func (t *table) add(st *stream) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.streams[st.id]; ok {
		return errDuplicate
	}
	if t.isLocal(st.id) {
		t.streams[st.id] = st // counted by reserve
		return nil
	}
	if t.remote >= t.opt.MaxIncoming {
		return errPeerStreams
	}
	st.life.acked = true
	t.remote++
	t.streams[st.id] = st
	return nil
}

// quiet reports whether nothing has arrived for a stream that was not read: no
// byte, no END.
func (t *table) quiet(st *stream) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.dead && !st.recv.fin && st.recv.unread() == 0
}

// find returns the stream with this id, nil if there is none.
func (t *table) find(id uint32) *stream {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.streams[id]
}

// attach joins yamux's stream to ours. It returns nil if the stream is gone.
func (t *table) attach(ys *yamux.Stream) *stream {
	t.mu.Lock()
	defer t.mu.Unlock()
	st := t.streams[ys.StreamID()]
	if st == nil || st.life.released {
		return nil
	}
	st.mux.Store(ys)
	return st
}

// reserve takes a place for a stream to be opened, with a credit for its SYN. If
// no credit is left, the channel returned is closed when it was given one; a
// caller that no longer wants it calls unreserve.
func (t *table) reserve() (wait chan struct{}, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.dead {
		return nil, tunnel.ErrSessionClosed
	}
	if t.local >= t.opt.MaxStreams {
		return nil, tunnel.ErrTooManyStreams
	}
	t.local++
	if t.credits > 0 {
		t.credits--
		return nil, nil
	}
	wait = make(chan struct{})
	t.opening = append(t.opening, wait)
	return wait, nil
}

// unreserve gives back what reserve gave. wait is what reserve returned.
func (t *table) unreserve(wait chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.local--
	for i, w := range t.opening {
		if w == wait {
			t.opening = append(t.opening[:i], t.opening[i+1:]...)
			return
		}
	}
	t.returnCredit()
}

// returnCredit hands a SYN credit to whoever waits longest. The caller holds mu.
func (t *table) returnCredit() {
	if len(t.opening) == 0 {
		t.credits++
		return
	}
	close(t.opening[0])
	t.opening = t.opening[1:]
}

// ack notes that the peer took, or refused, a stream that was opened here. It
// reports whether that was news.
func (t *table) ack(st *stream) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ackLocked(st)
}

func (t *table) ackLocked(st *stream) bool {
	if st.life.acked {
		return false
	}
	st.life.acked = true
	t.returnCredit()
	return true
}

// arrival is what a data frame brought besides its data.
type arrival struct {
	acked  bool    // it is the first sign that the peer took our stream
	first  bool    // nothing came on this stream before
	victim *stream // to be aborted, because the session holds too much
}

// receive accounts for n bytes of data that are on their way to yamux.
func (t *table) receive(st *stream, n uint32) (arrival, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := &st.recv
	if r.fin && n > 0 {
		return arrival{}, errAfterEnd
	}
	news := arrival{acked: t.ackLocked(st), first: n > 0 && r.received == 0}
	r.received += uint64(n)
	if r.received > r.granted {
		return arrival{}, errWindow
	}
	if st.life.released {
		return news, nil // yamux is about to forget it
	}
	r.peak = max(r.peak, r.unread())
	t.unread += int(n)
	if t.unread > t.opt.MemoryCeiling {
		news.victim = t.largest()
	}
	return news, nil
}

// largest returns the open stream that holds most unread bytes, among equals the
// one that was not read for longest. The caller holds mu.
func (t *table) largest() *stream {
	var worst *stream
	for _, st := range t.streams {
		if st.life.released || st.control {
			continue
		}
		if worst == nil || st.recv.unread() > worst.recv.unread() ||
			st.recv.unread() == worst.recv.unread() && st.recv.lastRead < worst.recv.lastRead {
			worst = st
		}
	}
	return worst
}

// consume accounts for n bytes that were read, and returns how much more the
// peer may be granted now.
func (t *table) consume(st *stream, n int, now int64) (grant uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := &st.recv
	r.consumed += uint64(n)
	r.lastRead = now
	if st.life.released {
		return 0
	}
	t.unread -= n
	if r.fin || r.consumed+r.window <= r.granted || r.consumed+r.window-r.granted < r.window/2 {
		return 0
	}
	// A stream whose buffer is nearly empty is read as fast as it comes: the window
	// may be what holds it back. One whose buffer is nearly full gains nothing from it.
	switch unread := uint64(r.unread()); {
	case unread <= r.window/4:
		t.resize(r, min(2*r.window, uint64(t.opt.Window)))
	case unread > r.window/2:
		t.resize(r, max(r.window/2, minWindow))
	}
	if r.consumed+r.window <= r.granted {
		return 0
	}
	grant = uint32(r.consumed + r.window - r.granted)
	r.granted += uint64(grant)
	return grant
}

// resize changes a window. What is granted cannot be taken back, and readers may
// all stall at once after a fast beginning: so together windows grow by half the
// ceiling at most. The caller holds mu.
func (t *table) resize(r *recvHalf, window uint64) {
	more := beyond(window) - beyond(r.window)
	if more > 0 && t.grown+more > t.opt.MemoryCeiling/2 {
		return
	}
	t.grown += more
	r.window = window
}

// fin notes the peer's END. It reports whether it is the first.
func (t *table) fin(st *stream) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	first := !st.recv.fin
	st.recv.fin = true
	return first
}

// ended reports whether the peer's END follows what was read, and if so counts
// the receiving direction as finished.
func (t *table) ended(st *stream) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !st.recv.fin || st.recv.consumed != st.recv.received {
		return false
	}
	st.life.endRead = true
	t.releaseIfClean(st)
	return true
}

// finished counts the sending direction as finished.
func (t *table) finished(st *stream) {
	t.mu.Lock()
	defer t.mu.Unlock()
	st.life.finSent = true
	t.releaseIfClean(st)
}

func (t *table) releaseIfClean(st *stream) {
	if st.life.finSent && st.life.endRead && !st.life.released {
		t.release(st)
		delete(t.streams, st.id) // yamux has seen both FINs and forgot it
	}
}

// release ends the counting of a stream. The caller holds mu.
func (t *table) release(st *stream) {
	st.life.released = true
	t.unread -= st.recv.unread()
	t.grown -= beyond(st.recv.window)
	if st.control {
		t.controls--
	}
	if t.isLocal(st.id) {
		t.local--
	} else {
		t.remote--
	}
}

// abandon releases a stream that is aborted here. It reports whether the peer has
// to be told.
func (t *table) abandon(st *stream) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if st.life.released {
		return false
	}
	t.release(st)
	if t.dead {
		delete(t.streams, st.id)
		return false
	}
	t.dropped = append(t.dropped, st.id)
	return true
}

// reset releases a stream that the peer aborted.
func (t *table) reset(st *stream) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ackLocked(st)
	if !st.life.released {
		t.release(st)
	}
	delete(t.streams, st.id)
}

// takeDrops appends to b the RST frames that make the local yamux forget the
// streams aborted here, as many as fit.
func (t *table) takeDrops(b []byte) []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.dropped) > 0 && cap(b)-len(b) >= headerLen {
		id := t.dropped[0]
		t.dropped = t.dropped[1:]
		st := t.streams[id]
		if st == nil {
			continue // the peer's RST came first
		}
		delete(t.streams, id)
		flags := uint16(flagRST)
		if t.ackLocked(st) { // see wire.streamFrame
			flags |= flagACK
		}
		b = header{kind: typeWindow, flags: flags, id: id}.append(b)
	}
	if len(t.dropped) == 0 {
		t.dropped = nil
	}
	return b
}

// open counts the streams open now.
func (t *table) open() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.local + t.remote - t.controls
}

// idle returns the streams whose receive buffers are larger than they need to be
// and were not read since the given time.
func (t *table) idle(since int64) []*yamux.Stream {
	t.mu.Lock()
	defer t.mu.Unlock()
	var found []*yamux.Stream
	for _, st := range t.streams {
		if st.recv.peak > minWindow && st.recv.unread() == 0 && st.recv.lastRead < since {
			st.recv.peak = 0
			if ys := st.mux.Load(); ys != nil {
				found = append(found, ys)
			}
		}
	}
	return found
}

// kill marks the session's end and returns the streams that were open.
func (t *table) kill() []*stream {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dead = true
	var open []*stream
	for id, st := range t.streams {
		open = append(open, st)
		delete(t.streams, id)
	}
	for _, wait := range t.opening {
		close(wait)
	}
	t.opening = nil
	return open
}

// setControl takes the control stream out of the count of open streams.
func (t *table) setControl(st *stream) {
	t.mu.Lock()
	defer t.mu.Unlock()
	st.control = true
	if !st.life.released {
		t.controls = 1
	}
}

// whole reports whether the peer's END was received.
func (t *table) whole(st *stream) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return st.recv.fin
}
