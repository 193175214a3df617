package ingress

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"golang.org/x/time/rate"

	"wormhole/shared/protocol"
)

// errTooManyQUIC refuses a QUIC connection before its handshake.
var errTooManyQUIC = errors.New("too many QUIC connections")

// quicDoor serves agents and HTTP/3 on one UDP socket.
type quicDoor struct {
	in        *Ingress
	transport *quic.Transport
	listener  *quic.Listener
	altSvc    []string     // value of the header that tells of it
	open      atomic.Int64 // connections, handshakes among them

	mu       sync.Mutex // guards visitors
	visitors map[*h3Conn]struct{}
}

// h3Conn is one visitor's connection. Each has a server of its own, so that each
// can be told to go, and be closed when the last of its requests has ended; one
// server for all would wait for clients that stay connected without a request.
type h3Conn struct {
	conn   *quic.Conn
	server *http3.Server
	active atomic.Int64 // requests
}

// quicConfig returns the settings of public connections. Agents ask for shorter
// timeouts themselves; the lesser one counts.
func quicConfig() *quic.Config {
	return &quic.Config{
		HandshakeIdleTimeout:           5 * time.Second,
		MaxIdleTimeout:                 30 * time.Second,
		InitialStreamReceiveWindow:     256 << 10,
		MaxStreamReceiveWindow:         4 << 20,
		InitialConnectionReceiveWindow: 512 << 10,
		MaxConnectionReceiveWindow:     8 << 20,
		MaxIncomingStreams:             100,
		MaxIncomingUniStreams:          8, // HTTP/3 needs three
		// The least that a path must carry; discovery finds what it can.
		InitialPacketSize: 1200,
		// Early data can be replayed by whoever records it.
		Allow0RTT: false,
	}
}

// serveQUIC accepts until the door is closed, once the socket is ours.
func (in *Ingress) serveQUIC() error {
	if in.cfg.QUICAfter != nil {
		select {
		case <-in.cfg.QUICAfter:
		case <-in.closed:
			return nil
		}
		if in.drains.Load() {
			return nil
		}
		if err := in.openQUIC(); err != nil {
			return err
		}
	}
	return in.quic.Load().run()
}

func (in *Ingress) openQUIC() error {
	d := &quicDoor{in: in, visitors: make(map[*h3Conn]struct{})}
	reset := in.cfg.StatelessResetKey
	if reset == nil {
		reset = new(quic.StatelessResetKey)
		_, _ = rand.Read(reset[:]) // never fails
	}
	// Below the limit, handshakes from addresses nobody has proven take one round trip
	// less; above it, a client proves its address first (Retry, RFC 9000 section 8.1.2).
	unproven := rate.NewLimiter(50, 100)
	d.transport = &quic.Transport{
		Conn:                in.packet,
		StatelessResetKey:   reset,
		TokenGeneratorKey:   in.cfg.TokenGeneratorKey,
		VerifySourceAddress: func(_ net.Addr) bool { return !unproven.Allow() },
		ConnContext:         d.admit,
	}
	config := in.cfg.QUIC
	if config == nil {
		config = quicConfig()
	}
	tlsConfig := in.quicTLSConfig()
	// quic-go clones the configuration for each connection; what makes the keys for
	// session tickets must happen once before (golang.org/issue/60506).
	_, _ = tlsConfig.DecryptTicket(nil, tls.ConnectionState{})
	var err error
	if d.listener, err = d.transport.Listen(tlsConfig, config); err != nil {
		return err
	}
	port := in.cfg.AltSvcPort
	if port == 0 {
		port = portOf(in.packet.LocalAddr())
	}
	d.altSvc = []string{altSvcValue(port)}
	in.quic.Store(d)
	return nil
}

// admit counts connections from their first packet to their end.
func (d *quicDoor) admit(ctx context.Context, _ *quic.ClientInfo) (context.Context, error) {
	if d.open.Add(1) > int64(d.in.cfg.MaxQUICConns) {
		d.open.Add(-1)
		return nil, errTooManyQUIC
	}
	context.AfterFunc(ctx, func() { d.open.Add(-1) })
	return ctx, nil
}

// run accepts until the listener is closed. It does nothing else, as the queue of
// the listener is short.
func (d *quicDoor) run() error {
	for {
		conn, err := d.listener.Accept(d.in.agents)
		if err != nil {
			if d.in.drains.Load() || errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		}
		d.in.work.Go(func() { d.enter(conn) })
	}
}

// enter leads a connection to whom it belongs.
func (d *quicDoor) enter(conn *quic.Conn) {
	if conn.ConnectionState().TLS.NegotiatedProtocol == protocol.ALPN {
		defer func() { _ = conn.CloseWithError(0, "") }()
		d.in.to.AgentQUIC(d.in.agents, conn)
		return
	}
	c := &h3Conn{conn: conn}
	c.server = &http3.Server{
		Handler:        http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { d.serve(c, w, r) }),
		MaxHeaderBytes: d.in.cfg.MaxHeaderBytes,
		IdleTimeout:    d.in.cfg.IdleTimeout,
	}
	d.mu.Lock()
	d.visitors[c] = struct{}{}
	d.mu.Unlock()
	if d.in.drains.Load() { // after Shutdown looked at who is there, perhaps
		d.in.work.Go(func() { d.goAway(d.in.agents, c) })
	}
	// Its error says how the client left, which concerns nobody.
	_ = c.server.ServeQUICConn(conn)
	_ = conn.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeNoError), "")
	d.mu.Lock()
	delete(d.visitors, c)
	d.mu.Unlock()
}

func (d *quicDoor) serve(c *h3Conn, w http.ResponseWriter, r *http.Request) {
	c.active.Add(1)
	defer c.active.Add(-1)
	lookForBody(w, r)
	d.in.serveVisitor(w, r)
}

func (d *quicDoor) snapshot() []*h3Conn {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := make([]*h3Conn, 0, len(d.visitors))
	for c := range d.visitors {
		list = append(list, c)
	}
	return list
}

// shutdown refuses new connections, tells visitors to go, and lets the requests in
// flight finish until ctx ends.
func (d *quicDoor) shutdown(ctx context.Context) error {
	_ = d.listener.Close()
	var (
		wg   sync.WaitGroup
		late atomic.Bool
	)
	for _, c := range d.snapshot() {
		wg.Go(func() {
			if !d.goAway(ctx, c) {
				late.Store(true)
			}
		})
	}
	wg.Wait()
	if late.Load() {
		return ctx.Err()
	}
	return nil
}

// goAway sends GOAWAY and closes the connection once it had no request for a
// while, so that requests that crossed the GOAWAY on their way are still told that
// they may be sent elsewhere (RFC 9114, section 5.2). It reports whether all
// requests had ended before ctx did.
func (d *quicDoor) goAway(ctx context.Context, c *h3Conn) bool {
	const (
		quiet = 500 * time.Millisecond
		look  = 25 * time.Millisecond
	)
	// Not waited for here: it waits for handlers, even past its context.
	d.in.work.Go(func() { _ = c.server.Shutdown(ctx) })
	defer func() { _ = c.conn.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeNoError), "") }()
	tick := time.NewTicker(look)
	defer tick.Stop()
	idle := time.Duration(0)
	for idle < quiet {
		select {
		case <-tick.C:
			idle += look
			if c.active.Load() > 0 {
				idle = 0
			}
		case <-c.conn.Context().Done():
			return ctx.Err() == nil // else it was closed because of ctx
		case <-ctx.Done():
			return c.active.Load() == 0
		}
	}
	return true
}

// close ends everything at once.
func (d *quicDoor) close() {
	_ = d.listener.Close()
	for _, c := range d.snapshot() {
		_ = c.conn.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeNoError), "")
	}
	_ = d.transport.Close()
	_ = d.in.packet.Close()
}
