package forward

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
	"wormhole/shared/tunnel/tlsmux"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must come.
const patience = 10 * time.Second

func certificate(t testing.TB) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		DNSNames:     []string{"edge.test"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, roots
}

// rig is an edge whose streams a Forwarder serves.
type rig struct {
	t       testing.TB
	forward *Forwarder
	edge    tunnel.Session
	gate    func() protocol.Answer
	ends    chan protocol.StreamEnd
}

// newRig joins an edge and f by a real tunnel.
func newRig(t testing.TB, f *Forwarder) *rig {
	t.Helper()
	cert, roots := certificate(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()

	sessions := make(chan tunnel.Session, 1)
	go func() {
		defer close(sessions)
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		secure := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{protocol.ALPN}})
		if s, _, _, err := tlsmux.Accept(ctx, secure, welcome, tlsmux.Options{}); err == nil {
			sessions <- s
		}
	}()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	agent, _, err := tlsmux.Dial(ctx, conn, &tls.Config{RootCAs: roots, ServerName: "edge.test"},
		&protocol.Hello{Token: "x", Instance: "y"}, tlsmux.Options{})
	if err != nil {
		t.Fatal(err)
	}
	edge, ok := <-sessions
	if !ok {
		t.Fatal("the edge did not accept")
	}
	r := &rig{
		t: t, forward: f, edge: edge,
		gate: func() protocol.Answer { return protocol.AnswerOK },
		ends: make(chan protocol.StreamEnd, 1024),
	}
	serveCtx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			s, err := agent.Accept(serveCtx)
			if err != nil {
				return
			}
			wg.Go(func() { f.Serve(serveCtx, s, r.gate, func(e protocol.StreamEnd) { r.ends <- e }) })
		}
	})
	t.Cleanup(func() {
		stop()
		_ = edge.Close()
		_ = agent.Close()
		wg.Wait()
	})
	return r
}

func welcome(context.Context, *protocol.Hello, net.Addr) (*protocol.Welcome, error) {
	return &protocol.Welcome{Tunnel: "t", Node: "n"}, nil
}

// open opens a stream with header h and reads the answer.
func (r *rig) open(h protocol.StreamHeader) (tunnel.Stream, protocol.Answer) {
	r.t.Helper()
	header, err := protocol.AppendStreamHeader(nil, h)
	if err != nil {
		r.t.Fatal(err)
	}
	return r.openRaw(header)
}

func (r *rig) openRaw(header []byte) (tunnel.Stream, protocol.Answer) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := r.edge.Open(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = s.Close() })
	_ = s.SetDeadline(time.Now().Add(patience))
	if _, err := s.Write(header); err != nil {
		r.t.Fatal(err)
	}
	var answer [1]byte
	if _, err := s.Read(answer[:]); err != nil {
		r.t.Fatal(err)
	}
	return s, protocol.Answer(answer[0])
}

// mustOpen is open for a stream that must be taken.
func (r *rig) mustOpen(k protocol.Kind) tunnel.Stream {
	r.t.Helper()
	s, a := r.open(protocol.StreamHeader{Kind: k})
	if a != protocol.AnswerOK {
		r.t.Fatalf("answer %d, want OK", a)
	}
	return s
}

func (r *rig) end() protocol.StreamEnd {
	r.t.Helper()
	select {
	case e := <-r.ends:
		return e
	case <-time.After(patience):
		r.t.Fatal("no stream end was reported")
		return protocol.StreamEnd{}
	}
}

// app listens and serves each connection with handle; it returns the endpoint.
func app(t testing.TB, handle func(*net.TCPConn)) Endpoint {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveApp(t, ln, func(c net.Conn) { handle(c.(*net.TCPConn)) })
	return endpoint(t, ln.Addr().String())
}

func serveApp(t testing.TB, ln net.Listener, handle func(net.Conn)) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			wg.Go(func() {
				defer func() { _ = c.Close() }()
				handle(c)
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		mu.Lock()
		for _, c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
}

func endpoint(t testing.TB, text string) Endpoint {
	t.Helper()
	e, err := ParseEndpoint(text)
	if err != nil {
		t.Fatal(err)
	}
	return e
}
