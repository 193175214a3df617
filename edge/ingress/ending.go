package ingress

import (
	"context"
	"net"
	"net/http"

	"wormhole/shared/socket"
)

// connKey is the key of a request's connection in its context.
type connKey struct{}

// withConn is http.Server's ConnContext: it notes the accepted connection under c.
func withConn(ctx context.Context, c net.Conn) context.Context {
	if h1, ok := c.(*h1Conn); ok {
		ctx = h1.withLeave(ctx)
	}
	if accepted := acceptedUnder(c); accepted != nil {
		return context.WithValue(ctx, connKey{}, accepted)
	}
	return ctx
}

// Taken returns how many bytes of all that was written to the connection of r its
// other end has acknowledged, and whether the kernel holds more for it, sent or not.
// Several requests of HTTP/2 may share the connection. (0, false) is unknown: r came
// over QUIC, the connection is closed, or the kernel does not tell.
func Taken(r *http.Request) (bytes uint64, owed bool) {
	c, ok := r.Context().Value(connKey{}).(*conn)
	if !ok {
		return 0, false
	}
	return acknowledged(c.Conn)
}

// noteIdle is http.Server's ConnState: it notes whether a connection is kept for a
// request that has not begun.
func noteIdle(c net.Conn, state http.ConnState) {
	if accepted := acceptedUnder(c); accepted != nil {
		accepted.idle.Store(state == http.StateIdle)
	}
}

// acceptedUnder is the connection that a door accepted, below TLS if there is any.
func acceptedUnder(c net.Conn) *conn {
	for {
		if accepted, ok := c.(*conn); ok {
			return accepted
		}
		inner, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return nil
		}
		c = inner.NetConn()
	}
}

// honestEnd makes a half answer look like one to clients of HTTP/1.0. They may take
// the end of the connection for the end of the body (RFC 9112, section 6.3), and
// neither a TLS close_notify nor a FIN may say so before the body is whole. So the
// connection is one that resets when it is closed, also by the kernel when this
// process dies, until the handler has returned in good order.
func honestEnd(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, ok := r.Context().Value(connKey{}).(*conn)
		if !ok || r.ProtoAtLeast(1, 1) {
			h.ServeHTTP(w, r)
			return
		}
		tcp := socket.TCP(c.Conn)
		if tcp == nil {
			h.ServeHTTP(w, r)
			return
		}
		_ = tcp.SetLinger(0)
		whole := false
		defer func() {
			if whole {
				_ = tcp.SetLinger(-1)
				return
			}
			_ = tcp.Close() // before TLS says goodbye
		}()
		h.ServeHTTP(w, r)
		whole = true
	})
}
