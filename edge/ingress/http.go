package ingress

import (
	"log" //nolint:depguard // net/http takes no other for its complaints
	"net"
	"net/http"
	"sync"
	"time"
)

// server returns an HTTP server with the limits of a public one. There are no total
// timeouts: a slow but moving transfer may take as long as it likes, and whoever
// does not move is cut by the handler's own deadlines.
func (in *Ingress) server(h http.Handler) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true) // after TLS only; never unencrypted
	return &http.Server{
		Handler:           honestEnd(h),
		ConnContext:       withConn,
		ConnState:         noteIdle,
		Protocols:         protocols,
		ReadHeaderTimeout: in.cfg.HeaderTimeout,
		IdleTimeout:       in.cfg.IdleTimeout,
		MaxHeaderBytes:    in.cfg.MaxHeaderBytes,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: 100,
			// The window of one upload. 64 KiB would hold it to 1.3 MB/s at 50 ms.
			MaxReceiveBufferPerStream:     256 << 10,
			MaxReceiveBufferPerConnection: 1 << 20,
			SendPingTimeout:               15 * time.Second,
			PingTimeout:                   15 * time.Second,
			WriteByteTimeout:              30 * time.Second,
		},
		// "OPTIONS *" is for the handler to judge, as every other request.
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     log.New(in.noise, "", 0),
	}
}

// serveVisitor adds what only the door knows to a visitor's request.
func (in *Ingress) serveVisitor(w http.ResponseWriter, r *http.Request) {
	if in.drains.Load() {
		if r.ProtoMajor < 3 {
			// The last answer on a connection of HTTP/1.1 says so. For HTTP/2, net/http
			// turns this into a GOAWAY, which a connection that was accepted while
			// Shutdown began may have missed.
			w.Header().Set("Connection", "close")
		}
	} else if d := in.quic.Load(); d != nil && r.ProtoMajor < 3 {
		w.Header()["Alt-Svc"] = d.altSvc
	}
	in.to.Visitor.ServeHTTP(gatherH1(w, r), r)
}

// handoff is a net.Listener whose connections were accepted elsewhere. net/http
// speaks HTTP/2 on those that are a *tls.Conn and negotiated it.
type handoff struct {
	addr    net.Addr
	conns   chan net.Conn
	closing sync.Once
	closed  chan struct{}
}

func newHandoff(addr net.Addr) *handoff {
	return &handoff{addr: addr, conns: make(chan net.Conn), closed: make(chan struct{})}
}

// give waits until the server takes c, or closes it if the server has ended.
func (h *handoff) give(c net.Conn) {
	select {
	case h.conns <- c:
	case <-h.closed:
		_ = c.Close()
	}
}

// Accept implements net.Listener.
func (h *handoff) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. It is idempotent.
func (h *handoff) Close() error {
	h.closing.Do(func() { close(h.closed) })
	return nil
}

// Addr implements net.Listener.
func (h *handoff) Addr() net.Addr { return h.addr }
