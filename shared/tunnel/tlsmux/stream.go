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

	// mux is yamux's half: the stream's state. It is nil before the stream is handed
	// out, and after an abort.
	mux          atomic.Pointer[yamux.Stream]
	ending       atomic.Int32
	readDeadline atomic.Int64 // Unix nanoseconds, 0 for none

	writing sync.Mutex // one Write or CloseWrite at a time
	send    sendHalf   // guarded by outbox.mu
	recv    recvHalf
	lent    *chunk // the reader's alone
	life    life   // guarded by table.mu
	control bool   // guarded by table.mu
}

var (
	_ tunnel.Stream = (*stream)(nil)
	_ tunnel.Direct = (*stream)(nil)
)

func newStream(s *session, id uint32) *stream {
	return &stream{
		s:    s,
		id:   id,
		send: sendHalf{window: initialWindow, wake: make(chan struct{}, 1)},
		recv: recvHalf{
			mem: &s.table.mem, wake: make(chan struct{}, 1),
			granted: initialWindow, window: initialWindow, lastRead: s.heard.Load(),
		},
	}
}

func (st *stream) ID() uint64           { return uint64(st.id) }
func (st *stream) LocalAddr() net.Addr  { return st.s.LocalAddr() }
func (st *stream) RemoteAddr() net.Addr { return st.s.RemoteAddr() }

// Read implements tunnel.Stream.
func (st *stream) Read(p []byte) (int, error) {
	for {
		if err := st.readable(); err != nil {
			return 0, err
		}
		if len(p) == 0 {
			return 0, nil
		}
		n, grant, why := st.recv.read(p, st.s.heard.Load())
		st.grant(grant)
		if n > 0 {
			return n, nil
		}
		if err := st.await(why); err != nil {
			return 0, err
		}
	}
}

// Lend waits as Read does and then lends the bytes that Read would return first: they
// are good until GiveBack, which must come before the next Lend, and after Close too.
// It lends nil when there are so few that Read, which does not wait then, costs less.
// Its errors are those of Read, and as with Read one goroutine may call it at a time.
func (st *stream) Lend() ([]byte, error) {
	for {
		if err := st.readable(); err != nil {
			return nil, err
		}
		c, grant, why := st.recv.lend(st.s.heard.Load())
		st.grant(grant)
		if c != nil {
			st.lent = c
			return c.buf[c.r:c.w], nil
		}
		if why == foundSome {
			return nil, nil
		}
		if err := st.await(why); err != nil {
			return nil, err
		}
	}
}

// GiveBack ends the loan of the last Lend, if there is one.
func (st *stream) GiveBack() {
	if c := st.lent; c != nil {
		st.lent = nil
		st.recv.takeBack(c)
	}
}

// Ready reports whether Read would return at once.
func (st *stream) Ready() bool { return st.ended() != nil || st.recv.ready() }

// readable returns why nothing can be read, whatever has come.
func (st *stream) readable() error {
	if err := st.ended(); err != nil {
		return err
	}
	if d := st.readDeadline.Load(); d != 0 && time.Now().UnixNano() >= d {
		return os.ErrDeadlineExceeded
	}
	return nil
}

// grant lets the peer send n bytes more.
func (st *stream) grant(n uint32) {
	if n > 0 {
		st.s.out.control(header{kind: typeWindow, id: st.id, length: n})
	}
}

// await waits until it is worth to look for bytes again, or returns why there will be
// none.
func (st *stream) await(why found) error {
	switch why {
	case foundEnd:
		st.s.table.ended(st)
		return io.EOF
	case foundGone:
		if err := st.ended(); err != nil {
			return err
		}
		return tunnel.ErrAborted
	}
	st.recv.wait(st.readDeadline.Load())
	return nil
}

// Quiet reports, without waiting, that the stream is whole and that nothing has
// arrived on it which Read has not returned: no byte, no END, no abort.
func (st *stream) Quiet() bool {
	return st.ended() == nil && st.recv.quiet()
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

// Offer implements tunnel.Sink.
func (st *stream) Offer(p []byte) bool {
	if !st.writing.TryLock() {
		return false
	}
	defer st.writing.Unlock()
	return st.s.out.offer(st, p)
}

// Flush implements tunnel.Sink.
func (st *stream) Flush() { st.s.out.flushOffers() }

// PassTo implements tunnel.Direct.
func (st *stream) PassTo(sink tunnel.Sink) { st.recv.passTo(sink) }

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
	st.mux.Store(nil)
	st.recv.drop()
}

// sessionEnded ends a stream with its session. What came whole may still be read, if
// the stream was handed out.
func (st *stream) sessionEnded() {
	if st.recv.whole() && st.mux.Load() != nil {
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
	st.recv.notify()
	return nil
}

// SetWriteDeadline implements net.Conn.
func (st *stream) SetWriteDeadline(t time.Time) error {
	st.s.out.setDeadline(st, t)
	return nil
}
