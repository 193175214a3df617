package quicmux

import (
	"context"
	"crypto/tls"
	"fmt"
	"time"

	"github.com/quic-go/quic-go"

	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
)

// linger is how long an edge waits for a rejected agent to hang up, so that the
// Reject arrives.
const linger = time.Second

// Dial makes a session with the edge at addr (host:port). A refusal is a
// *protocol.Reject error. ctx bounds the handshake, not the session; without a
// deadline of its own it may take protocol.HelloTimeout twice.
func Dial(ctx context.Context, addr string, cfg *tls.Config, hello *protocol.Hello, opt Options) (tunnel.Session, *protocol.Welcome, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*protocol.HelloTimeout)
	defer cancel()
	opt = opt.withDefaults()
	cfg = cfg.Clone()
	cfg.NextProtos = []string{protocol.ALPN}
	conn, err := quic.DialAddr(ctx, addr, cfg, config(opt.MaxIncoming))
	if err != nil {
		return nil, nil, fmt.Errorf("quic handshake: %w", err)
	}
	control, welcome, err := greet(ctx, conn, hello)
	if err != nil {
		_ = conn.CloseWithError(codeClosed, "")
		return nil, nil, because(ctx, err)
	}
	return newSession(conn, control, opt), welcome, nil
}

func greet(ctx context.Context, conn *quic.Conn, hello *protocol.Hello) (*quic.Stream, *protocol.Welcome, error) {
	stream, err := conn.OpenStreamSync(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("open control stream: %w", err)
	}
	release := interruptible(ctx, stream)
	welcome, err := tunnel.Greet(stream, hello)
	if err != nil {
		return nil, nil, err
	}
	if !release() {
		return nil, nil, ctx.Err()
	}
	return stream, welcome, nil
}

// Accept makes a session on conn, whose handshake negotiated protocol.ALPN under
// ServerConfig. It reads at most protocol.MaxHello bytes within
// protocol.HelloTimeout and asks admit. It owns conn and closes it on failure;
// the error is admit's if that refused.
func Accept(ctx context.Context, conn *quic.Conn, admit tunnel.Admit, opt Options) (tunnel.Session, *protocol.Hello, *protocol.Welcome, error) {
	ctx, cancel := context.WithTimeout(ctx, protocol.HelloTimeout)
	defer cancel()
	control, hello, welcome, answered, err := accept(ctx, conn, admit)
	if err != nil {
		if answered {
			select {
			case <-conn.Context().Done():
			case <-time.After(linger):
			}
		}
		_ = conn.CloseWithError(codeRejected, "")
		return nil, hello, nil, because(ctx, err)
	}
	return newSession(conn, control, opt.withDefaults()), hello, welcome, nil
}

func accept(ctx context.Context, conn *quic.Conn, admit tunnel.Admit) (stream *quic.Stream, hello *protocol.Hello, welcome *protocol.Welcome, answered bool, err error) {
	select {
	case <-conn.HandshakeComplete():
	case <-conn.Context().Done():
		return nil, nil, nil, false, context.Cause(conn.Context())
	case <-ctx.Done():
		return nil, nil, nil, false, ctx.Err()
	}
	if got := conn.ConnectionState().TLS.NegotiatedProtocol; got != protocol.ALPN {
		return nil, nil, nil, false, fmt.Errorf("agent needs %s", protocol.ALPN)
	}
	stream, err = conn.AcceptStream(ctx)
	if err != nil {
		return nil, nil, nil, false, fmt.Errorf("read hello: %w", err)
	}
	release := interruptible(ctx, stream)
	hello, welcome, answered, err = tunnel.Answer(ctx, stream, admit, conn.RemoteAddr())
	switch {
	case answered:
		_ = stream.Close() // sends the FIN behind the Reject
	case err == nil && !release():
		err = ctx.Err()
	}
	return stream, hello, welcome, answered, err
}

// interruptible makes a stream's reads and writes fail when ctx ends. release
// undoes it and reports whether the stream is still good.
func interruptible(ctx context.Context, stream *quic.Stream) (release func() bool) {
	if deadline, ok := ctx.Deadline(); ok {
		_ = stream.SetDeadline(deadline)
	}
	stop := context.AfterFunc(ctx, func() { _ = stream.SetDeadline(time.Unix(1, 0)) })
	return func() bool {
		if !stop() {
			return false
		}
		_ = stream.SetDeadline(time.Time{})
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
