package tlsmux

import (
	"errors"
	"fmt"
	"net"
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
	// maxRefused is how many streams in a second a peer may open that are refused
	// unseen. It never sees them pile up, and might go on for ever.
	maxRefused = 1000
)

// wire is the connection under yamux. It sees every frame in both directions,
// keeps the table true, and adds and changes frames where yamux falls short.
// Read and Write are each called by one goroutine of yamux's.
type wire struct {
	s *session

	// The reader's state.
	body    uint32          // bytes left of the data frame being handed to yamux
	part    [headerLen]byte // a header of which the rest did not come yet
	partLen int
	second  int64 // the second that the three are counted in
	pings   int
	tiny    int
	refused int
	last    *stream // the stream of the last data frame
}

// Read hands the peer's frames to yamux.
func (w *wire) Read(p []byte) (int, error) {
	for {
		if w.body == 0 && w.partLen == 0 {
			if drops := w.s.table.takeDrops(p[:0:len(p)]); len(drops) > 0 {
				return len(drops), nil
			}
		}
		n := copy(p, w.part[:w.partLen])
		m, err := w.s.conn.Read(p[n:])
		if m > 0 {
			w.s.heard.Store(w.s.now())
		}
		n += m
		keep, bad := w.inspect(p[:n])
		w.partLen = copy(w.part[:], p[keep:n])
		if bad != nil {
			err, keep = bad, 0
		}
		if err != nil {
			w.s.fail(fmt.Errorf("read from peer: %w", err))
		}
		if keep > 0 || err != nil {
			return keep, err
		}
	}
}

// inspect acts on the frames in b and returns how many of its bytes yamux may
// have: all but a header that is not complete.
func (w *wire) inspect(b []byte) (keep int, err error) {
	for keep < len(b) {
		if w.body > 0 {
			n := min(int(w.body), len(b)-keep)
			w.body -= uint32(n)
			keep += n
			continue
		}
		if len(b)-keep < headerLen {
			return keep, nil
		}
		if err := w.frame(b[keep : keep+headerLen]); err != nil {
			return keep, err
		}
		keep += headerLen
	}
	return keep, nil
}

// frame acts on one incoming frame, whose header it may change.
func (w *wire) frame(b []byte) error {
	h := decodeHeader(b)
	if h.version != 0 {
		return errFrame
	}
	switch h.kind {
	case typeData:
		w.body = h.length
		return w.streamFrame(h, b)
	case typeWindow:
		return w.streamFrame(h, b)
	case typePing:
		return w.ping(h, b)
	case typeGoAway:
		return errGoAway
	}
	return errFrame
}

func (w *wire) ping(h header, b []byte) error {
	if h.flags&flagSYN == 0 {
		return w.count(&w.tiny, maxTiny, errTiny)
	}
	if err := w.count(&w.pings, maxPings, errPings); err != nil {
		return err
	}
	// yamux would start a goroutine to answer. It gets an answer to a ping that it
	// never sent instead, which it ignores.
	setFlags(b, flagACK)
	if !w.s.out.control(header{kind: typePing, flags: flagACK, length: h.length}) {
		return errBacklog
	}
	return nil
}

func (w *wire) streamFrame(h header, b []byte) error {
	t := w.s.table
	if h.flags&flagSYN != 0 {
		if t.isLocal(h.id) {
			return errStreamID
		}
		st := newStream(w.s, h.id)
		if err := t.add(st); err != nil {
			return err
		}
		if w.s.opt.RefuseStreams && h.id != controlID {
			if err := w.count(&w.refused, maxRefused, errPeerStreams); err != nil {
				return err
			}
			st.Abort()
		}
	}
	st := w.last
	if st == nil || st.id != h.id || h.flags != 0 {
		st = t.find(h.id)
	}
	if st == nil {
		// Normal for a moment after an abort: it was under way.
		return w.count(&w.tiny, maxTiny, errTiny)
	}
	var news arrival
	switch h.kind {
	case typeData:
		var err error
		if news, err = t.receive(st, h.length); err != nil {
			return err
		}
		if news.victim != nil {
			news.victim.Abort()
		}
		if h.length < tinyBody && h.flags == 0 && !news.first {
			if err := w.count(&w.tiny, maxTiny, errTiny); err != nil {
				return err
			}
		}
		w.last = st
	case typeWindow:
		if h.length < tinyGrant && h.flags == 0 {
			if err := w.count(&w.tiny, maxTiny, errTiny); err != nil {
				return err
			}
		}
		if h.length > 0 && !w.s.out.credit(st, h.length) {
			return errWindow
		}
		news.acked = h.flags != 0 && t.ack(st)
	}
	if news.acked && h.flags&flagACK == 0 {
		// A peer's yamux sends no ACK if a FIN came before the stream was accepted,
		// or if it refuses the stream; ours would keep a note of the SYN for ever.
		setFlags(b, h.flags|flagACK)
	}
	if h.flags&flagFIN != 0 && !t.fin(st) {
		return errAfterEnd
	}
	if h.flags&flagRST != 0 {
		t.reset(st)
		w.last = nil
		st.end(endReset)
	}
	return nil
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
		// Windows are granted by table.consume.
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
