package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
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

// fakeEdge is an edge as far as an agent can see it.
type fakeEdge struct {
	t    *testing.T
	node string
	ln   net.Listener
	addr string // of ln

	sessions chan *edgeSession // every agent that was welcomed
	wg       sync.WaitGroup

	mu    sync.Mutex // guards what follows
	admit func(*protocol.Hello) (*protocol.Welcome, error)
	mute  bool // beats stay unanswered
	noAck bool // drains stay unacknowledged
	conns []net.Conn
	hello []*protocol.Hello // all that came
	edges []protocol.Edge
}

// edgeSession is one tunnel at the edge.
type edgeSession struct {
	tunnel.Session
	edge  *fakeEdge
	hello *protocol.Hello
	raw   net.Conn
	said  chan message // what the agent said, beats left out
	write sync.Mutex
}

type message struct {
	typ     protocol.Type
	payload []byte
}

// pki is a certificate for edge.test and the pool that verifies it.
type pki struct {
	cert  tls.Certificate
	roots *x509.CertPool
}

func newPKI(t *testing.T) pki {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		DNSNames:     []string{"edge.test", "other.test"},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
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
	return pki{tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, roots}
}

// startEdge listens on addr; port 0 picks one.
func startEdge(t *testing.T, p pki, node, addr string) *fakeEdge {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	e := &fakeEdge{t: t, node: node, ln: ln, addr: ln.Addr().String(), sessions: make(chan *edgeSession, 64)}
	e.wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			e.mu.Lock()
			e.conns = append(e.conns, conn)
			e.mu.Unlock()
			e.wg.Go(func() { e.serve(p, conn) })
		}
	})
	t.Cleanup(e.stop)
	return e
}

// stop closes everything and waits.
func (e *fakeEdge) stop() {
	_ = e.ln.Close()
	e.mu.Lock()
	for _, c := range e.conns {
		_ = c.Close()
	}
	e.mu.Unlock()
	e.wg.Wait()
}

func (e *fakeEdge) serve(p pki, raw net.Conn) {
	secure := tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{p.cert}, NextProtos: []string{protocol.ALPN}})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return
	}
	session, hello, _, err := tlsmux.Accept(ctx, secure, e.welcome, tlsmux.Options{})
	if err != nil {
		return
	}
	s := &edgeSession{Session: session, edge: e, hello: hello, raw: raw, said: make(chan message, 1024)}
	e.sessions <- s
	s.converse()
	_ = session.Close()
}

func (e *fakeEdge) welcome(_ context.Context, hello *protocol.Hello, _ net.Addr) (*protocol.Welcome, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.hello = append(e.hello, hello)
	if e.admit != nil {
		return e.admit(hello)
	}
	return e.accepted(), nil
}

// accepted is a welcome. mu must be held.
func (e *fakeEdge) accepted() *protocol.Welcome {
	return &protocol.Welcome{Tunnel: rand.Text(), Node: e.node, Edges: e.edges, MaxStreams: 100}
}

func (e *fakeEdge) set(change func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	change()
}

func (e *fakeEdge) hellos() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.hello)
}

// converse answers beats and drains, and keeps everything else for the test.
func (s *edgeSession) converse() {
	for {
		typ, payload, err := protocol.ReadMessage(s.Control(), protocol.MaxMessage)
		if err != nil {
			return
		}
		s.edge.mu.Lock()
		mute, noAck := s.edge.mute, s.edge.noAck
		s.edge.mu.Unlock()
		switch typ {
		case protocol.TypeBeat:
			if !mute {
				s.say(protocol.TypeBeatAck, payload)
			}
			continue
		case protocol.TypeDrain:
			if !noAck {
				s.say(protocol.TypeDrainAck, nil)
			}
		}
		s.said <- message{typ, payload}
	}
}

func (s *edgeSession) say(typ protocol.Type, v any) {
	s.write.Lock()
	defer s.write.Unlock()
	_ = protocol.WriteMessage(s.Control(), typ, v)
}

// hears waits for the next message and fails unless it is of type typ.
func (s *edgeSession) hears(typ protocol.Type) []byte {
	s.edge.t.Helper()
	select {
	case m := <-s.said:
		if m.typ != typ {
			s.edge.t.Fatalf("agent sent message %d %q, want type %d", m.typ, m.payload, typ)
		}
		return m.payload
	case <-time.After(patience):
		s.edge.t.Fatalf("agent sent nothing, want a message of type %d", typ)
	}
	return nil
}

func (s *edgeSession) hearsReady(want bool) {
	s.edge.t.Helper()
	var m protocol.Ready
	if err := protocol.Decode(s.hears(protocol.TypeReady), &m); err != nil {
		s.edge.t.Fatal(err)
	}
	if m.Ready != want {
		s.edge.t.Fatalf("agent said ready=%v, want %v", m.Ready, want)
	}
}

// open opens a stream and returns it with the agent's answer; a refused one is
// closed.
func (s *edgeSession) open() (tunnel.Stream, protocol.Answer) {
	s.edge.t.Helper()
	return s.openAs("")
}

func (s *edgeSession) openAs(requestID string) (tunnel.Stream, protocol.Answer) {
	s.edge.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	stream, err := s.Open(ctx)
	if err != nil {
		s.edge.t.Fatal(err)
	}
	header, err := protocol.AppendStreamHeader(nil, protocol.StreamHeader{Kind: protocol.KindTCP, RequestID: requestID})
	if err != nil {
		s.edge.t.Fatal(err)
	}
	_ = stream.SetDeadline(time.Now().Add(patience))
	if _, err := stream.Write(header); err != nil {
		s.edge.t.Fatal(err)
	}
	var answer [1]byte
	if _, err := stream.Read(answer[:]); err != nil {
		s.edge.t.Fatal(err)
	}
	if answer[0] != byte(protocol.AnswerOK) {
		_ = stream.Close()
	}
	return stream, protocol.Answer(answer[0])
}

// next waits for the next agent that is welcomed.
func (e *fakeEdge) next() *edgeSession {
	e.t.Helper()
	select {
	case s := <-e.sessions:
		return s
	case <-time.After(patience):
		e.t.Fatalf("no agent came to %s", e.node)
		return nil
	}
}

// echo is a Forwarder whose app sends back what it gets, but for streams whose
// request id is sink.
type echo struct{}

const sink = "sink"

func (echo) Serve(_ context.Context, s tunnel.Stream, gate func() protocol.Answer, ended func(protocol.StreamEnd)) {
	defer func() { _ = s.Close() }()
	header, err := protocol.ReadStreamHeader(s)
	if err != nil {
		return
	}
	a := gate()
	if _, err := s.Write([]byte{byte(a)}); err != nil || a != protocol.AnswerOK {
		_ = s.CloseWrite()
		_, _ = s.Read(make([]byte, 1))
		return
	}
	buf := make([]byte, 1024)
	var n uint64
	for {
		k, err := s.Read(buf)
		n += uint64(k)
		if err != nil {
			ended(protocol.StreamEnd{Stream: s.ID(), Delivered: n, Clean: true})
			_ = s.CloseWrite()
			return
		}
		if header.RequestID == sink {
			continue
		}
		if _, err := s.Write(buf[:k]); err != nil {
			return
		}
	}
}

// quick are waits for tests.
func quick() timing {
	return timing{
		dial: 2 * time.Second, head: time.Second,
		retryBase: 10 * time.Millisecond, retryMax: 50 * time.Millisecond, stable: time.Hour,
		refused: 50 * time.Millisecond, resolve: 50 * time.Millisecond,
		beat: 20 * time.Millisecond, suspect: 60 * time.Millisecond, dead: 200 * time.Millisecond,
		deadAlways: 400 * time.Millisecond, ack: 500 * time.Millisecond,
	}
}

// startAgent runs an agent until the test ends. The name edge.test leads to all
// addresses that lookup returns.
func startAgent(t *testing.T, p pki, cfg Config, lookup ...string) (*Agent, <-chan error) {
	t.Helper()
	cfg.RootCAs = p.roots
	if cfg.Token == "" {
		cfg.Token = "token-1"
	}
	if cfg.Transport == "" {
		cfg.Transport = OnlyTLS
	}
	if cfg.timing == (timing{}) {
		cfg.timing = quick()
	}
	cfg.Resolve = func(context.Context, string) ([]netip.Addr, error) {
		var addrs []netip.Addr
		for _, a := range lookup {
			addrs = append(addrs, netip.MustParseAddr(a))
		}
		return addrs, nil
	}
	a, err := New(cfg, echo{}, slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		done <- a.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(patience):
			t.Error("Run did not return after its context ended")
		}
	})
	return a, done
}

func portOf(t *testing.T, addr string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// eventually waits until ok, looking every few milliseconds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
