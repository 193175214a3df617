package quicmux

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"

	"github.com/quic-go/quic-go"

	"wormhole/shared/tunnel"
)

// How a stream ended on this side; see stream.ending.
const (
	endNone   int32 = iota
	endAbort        // aborted by either side
	endClosed       // closed here
)

// stream implements tunnel.Stream; deadlines are the QUIC stream's own.
type stream struct {
	*quic.Stream
	s      *session
	open   *atomic.Int64 // what to count down when it is released; nil on the control stream
	ending atomic.Int32

	writing sync.Mutex // one Write or CloseWrite at a time: quic-go forbids both at once

	mu       sync.Mutex // guards what follows
	finSent  bool
	endRead  bool
	released bool
}

var _ tunnel.Stream = (*stream)(nil)

func newStream(s *session, qs *quic.Stream, open *atomic.Int64) *stream {
	return &stream{Stream: qs, s: s, open: open}
}

func (st *stream) ID() uint64           { return uint64(st.StreamID()) }
func (st *stream) LocalAddr() net.Addr  { return st.s.LocalAddr() }
func (st *stream) RemoteAddr() net.Addr { return st.s.RemoteAddr() }

// Read implements tunnel.Stream.
func (st *stream) Read(p []byte) (int, error) {
	if err := st.ended(); err != nil {
		return 0, err
	}
	n, err := st.Stream.Read(p)
	if err == nil {
		return n, nil
	}
	if errors.Is(err, io.EOF) {
		st.finish(&st.endRead)
		return n, io.EOF
	}
	return n, st.failed(err)
}

// Write implements tunnel.Stream. Bytes of p may have been sent when it fails.
func (st *stream) Write(p []byte) (int, error) {
	st.writing.Lock()
	defer st.writing.Unlock()
	if err := st.ended(); err != nil {
		return 0, err
	}
	if st.ownEnd() {
		return 0, net.ErrClosed
	}
	n, err := st.Stream.Write(p)
	if err != nil {
		err = st.failed(err)
	}
	return n, err
}

// CloseWrite implements tunnel.Stream. It waits for a Write under way.
func (st *stream) CloseWrite() error {
	st.writing.Lock()
	defer st.writing.Unlock()
	if err := st.ended(); err != nil {
		return err
	}
	if err := st.Stream.Close(); err != nil || st.s.conn.Context().Err() != nil {
		st.leave(endAbort)
		return tunnel.ErrAborted
	}
	st.finish(&st.finSent)
	return nil
}

// Abort implements tunnel.Stream.
func (st *stream) Abort() { st.leave(endAbort) }

// Close implements tunnel.Stream.
func (st *stream) Close() error {
	st.leave(endClosed)
	return nil
}

// failed maps an error of QUIC's. Whatever is not a deadline ends both directions,
// because the peer's abort comes as two frames.
func (st *stream) failed(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return os.ErrDeadlineExceeded
	}
	st.leave(endAbort)
	return st.ended()
}

// leave gives the stream up on this side, and aborts it unless both directions
// ended cleanly: resetting those would take back what the peer may not have read.
func (st *stream) leave(how int32) {
	st.ending.CompareAndSwap(endNone, how)
	if how == endClosed {
		st.ending.Store(endClosed)
	}
	st.mu.Lock()
	first := !st.released
	st.release()
	st.mu.Unlock()
	if first {
		st.CancelRead(codeAbort)
		st.CancelWrite(codeAbort)
	}
}

// finish notes that one direction ended cleanly.
func (st *stream) finish(direction *bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	*direction = true
	if st.finSent && st.endRead {
		st.release()
	}
}

// release ends the counting of the stream. The caller holds mu.
func (st *stream) release() {
	if !st.released && st.open != nil {
		st.open.Add(-1)
	}
	st.released = true
}

func (st *stream) ownEnd() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.finSent
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
