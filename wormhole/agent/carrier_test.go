package agent

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
	"wormhole/shared/tunnel/quicmux"
	"wormhole/shared/tunnel/tlsmux"
)

// twoDoors is an edge with QUIC and TLS on one port. While blocked, TCP connects
// and stays silent, as behind a firewall that swallows.
type twoDoors struct {
	addr     string
	blocked  atomic.Bool
	sessions chan tunnel.Session
}

func startTwoDoors(t *testing.T, p pki) *twoDoors {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	udp, err := net.ListenPacket("udp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conf := &tls.Config{Certificates: []tls.Certificate{p.cert}, NextProtos: []string{protocol.ALPN}, MinVersion: tls.VersionTLS13}
	transport := &quic.Transport{Conn: udp}
	door, err := transport.Listen(conf, quicmux.ServerConfig())
	if err != nil {
		t.Fatal(err)
	}
	d := &twoDoors{addr: ln.Addr().String(), sessions: make(chan tunnel.Session, 16)}
	helper := &fakeEdge{t: t, node: "e1", sessions: make(chan *edgeSession, 16)}
	ctx, cancel := context.WithCancel(context.Background())
	admit := func(context.Context, *protocol.Hello, net.Addr) (*protocol.Welcome, error) {
		return &protocol.Welcome{Tunnel: rand.Text(), Node: "e1"}, nil
	}
	serve := func(s tunnel.Session) {
		stop := context.AfterFunc(ctx, func() { _ = s.Close() })
		defer stop()
		d.sessions <- s
		(&edgeSession{Session: s, edge: helper, said: make(chan message, 1024)}).converse()
		_ = s.Close()
	}
	helper.wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			helper.wg.Go(func() {
				if d.blocked.Load() {
					<-ctx.Done()
					_ = conn.Close()
					return
				}
				if s, _, _, err := tlsmux.Accept(ctx, tls.Server(conn, conf), admit, tlsmux.Options{}); err == nil {
					serve(s)
				}
			})
		}
	})
	helper.wg.Go(func() {
		for {
			conn, err := door.Accept(ctx)
			if err != nil {
				return
			}
			helper.wg.Go(func() {
				if s, _, _, err := quicmux.Accept(ctx, conn, admit, quicmux.Options{}); err == nil {
					serve(s)
				}
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = ln.Close()
		_ = door.Close()
		helper.wg.Wait()
		_ = transport.Close()
		_ = udp.Close()
	})
	return d
}

func (d *twoDoors) next(t *testing.T) tunnel.Session {
	t.Helper()
	select {
	case s := <-d.sessions:
		return s
	case <-time.After(patience):
		t.Fatal("no agent came")
		return nil
	}
}

func TestAutoPrefersTLS(t *testing.T) {
	p := newPKI(t)
	d := startTwoDoors(t, p)
	startAgent(t, p, Config{Edges: []string{d.addr}, Transport: Auto})
	if got := d.next(t).Carrier(); got != tunnel.TLS {
		t.Errorf("carrier %s", got)
	}
}

func TestQUICOnlyUsesQUIC(t *testing.T) {
	p := newPKI(t)
	d := startTwoDoors(t, p)
	startAgent(t, p, Config{Edges: []string{d.addr}, Transport: OnlyQUIC})
	if got := d.next(t).Carrier(); got != tunnel.QUIC {
		t.Errorf("carrier %s", got)
	}
}

func TestAutoFallsBackToQUICAndReturnsToTLS(t *testing.T) {
	p := newPKI(t)
	d := startTwoDoors(t, p)
	d.blocked.Store(true)
	fast := quick()
	fast.head, fast.upgrade = 50*time.Millisecond, 100*time.Millisecond
	fast.dial = 500 * time.Millisecond
	a, _ := startAgent(t, p, Config{Edges: []string{d.addr}, Transport: Auto, timing: fast})
	first := d.next(t)
	if first.Carrier() != tunnel.QUIC {
		t.Fatalf("carrier %s while TCP is blocked", first.Carrier())
	}
	d.blocked.Store(false)
	second := d.next(t)
	if second.Carrier() != tunnel.TLS {
		t.Fatalf("carrier %s when TCP works again", second.Carrier())
	}
	select {
	case <-first.Done():
	case <-time.After(patience):
		t.Fatal("the QUIC tunnel stays")
	}
	eventually(t, "one tunnel, over TLS", func() bool {
		s := a.Status()
		return len(s.Tunnels) == 1 && s.Tunnels[0].Carrier == tunnel.TLS
	})
}
