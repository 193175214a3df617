package tlsmux

import (
	"errors"
	"sync"
	"sync/atomic"

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
	mem      memory
	drops    atomic.Bool // something is in dropped

	mu       sync.Mutex // guards what follows, and each stream's life
	streams  map[uint32]*stream
	local    int             // open streams that were opened here, or are about to be
	remote   int             // open streams that the peer opened
	credits  int             // SYNs that the peer may still be sent before it answers one
	opening  []chan struct{} // who waits for a credit, in order
	controls int             // 1 while the control stream is open
	dropped  []uint32        // streams that the local yamux must be told to forget
	dead     bool
}

// life is what a stream has been through; table.mu guards it.
type life struct {
	acked    bool // the peer answered our SYN, or it is the peer's stream; only the wire's reader sets it
	finSent  bool
	endRead  bool // io.EOF was returned to the reader
	released bool // no longer counts as open
}

func newTable(opt Options, oddLocal bool) *table {
	t := &table{opt: opt, oddLocal: oddLocal, streams: make(map[uint32]*stream), credits: opt.synCredits()}
	t.mem.limit, t.mem.max = int64(opt.MemoryCeiling/2), uint64(opt.Window)
	return t
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

// ack notes that the peer took, or refused, a stream that was opened here.
func (t *table) ack(st *stream) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ackLocked(st)
}

// ackLocked reports whether that was news.
func (t *table) ackLocked(st *stream) bool {
	if st.life.acked {
		return false
	}
	st.life.acked = true
	t.returnCredit()
	return true
}

// excess returns the stream to be aborted because the session holds too much, nil
// if it does not.
func (t *table) excess() *stream {
	if t.mem.held.Load() <= int64(t.opt.MemoryCeiling) {
		return nil
	}
	return t.largest()
}

// largest returns the open stream that holds most, among equals the one that was
// not read for longest.
func (t *table) largest() *stream {
	t.mu.Lock()
	defer t.mu.Unlock()
	var worst *stream
	var most int
	var since int64
	for _, st := range t.streams {
		if st.life.released || st.control {
			continue
		}
		held, lastRead := st.recv.load()
		if worst == nil || held > most || held == most && lastRead < since {
			worst, most, since = st, held, lastRead
		}
	}
	return worst
}

// ended counts the receiving direction as finished: the reader has seen the END.
func (t *table) ended(st *stream) {
	t.mu.Lock()
	defer t.mu.Unlock()
	st.life.endRead = true
	t.releaseIfClean(st)
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
	st.recv.drop()
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
	t.drops.Store(true)
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
	if !t.drops.Load() {
		return b
	}
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
		t.drops.Store(false)
	}
	return b
}

// open counts the streams open now.
func (t *table) open() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.local + t.remote - t.controls
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
