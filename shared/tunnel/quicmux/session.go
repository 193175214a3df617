package quicmux

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"

	"github.com/quic-go/quic-go"

	"wormhole/shared/tunnel"
)

// session implements tunnel.Session.
type session struct {
	conn    *quic.Conn
	opt     Options
	control *stream
	local   atomic.Int64 // open streams that were opened here
	remote  atomic.Int64 // open streams that the peer opened
	closed  atomic.Bool  // Close was called
}

var _ tunnel.Session = (*session)(nil)

func newSession(conn *quic.Conn, control *quic.Stream, opt Options) *session {
	s := &session{conn: conn, opt: opt}
	s.control = newStream(s, control, nil)
	return s
}

// Open implements tunnel.Session.
func (s *session) Open(ctx context.Context) (tunnel.Stream, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if s.local.Add(1) > int64(s.opt.MaxStreams) {
		s.local.Add(-1)
		return nil, tunnel.ErrTooManyStreams
	}
	qs, err := s.conn.OpenStreamSync(ctx)
	if err != nil {
		s.local.Add(-1)
		if s.conn.Context().Err() == nil && ctx.Err() != nil {
			return nil, fmt.Errorf("%w: %w", tunnel.ErrTooManyStreams, ctx.Err())
		}
		return nil, s.ended()
	}
	return newStream(s, qs, &s.local), nil
}

// Accept implements tunnel.Session.
func (s *session) Accept(ctx context.Context) (tunnel.Stream, error) {
	qs, err := s.conn.AcceptStream(ctx)
	if err != nil {
		if s.conn.Context().Err() == nil && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, s.ended()
	}
	s.remote.Add(1)
	return newStream(s, qs, &s.remote), nil
}

// ended is ErrSessionClosed with the reason, if there is another.
func (s *session) ended() error {
	if reason := s.Err(); reason != nil && !errors.Is(reason, tunnel.ErrSessionClosed) {
		return fmt.Errorf("%w: %w", tunnel.ErrSessionClosed, reason)
	}
	return tunnel.ErrSessionClosed
}

// Control implements tunnel.Session.
func (s *session) Control() tunnel.Stream { return s.control }

// Close implements tunnel.Session.
func (s *session) Close() error {
	s.closed.Store(s.closed.Load() || s.conn.Context().Err() == nil)
	err := s.conn.CloseWithError(codeClosed, "")
	<-s.conn.Context().Done()
	return err
}

// Done implements tunnel.Session.
func (s *session) Done() <-chan struct{} { return s.conn.Context().Done() }

// Err implements tunnel.Session.
func (s *session) Err() error {
	switch {
	case s.conn.Context().Err() == nil:
		return nil
	case s.closed.Load():
		return tunnel.ErrSessionClosed
	}
	return context.Cause(s.conn.Context())
}

func (s *session) Carrier() tunnel.Carrier { return tunnel.QUIC }
func (s *session) LocalAddr() net.Addr     { return s.conn.LocalAddr() }
func (s *session) RemoteAddr() net.Addr    { return s.conn.RemoteAddr() }

// Streams implements tunnel.Session.
func (s *session) Streams() int { return int(s.local.Load() + s.remote.Load()) }
