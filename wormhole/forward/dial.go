package forward

import (
	"context"
	"crypto/tls"
	"errors"
	"io/fs"
	"net"
	"syscall"

	"wormhole/shared/protocol"
	"wormhole/shared/socket"
)

// appConn is a connection to the app.
type appConn interface {
	net.Conn
	CloseWrite() error
}

// dial connects to the app. With raw, bytes go as they are although the endpoint
// says https: the client's own TLS is inside.
func (f *Forwarder) dial(ctx context.Context, raw bool) (appConn, error) {
	e := f.endpoint.Load()
	if e == nil {
		return nil, errNoEndpoint
	}
	conn, err := f.dialFirst(ctx, e)
	if err != nil {
		return nil, err
	}
	if !e.tls || raw {
		return conn.(appConn), nil // one of TCP and *net.UnixConn both are
	}
	secure := tls.Client(conn, &tls.Config{
		ServerName:         e.host,
		InsecureSkipVerify: e.insecure, //nolint:gosec // asked for by the word "insecure" in the endpoint
		NextProtos:         []string{"http/1.1"},
		MinVersion:         tls.VersionTLS12,
	})
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return secure, nil
}

// dialFirst tries the endpoint's addresses in turn, beginning with the one that
// answered last.
func (f *Forwarder) dialFirst(ctx context.Context, e *Endpoint) (net.Conn, error) {
	var firstErr error
	start := int(f.answered.Load())
	for i := range e.addrs {
		k := (start + i) % len(e.addrs)
		conn, err := f.dialer.DialContext(ctx, e.network, e.addrs[k])
		if err == nil {
			if k != start {
				f.answered.Store(int32(k))
			}
			return socket.Direct(conn), nil
		}
		if firstErr == nil {
			firstErr = err
		}
	}
	return nil, firstErr
}

// refusal is the answer to the edge for a dial that failed.
func refusal(err error) protocol.Answer {
	switch {
	case errors.Is(err, errNoEndpoint):
		return protocol.AnswerNotReady
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return protocol.AnswerFull
	}
	return protocol.AnswerAppDown
}

// nobodyListens reports an error that leaves no doubt: the app's machine answers,
// and no socket is there.
func nobodyListens(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist)
}

// reset closes conn so that the app sees a reset rather than a tidy end.
func reset(conn appConn) {
	resetOnClose(conn, true)
	// Without a close_notify, which would be a tidy end.
	_ = below(conn).Close()
}

// below is what is below TLS.
func below(conn appConn) net.Conn {
	if t, ok := conn.(*tls.Conn); ok {
		return t.NetConn()
	}
	return conn
}

// resetOnClose says whether whatever closes the socket resets it, the end of this
// process included, or ends it properly.
func resetOnClose(conn appConn, reset bool) {
	tcp := socket.TCP(below(conn))
	switch {
	case tcp == nil:
	case reset:
		_ = tcp.SetLinger(0)
	default:
		_ = tcp.SetLinger(-1)
	}
}
