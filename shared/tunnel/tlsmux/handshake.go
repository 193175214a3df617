package tlsmux

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"time"

	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
)

// linger is how long an edge waits for a rejected agent to hang up, so that the
// agent reads the Reject and not a reset.
const linger = time.Second

// Dial makes a session on conn, a connection to an edge: TLS 1.3 with cfg, then
// the hello. It owns conn and closes it on failure. A refusal is a
// *protocol.Reject error. ctx bounds the handshake, not the session; without a
// deadline of its own the answer to the hello may take protocol.HelloTimeout twice.
func Dial(ctx context.Context, conn net.Conn, cfg *tls.Config, hello *protocol.Hello, opt Options) (tunnel.Session, *protocol.Welcome, error) {
	opt = opt.withDefaults(false)
	cfg = cfg.Clone()
	cfg.NextProtos = []string{opt.ALPN}
	cfg.MinVersion = tls.VersionTLS13
	under := &gathering{Conn: conn}
	under.W = conn
	tc := tls.Client(under, cfg)
	s, welcome, err := dial(ctx, tc, hello, opt)
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	return s, welcome, nil
}

func dial(ctx context.Context, tc *tls.Conn, hello *protocol.Hello, opt Options) (*session, *protocol.Welcome, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*protocol.HelloTimeout)
	defer cancel()
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, nil, fmt.Errorf("tls handshake: %w", err)
	}
	if got := tc.ConnectionState().NegotiatedProtocol; got != opt.ALPN {
		return nil, nil, fmt.Errorf("tls handshake: peer does not speak %s", opt.ALPN)
	}
	release := interruptible(ctx, tc)
	defer release()
	welcome, err := tunnel.Greet(tc, hello)
	if err != nil {
		return nil, nil, because(ctx, err)
	}
	if !release() {
		return nil, nil, ctx.Err()
	}
	tune(tc.NetConn(), opt.Congestion)
	if hello.Tunnel != "" {
		opt = opt.joining()
	}
	s, err := newSession(tc, true, opt)
	if err != nil {
		return nil, nil, err
	}
	control, err := s.Open(ctx)
	if err != nil {
		s.Close()
		return nil, nil, fmt.Errorf("open control stream: %w", err)
	}
	s.setControl(control.(*stream))
	return s, welcome, nil
}

// Accept makes a session on conn, whose TLS handshake negotiated Options.ALPN.
// It reads at most protocol.MaxHello bytes within protocol.HelloTimeout, asks
// admit, and sets up multiplexer state only if that agrees. It owns conn and
// closes it on failure; the error is admit's if that refused.
func Accept(ctx context.Context, conn *tls.Conn, admit tunnel.Admit, opt Options) (tunnel.Session, *protocol.Hello, *protocol.Welcome, error) {
	s, hello, welcome, err := accept(ctx, conn, admit, opt.withDefaults(true))
	if err != nil {
		conn.NetConn().Close()
		return nil, hello, nil, err
	}
	return s, hello, welcome, nil
}

func accept(ctx context.Context, conn *tls.Conn, admit tunnel.Admit, opt Options) (*session, *protocol.Hello, *protocol.Welcome, error) {
	ctx, cancel := context.WithTimeout(ctx, protocol.HelloTimeout)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, nil, nil, fmt.Errorf("tls handshake: %w", err)
	}
	if state := conn.ConnectionState(); state.Version < tls.VersionTLS13 || state.NegotiatedProtocol != opt.ALPN {
		return nil, nil, nil, fmt.Errorf("peer needs TLS 1.3 and %s", opt.ALPN)
	}
	release := interruptible(ctx, conn)
	defer release()

	hello, welcome, answered, err := tunnel.Answer(ctx, conn, admit, conn.RemoteAddr())
	if err != nil {
		if answered && release() {
			waitForHangUp(conn)
		}
		return nil, hello, nil, because(ctx, err)
	}
	if !release() {
		return nil, hello, nil, ctx.Err()
	}
	tune(conn.NetConn(), opt.Congestion)
	if hello.Tunnel != "" {
		opt = opt.joining()
	}
	s, err := newSession(conn, false, opt)
	if err != nil {
		return nil, hello, nil, err
	}
	control, err := s.Accept(ctx)
	if err != nil {
		s.Close()
		return nil, hello, nil, fmt.Errorf("accept control stream: %w", err)
	}
	s.setControl(control.(*stream))
	return s, hello, welcome, nil
}

// waitForHangUp gives a rejected agent a moment to read its answer: closing with
// unread bytes would reset the connection and may take the answer with it.
func waitForHangUp(conn *tls.Conn) {
	_ = conn.SetDeadline(time.Now().Add(linger))
	_ = conn.CloseWrite()
	if half, ok := conn.NetConn().(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
	_, _ = io.CopyN(io.Discard, conn.NetConn(), protocol.MaxHello)
}

// interruptible makes conn's reads and writes fail when ctx ends. release undoes
// it; it reports whether conn is still good, and may be called again.
func interruptible(ctx context.Context, conn net.Conn) (release func() bool) {
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(past) })
	released := false
	return func() bool {
		if released {
			return true
		}
		if !stop() {
			return false
		}
		released = true
		_ = conn.SetDeadline(time.Time{})
		return true
	}
}

// because prefers the context's error, of which err is then a consequence.
func because(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	return err
}
