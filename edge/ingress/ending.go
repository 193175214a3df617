package ingress

import (
	"context"
	"net"
	"net/http"
)

// socketKey is the key of a connection's socket in its requests' contexts.
type socketKey struct{}

// withSocket is http.Server's ConnContext: it notes the socket under c.
func withSocket(ctx context.Context, c net.Conn) context.Context {
	for {
		if tcp, ok := c.(*net.TCPConn); ok {
			return context.WithValue(ctx, socketKey{}, tcp)
		}
		inner, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return ctx
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
		socket, ok := r.Context().Value(socketKey{}).(*net.TCPConn)
		if !ok || r.ProtoAtLeast(1, 1) {
			h.ServeHTTP(w, r)
			return
		}
		_ = socket.SetLinger(0)
		whole := false
		defer func() {
			if whole {
				_ = socket.SetLinger(-1)
				return
			}
			_ = socket.Close() // before TLS says goodbye
		}()
		h.ServeHTTP(w, r)
		whole = true
	})
}
