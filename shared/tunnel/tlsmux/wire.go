package tlsmux

import (
	"errors"
	"fmt"
	"io"
	"net"

	"wormhole/shared/tunnel"
)

var (
	errPings    = errors.New("peer sent too many pings")
	errTiny     = errors.New("peer sent too many useless frames")
	errFrame    = errors.New("peer sent a malformed frame")
	errBacklog  = errors.New("peer does not read what it provoked")
	errYamux    = errors.New("multiplexer gave the session up")
	errGoAway   = errors.New("peer said go away")
	errStreamID = errors.New("peer opened a stream with an id of this side")
)

const (
	// controlID is the first stream that a dialer opens.
	controlID = 1
	// maxPings is how many pings a peer may send in a second.
	maxPings = 10
	// maxTiny is how many frames in a second may carry next to nothing: fewer than
	// tinyBody bytes (but for a stream's first, which may be an answer), or a window
	// update below tinyGrant, or for no known stream.
	maxTiny   = 50_000
	tinyBody  = 8
	tinyGrant = 1 << 10
	// directBody is how much of a body is worth a read of its own, past the buffer
	// that is read ahead into.
	directBody = 1 << 10
	// minAhead is the buffer that yamux lends.
	minAhead = middleChunk
	// toldFrames is how many frames yamux is told of at once.
	toldFrames = 8
	// maxRefused is how many streams in a second a peer may open that are refused
	// unseen. It never sees them pile up, and might go on for ever.
	maxRefused = 1000
)

// wire is the connection under yamux. It sees every frame in both directions,
// keeps the table true, and adds and changes frames where yamux falls short. The
// bodies of data frames go to their streams; yamux learns of their flags only.
// Read and Write are each called by one goroutine of yamux's.
type wire struct {
	s    *session
	conn io.Reader

	// The reader's state. Headers and short bodies are read ahead, into the buffer that
	// yamux lends for a Read: an idle session has none of ours. What is longer goes
	// where it belongs at once.
	ahead   []byte
	r, w    int    // ahead[r:w] was read and not taken
	kept    *chunk // what was read ahead when the buffer went back, nil if nothing
	second  int64  // the second that the three are counted in
	pings   int
	tiny    int
	refused int
	last    *stream       // the stream of the last data frame
	offered []tunnel.Sink // took frames and were not flushed since
}

// Read acts on the peer's frames and returns the next that yamux has to know of.
func (w *wire) Read(p []byte) (int, error) {
	if len(p) < minAhead {
		return 0, io.ErrShortBuffer
	}
	w.ahead, w.r, w.w = p[:minAhead], 0, 0
	if k := w.kept; k != nil {
		w.w = copy(w.ahead, k.buf[:k.w])
		w.kept = nil
		k.free()
	}
	var told [toldFrames * headerLen]byte
	frames, err := w.serve(told[:0])
	w.flush()
	if err != nil {
		w.s.fail(fmt.Errorf("read from peer: %w", err))
		return 0, err
	}
	if w.r < w.w {
		w.kept = takeChunk(w.w - w.r)
		w.kept.w = copy(w.kept.buf, w.ahead[w.r:w.w])
	}
	w.ahead = nil
	return copy(p, frames), nil
}

// serve acts on frames until yamux has to know of some and the next may not have come
// yet, and appends those to b while there is room.
func (w *wire) serve(b []byte) ([]byte, error) {
	for {
		b = w.s.table.takeDrops(b)
		if len(b) > 0 && (cap(b)-len(b) < headerLen || !w.complete()) {
			return b, nil
		}
		h, err := w.next()
		if err == nil {
			h.flags, err = w.frame(h)
		}
		if err != nil {
			return nil, err
		}
		if h.flags != 0 {
			h.length = 0
			b = h.append(b)
		}
	}
}

// complete reports whether the next frame was read ahead, to its end.
func (w *wire) complete() bool {
	have := w.w - w.r
	if have < headerLen {
		return false
	}
	h := decodeHeader(w.ahead[w.r:])
	return h.kind != typeData || uint32(have-headerLen) >= h.length
}

// next reads a header.
func (w *wire) next() (header, error) {
	for w.w-w.r < headerLen {
		if err := w.more(); err != nil {
			return header{}, err
		}
	}
	h := decodeHeader(w.ahead[w.r:])
	w.r += headerLen
	return h, nil
}

// more reads ahead. There is room for it after a part of a header.
func (w *wire) more() error {
	w.r, w.w = 0, copy(w.ahead, w.ahead[w.r:w.w])
	n, err := w.read(w.ahead[w.w:])
	w.w += n
	if n > 0 {
		return nil // err comes again
	}
	return err
}

// fill reads all of b.
func (w *wire) fill(b []byte) (n int, err error) {
	for {
		m := copy(b[n:], w.ahead[w.r:w.w])
		n += m
		w.r += m
		switch {
		case n == len(b):
			return n, nil
		case len(b)-n < directBody:
			err = w.more()
		default:
			m, err = w.read(b[n:])
			n += m
		}
		if err != nil && n < len(b) {
			return n, err
		}
	}
}

// read reads from the peer and notes that it was heard. What was passed on until now
// goes out first, as the read may wait.
func (w *wire) read(b []byte) (int, error) {
	w.flush()
	n, err := w.conn.Read(b)
	if n > 0 {
		w.s.heard.Store(w.s.now())
	}
	return n, err
}

// frame acts on one incoming frame, whose body it takes off the connection. It
// returns the flags that yamux has to know of.
func (w *wire) frame(h header) (flags uint16, err error) {
	if h.version != 0 {
		return 0, errFrame
	}
	switch h.kind {
	case typeData, typeWindow:
		return w.streamFrame(h)
	case typePing:
		return 0, w.ping(h)
	case typeGoAway:
		return 0, errGoAway
	}
	return 0, errFrame
}

func (w *wire) ping(h header) error {
	if h.flags&flagSYN == 0 {
		return w.count(&w.tiny, maxTiny, errTiny)
	}
	if err := w.count(&w.pings, maxPings, errPings); err != nil {
		return err
	}
	// yamux would start a goroutine to answer.
	if !w.s.out.control(header{kind: typePing, flags: flagACK, length: h.length}) {
		return errBacklog
	}
	return nil
}

// streamFrame acts on a frame of a stream and returns the flags for yamux.
func (w *wire) streamFrame(h header) (flags uint16, err error) {
	t := w.s.table
	if h.flags&flagSYN != 0 {
		if err := w.incoming(h.id); err != nil {
			return 0, err
		}
	}
	st := w.last
	if st == nil || st.id != h.id || h.flags != 0 {
		st = t.find(h.id)
	}
	if st == nil {
		// Normal for a moment after an abort: it was under way.
		if err := w.count(&w.tiny, maxTiny, errTiny); err != nil {
			return 0, err
		}
		if h.kind == typeData {
			return 0, w.skip(h.length)
		}
		return 0, nil
	}
	flags = h.flags &^ flagACK
	if !st.life.acked && (h.kind == typeData || h.flags != 0) {
		// Any frame says that the peer took our stream. A peer's yamux sends no ACK if a
		// FIN came before the stream was accepted, or if it refuses the stream; ours
		// would keep a note of the SYN for ever.
		t.ack(st)
		flags |= flagACK
	}
	if h.kind == typeData {
		err = w.data(st, h)
	} else {
		err = w.window(st, h)
	}
	if err != nil {
		return 0, err
	}
	if h.flags&flagFIN != 0 && !st.recv.end() {
		return 0, errAfterEnd
	}
	if h.flags&flagRST != 0 {
		t.reset(st)
		w.last = nil
		st.end(endReset)
	}
	return flags, nil
}

// incoming registers a stream that the peer opens.
func (w *wire) incoming(id uint32) error {
	t := w.s.table
	if t.isLocal(id) {
		return errStreamID
	}
	st := newStream(w.s, id)
	if err := t.add(st); err != nil {
		return err
	}
	if w.s.opt.RefuseStreams && id != controlID {
		if err := w.count(&w.refused, maxRefused, errPeerStreams); err != nil {
			return err
		}
		st.Abort()
	}
	return nil
}

// window acts on a window update.
func (w *wire) window(st *stream, h header) error {
	if h.length < tinyGrant && h.flags == 0 {
		if err := w.count(&w.tiny, maxTiny, errTiny); err != nil {
			return err
		}
	}
	if h.length > 0 && !w.s.out.credit(st, h.length) {
		return errWindow
	}
	return nil
}

// data takes the body of a data frame to its stream.
func (w *wire) data(st *stream, h header) error {
	first, sink, err := st.recv.announce(h.length)
	if err != nil {
		return err
	}
	if h.length < tinyBody && h.flags == 0 && !first {
		if err := w.count(&w.tiny, maxTiny, errTiny); err != nil {
			return err
		}
	}
	w.last = st
	if sink != nil && w.pass(st, sink, int(h.length)) {
		return nil
	}
	untold := 0
	for left := h.length; left > 0; {
		b := st.recv.space(int(left))
		if b == nil {
			return w.skip(left)
		}
		if victim := w.s.table.excess(); victim != nil {
			victim.Abort()
		}
		n, err := w.fill(b)
		left -= uint32(n)
		untold += n
		// A frame of ours wakes the reader once, a huge one now and then.
		tell := left == 0 || untold >= largeChunk
		st.recv.arrived(n, tell)
		if tell {
			untold = 0
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// pass offers a body that was read ahead to who wants it passed on.
func (w *wire) pass(st *stream, sink tunnel.Sink, n int) bool {
	if n == 0 || w.w-w.r < n || !sink.Offer(w.ahead[w.r:w.r+n]) {
		return false
	}
	w.r += n
	w.offered = append(w.offered, sink)
	st.grant(st.recv.passed(n, w.s.heard.Load()))
	return true
}

// flush has sent what was passed on: one write for all that came together.
func (w *wire) flush() {
	for i, sink := range w.offered {
		sink.Flush()
		w.offered[i] = nil
	}
	w.offered = w.offered[:0]
}

// skip takes n bytes off the connection that nobody wants.
func (w *wire) skip(n uint32) error {
	var scratch *chunk
	for {
		have := min(n, uint32(w.w-w.r))
		n -= have
		w.r += int(have)
		var err error
		switch {
		case n == 0:
			return nil
		case n < directBody:
			err = w.more()
		default:
			if scratch == nil {
				scratch = takeChunk(largeChunk)
				defer scratch.free()
			}
			var m int
			m, err = w.read(scratch.buf[:min(n, largeChunk)])
			n -= uint32(m)
		}
		if err != nil && n > 0 {
			return err
		}
	}
}

// count adds one to a counter per second and returns excess above its limit.
func (w *wire) count(n *int, limit int, excess error) error {
	if second := w.s.heard.Load() / 1e9; second != w.second {
		w.second, w.pings, w.tiny, w.refused = second, 0, 0, 0
	}
	if *n++; *n > limit {
		return excess
	}
	return nil
}

// Write takes one header from yamux, which sends data through the outbox only.
func (w *wire) Write(p []byte) (int, error) {
	h := decodeHeader(p)
	if h.kind == typeWindow {
		// Windows are granted by recvHalf.consume.
		h.length = 0
		if h.flags == 0 {
			return len(p), nil
		}
		if h.flags&flagSYN != 0 {
			if err := w.s.table.add(newStream(w.s, h.id)); err != nil {
				return 0, err
			}
		}
	}
	if !w.s.out.control(h) {
		w.s.fail(errBacklog)
		return 0, net.ErrClosed
	}
	return len(p), nil
}

// Close is yamux giving up; it drops the connection so that no reader spins.
func (w *wire) Close() error {
	w.s.fail(errYamux)
	return nil
}

func (w *wire) LocalAddr() net.Addr  { return w.s.conn.LocalAddr() }
func (w *wire) RemoteAddr() net.Addr { return w.s.conn.RemoteAddr() }
