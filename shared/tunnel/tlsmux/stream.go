package tlsmux

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"

	"wormhole/shared/tunnel"
)

// How a stream ended on this side; see stream.ending.
const (
	endNone   int32 = iota
	endReset        // the peer aborted it or the session died
	endAbort        // aborted here
	endClosed       // closed here
)

// past is a deadline that has gone by.
var past = time.Unix(1, 0)

// stream is one stream of a session, from its SYN on.
type stream struct {
	s  *session
	id uint32

	// mux is yamux's half: the receive buffer and the state. It is nil before the
	// stream is handed out, and after an abort, so that its buffer is free whatever
	// the holder of the stream does.
	mux          atomic.Pointer[yamux.Stream]
	ending       atomic.Int32
	readDeadline atomic.Int64 // Unix nanoseconds, 0 for none

	writing sync.Mutex // one Write or CloseWrite at a time
	send    sendHalf   // guarded by outbox.mu
	recv    recvHalf   // guarded by table.mu
	life    life       // guarded by table.mu
	control bool       // guarded by table.mu
}

var _ tunnel.Stream = (*stream)(nil)

func newStream(s *session, id uint32) *stream {
	return &stream{
		s:    s,
		id:   id,
		send: sendHalf{window: initialWindow, wake: make(chan struct{}, 1)},
		recv: recvHalf{granted: initialWindow, window: initialWindow, lastRead: s.now()},
	}
}

func (st *stream) ID() uint64           { return uint64(st.id) }
func (st *stream) LocalAddr() net.Addr  { return st.s.LocalAddr() }
func (st *stream) RemoteAddr() net.Addr { return st.s.RemoteAddr() }

// Read implements tunnel.Stream.
func (st *stream) Read(p []byte) (int, error) {
	if err := st.ended(); err != nil {
		return 0, err
	}
	if len(p) == 0 {
		return 0, nil
	}
	if d := st.readDeadline.Load(); d != 0 && time.Now().UnixNano() >= d {
		return 0, os.ErrDeadlineExceeded
	}
	ys := st.mux.Load()
	if ys == nil {
		return 0, tunnel.ErrAborted
	}
	n, err := ys.Read(p)
	if n > 0 {
		if grant := st.s.table.consume(st, n, st.s.heard.Load()); grant > 0 {
			st.s.out.control(header{kind: typeWindow, id: st.id, length: grant})
		}
		return n, nil
	}
	if err == nil {
		return 0, nil
	}
	if ended := st.ended(); ended != nil {
		return 0, ended
	}
	switch {
	case errors.Is(err, io.EOF) && st.s.table.ended(st):
		return 0, io.EOF
	case err == yamux.ErrTimeout: //nolint:errorlint // a value, never wrapped
		return 0, os.ErrDeadlineExceeded
	}
	return 0, tunnel.ErrAborted
}

// Quiet reports, without waiting, that the stream is whole and that nothing has
// arrived on it which Read has not returned: no byte, no END, no abort.
func (st *stream) Quiet() bool {
	return st.ended() == nil && st.mux.Load() != nil && st.s.table.quiet(st)
}

// Write implements tunnel.Stream. Bytes of p may have been sent when it fails.
func (st *stream) Write(p []byte) (int, error) {
	st.writing.Lock()
	defer st.writing.Unlock()
	total := 0
	for total < len(p) {
		n, err := st.s.out.send(st, p[total:])
		total += n
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// CloseWrite implements tunnel.Stream.
func (st *stream) CloseWrite() error {
	if err := st.ended(); err != nil {
		return err
	}
	// A Write under way would be cut by the FIN; it fails instead.
	st.s.out.finish(st, net.ErrClosed)
	st.writing.Lock()
	defer st.writing.Unlock()
	ys := st.mux.Load()
	if ys == nil {
		return tunnel.ErrAborted
	}
	if err := ys.Close(); err != nil || st.s.mux.IsClosed() {
		return tunnel.ErrAborted
	}
	st.s.table.finished(st)
	return nil
}

// Abort implements tunnel.Stream.
func (st *stream) Abort() { st.leave(endAbort) }

// Close implements tunnel.Stream.
func (st *stream) Close() error {
	st.leave(endClosed)
	return nil
}

// leave gives the stream up on this side, and tells the peer unless both
// directions ended cleanly.
func (st *stream) leave(how int32) {
	tell := st.s.table.abandon(st)
	st.end(how)
	if tell {
		st.s.out.control(header{kind: typeWindow, flags: flagRST, id: st.id})
	}
}

// end wakes whoever reads or writes, and makes every further use fail. It comes
// after the table's change and never blocks.
func (st *stream) end(how int32) {
	st.ending.CompareAndSwap(endNone, how)
	if how == endClosed {
		st.ending.Store(endClosed)
	}
	st.s.out.finish(st, st.ended())
	if ys := st.mux.Swap(nil); ys != nil {
		_ = ys.SetReadDeadline(past)
	}
}

// sessionEnded ends a stream with its session. What came whole may still be read.
func (st *stream) sessionEnded() {
	if st.s.table.whole(st) {
		st.s.out.finish(st, tunnel.ErrAborted)
		return
	}
	st.end(endReset)
}

// ended returns the error of a stream that is over on this side, else nil.
func (st *stream) ended() error {
	switch st.ending.Load() {
	case endNone:
		return nil
	case endClosed:
		return net.ErrClosed
	}
	return tunnel.ErrAborted
}

// SetDeadline implements net.Conn.
func (st *stream) SetDeadline(t time.Time) error {
	return errors.Join(st.SetReadDeadline(t), st.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn.
func (st *stream) SetReadDeadline(t time.Time) error {
	var nanos int64
	if !t.IsZero() {
		nanos = max(1, t.UnixNano())
	}
	st.readDeadline.Store(nanos)
	if ys := st.mux.Load(); ys != nil {
		_ = ys.SetReadDeadline(t)
		if st.ending.Load() != endNone {
			_ = ys.SetReadDeadline(past) // it ended meanwhile: stay awake
		}
	}
	return nil
}

// SetWriteDeadline implements net.Conn.
func (st *stream) SetWriteDeadline(t time.Time) error {
	st.s.out.setDeadline(st, t)
	return nil
}
