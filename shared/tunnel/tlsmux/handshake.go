package tlsmux

import (
	"context"
	"crypto/tls"
	"errors"
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
	cfg = cfg.Clone()
	cfg.NextProtos = []string{protocol.ALPN}
	cfg.MinVersion = tls.VersionTLS13
	tc := tls.Client(conn, cfg)
	s, welcome, err := dial(ctx, tc, hello, opt.withDefaults(false))
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
	if got := tc.ConnectionState().NegotiatedProtocol; got != protocol.ALPN {
		return nil, nil, fmt.Errorf("tls handshake: peer does not speak %s", protocol.ALPN)
	}
	release := interruptible(ctx, tc)
	defer release()
	if err := protocol.WriteMessage(tc, protocol.TypeHello, hello); err != nil {
		return nil, nil, because(ctx, fmt.Errorf("write hello: %w", err))
	}
	welcome, err := readAnswer(tc)
	if err != nil {
		return nil, nil, because(ctx, err)
	}
	if !release() {
		return nil, nil, ctx.Err()
	}
	tune(tc.NetConn())
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

// readAnswer reads Welcome or Reject.
func readAnswer(r io.Reader) (*protocol.Welcome, error) {
	t, payload, err := protocol.ReadMessage(r, protocol.MaxMessage)
	if err != nil {
		return nil, fmt.Errorf("read answer to hello: %w", err)
	}
	switch t {
	case protocol.TypeWelcome:
		welcome := new(protocol.Welcome)
		if err := protocol.Decode(payload, welcome); err != nil {
			return nil, err
		}
		return welcome, nil
	case protocol.TypeReject:
		reject := new(protocol.Reject)
		if err := protocol.Decode(payload, reject); err != nil {
			return nil, err
		}
		return nil, reject
	}
	return nil, fmt.Errorf("answer to hello is a message of type %d", t)
}

// Accept makes a session on conn, whose TLS handshake negotiated protocol.ALPN.
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
	if state := conn.ConnectionState(); state.Version < tls.VersionTLS13 || state.NegotiatedProtocol != protocol.ALPN {
		return nil, nil, nil, fmt.Errorf("agent needs TLS 1.3 and %s", protocol.ALPN)
	}
	release := interruptible(ctx, conn)
	defer release()

	hello, reject, err := readHello(conn)
	var welcome *protocol.Welcome
	if err == nil {
		welcome, err = admit(ctx, hello, conn.RemoteAddr())
		if err == nil && welcome == nil {
			err = errors.New("admission gave no answer")
		}
		if err != nil && !errors.As(err, &reject) {
			reject = &protocol.Reject{Code: protocol.CodeInternal, Reason: "the edge could not decide; try again"}
		}
	}
	if err != nil {
		if reject != nil && release() {
			sendReject(conn, reject)
		}
		return nil, hello, nil, because(ctx, err)
	}
	if err := protocol.WriteMessage(conn, protocol.TypeWelcome, welcome); err != nil {
		return nil, hello, nil, because(ctx, fmt.Errorf("write welcome: %w", err))
	}
	if !release() {
		return nil, hello, nil, ctx.Err()
	}
	tune(conn.NetConn())
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

// readHello reads the hello. reject is what to answer if that failed, nil if
// there is nobody to answer.
func readHello(r io.Reader) (hello *protocol.Hello, reject *protocol.Reject, err error) {
	// 4 bytes of MaxHello are the frame's header.
	t, payload, err := protocol.ReadMessage(r, protocol.MaxHello-4)
	switch {
	case errors.Is(err, protocol.ErrTooLarge):
		return nil, &protocol.Reject{Code: protocol.CodeBadHello, Reason: "hello is too large"}, fmt.Errorf("read hello: %w", err)
	case err != nil:
		return nil, nil, fmt.Errorf("read hello: %w", err)
	case t != protocol.TypeHello:
		reject = &protocol.Reject{Code: protocol.CodeBadHello, Reason: "first message is not a hello"}
		return nil, reject, reject
	}
	hello = new(protocol.Hello)
	if err := protocol.Decode(payload, hello); err != nil {
		return nil, &protocol.Reject{Code: protocol.CodeBadHello, Reason: "hello is not understood"}, fmt.Errorf("read hello: %w", err)
	}
	return hello, nil, nil
}

// sendReject writes the answer and waits a moment for the agent to hang up:
// closing with unread bytes would reset the connection and may take the answer
// with it.
func sendReject(conn *tls.Conn, reject *protocol.Reject) {
	_ = conn.SetDeadline(time.Now().Add(linger))
	if protocol.WriteMessage(conn, protocol.TypeReject, reject) != nil {
		return
	}
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
