package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"wormhole/shared/protocol"
	"wormhole/shared/socket"
	"wormhole/shared/tunnel"
	"wormhole/shared/tunnel/quicmux"
	"wormhole/shared/tunnel/tlsmux"
)

// carriers says how to try one address.
type carriers struct {
	tls, quic bool
	// head is how long TLS is tried alone if both may be tried.
	head time.Duration
	// insist tries QUIC also if TLS fails within head.
	insist bool
}

// maxIncoming is how many streams an edge may hold open in one tunnel before it is
// taken for broken. It is far above what an edge opens; the Forwarder refuses what
// is too much for the app.
const maxIncoming = 1 << 16

// dialled is a session that an edge has welcomed.
type dialled struct {
	session tunnel.Session
	hello   *protocol.Hello
	welcome *protocol.Welcome
	network network
	target  target // where it leads
}

// dial opens a session at t. A refusal is a *protocol.Reject error.
func (a *Agent) dial(ctx context.Context, t target, c carriers) (dialled, error) {
	proxy, err := a.cfg.Proxy(t.addr)
	if err != nil {
		return dialled{}, fmt.Errorf("proxy for %s: %w", t.addr, err)
	}
	switch {
	case proxy != nil && !c.tls:
		return dialled{}, errors.New("QUIC cannot pass an HTTP proxy; use transport tls or auto")
	case proxy != nil || !c.quic:
		return a.dialTLS(ctx, t, a.hello())
	case !c.tls:
		return a.dialQUIC(ctx, t, a.hello())
	}
	return a.dialEither(ctx, t, c)
}

// dialEither tries TLS, and QUIC beside it if TLS takes long or fails. The first
// to succeed wins; the other is called off and waited for.
func (a *Agent) dialEither(ctx context.Context, t target, c carriers) (dialled, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		d    dialled
		err  error
		quic bool
	}
	results := make(chan result, 2)
	running := 1
	go func() { // ends with ctx at the latest, and is waited for below
		d, err := a.dialTLS(ctx, t, a.hello())
		results <- result{d: d, err: err}
	}()
	quicStarted := false
	startQUIC := func() {
		quicStarted = true
		running++
		go func() { // as above
			// Both may succeed, and one is closed at once: no request should be on it.
			hello := a.hello()
			hello.Ready = false
			d, err := a.dialQUIC(ctx, t, hello)
			results <- result{d, err, true}
		}()
	}
	head := time.NewTimer(c.head)
	defer head.Stop()

	var won *dialled
	var errs []error
	for running > 0 {
		select {
		case <-head.C:
			if !quicStarted && won == nil && len(errs) == 0 {
				startQUIC()
			}
		case r := <-results:
			running--
			var reject *protocol.Reject
			switch {
			case r.err == nil && won == nil:
				won = &r.d
				cancel()
			case r.err == nil:
				_ = r.d.session.Close()
			case won == nil && errors.As(r.err, &reject):
				errs = []error{r.err} // the edge has spoken; another carrier changes nothing
				cancel()
			default:
				errs = append(errs, r.err)
				if !r.quic && !quicStarted && c.insist && won == nil && ctx.Err() == nil {
					startQUIC()
				}
			}
		}
	}
	if won != nil {
		return *won, nil
	}
	return dialled{}, errs[0]
}

func (a *Agent) dialTLS(ctx context.Context, t target, hello *protocol.Hello) (dialled, error) {
	conn, err := a.connect(ctx, t.addr)
	if err != nil {
		return dialled{}, err
	}
	session, welcome, err := tlsmux.Dial(ctx, conn, a.tlsConfig(t.server), hello, tlsmux.Options{
		MaxIncoming: maxIncoming, Logger: a.logger, Congestion: a.cfg.Congestion,
	})
	if err != nil {
		_ = conn.Close()
		return dialled{}, err
	}
	return dialled{session, hello, welcome, network{socket.TCP(conn)}, t}, nil
}

func (a *Agent) dialQUIC(ctx context.Context, t target, hello *protocol.Hello) (dialled, error) {
	session, welcome, err := quicmux.Dial(ctx, t.addr, a.tlsConfig(t.server), hello, quicmux.Options{})
	if err != nil {
		return dialled{}, err
	}
	return dialled{session: session, hello: hello, welcome: welcome}, nil
}

func (a *Agent) tlsConfig(server string) *tls.Config {
	return &tls.Config{
		ServerName:         server,
		RootCAs:            a.cfg.RootCAs,
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{protocol.ALPN},
		ClientSessionCache: a.sessions,
	}
}

// connect opens the TCP connection to addr, through the proxy if there is one.
func (a *Agent) connect(ctx context.Context, addr string) (net.Conn, error) {
	proxy, err := a.cfg.Proxy(addr)
	if err != nil {
		return nil, fmt.Errorf("proxy for %s: %w", addr, err)
	}
	if proxy != nil {
		return connectThrough(ctx, proxy, addr)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return socket.Direct(conn), nil
}
