package ingress

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"go.uber.org/goleak"

	"wormhole/certs"
	"wormhole/shared/hostname"
	"wormhole/shared/protocol"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is an ingress that serves, with a CA that its clients trust.
type rig struct {
	*Ingress
	t    *testing.T
	ca   *x509.Certificate
	pool *x509.CertPool
	log  *lockedBuffer
}

// trust makes the clients of r trust other's certificates.
func (r *rig) trust(other *rig) { r.pool.AddCert(other.ca) }

// start serves until the test ends. It listens on loopback with free ports unless
// cfg says otherwise.
func start(t *testing.T, cfg Config, h Handlers) *rig {
	t.Helper()
	r := prepare(t, cfg, h)
	if err := r.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return r
}

func prepare(t *testing.T, cfg Config, h Handlers) *rig {
	t.Helper()
	ca, err := certs.NewInternal(certs.InternalConfig{Dir: t.TempDir(), Allow: func(host string) (string, bool) {
		return host, hostname.Match("*.test", host)
	}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, ca: ca.CA(), pool: x509.NewCertPool(), log: &lockedBuffer{}}
	r.pool.AddCert(ca.CA())
	if cfg.HTTPS == "" && cfg.HTTPSListener == nil {
		cfg.HTTPS = "127.0.0.1:0"
	}
	if cfg.HTTP == "" && h.Plain != nil {
		cfg.HTTP = "127.0.0.1:0"
	}
	if h.Visitor == nil {
		h.Visitor = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s %s", r.Proto, r.TLS.ServerName)
		})
	}
	r.Ingress, err = New(cfg, ca, h, slog.New(slog.NewTextHandler(r.log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) tls(name string, protos ...string) *tls.Config {
	return &tls.Config{ServerName: name, RootCAs: r.pool, NextProtos: protos}
}

func (r *rig) dial(name string, protos ...string) (*tls.Conn, error) {
	return tls.Dial("tcp", r.Addrs().HTTPS.String(), r.tls(name, protos...))
}

// client speaks h1, h2 or h3 to the ingress, whatever the URL says.
func (r *rig) client(proto string) *http.Client {
	r.t.Helper()
	dialer := &net.Dialer{}
	to := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dialer.DialContext(ctx, "tcp", r.Addrs().HTTPS.String())
	}
	var transport http.RoundTripper
	switch proto {
	case "h1", "h2":
		protocols := new(http.Protocols)
		protocols.SetHTTP1(proto == "h1")
		protocols.SetHTTP2(proto == "h2")
		t := &http.Transport{DialContext: to, TLSClientConfig: r.tls(""), Protocols: protocols}
		r.t.Cleanup(t.CloseIdleConnections)
		transport = t
	case "h3":
		t := &http3.Transport{
			TLSClientConfig: r.tls(""),
			Dial: func(ctx context.Context, _ string, tc *tls.Config, qc *quic.Config) (*quic.Conn, error) {
				return quic.DialAddr(ctx, r.Addrs().QUIC.String(), tc, qc)
			},
		}
		r.t.Cleanup(func() { t.Close() })
		transport = t
	}
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

func get(c *http.Client, url string) (string, http.Header, error) {
	resp, err := c.Get(url)
	if err != nil {
		return "", nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), resp.Header, err
}

// lockedBuffer is a buffer for logs.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestVisitorsSpeakHTTP1And2And3(t *testing.T) {
	r := start(t, Config{}, Handlers{})
	port := portOf(r.Addrs().HTTPS)
	if quicPort := portOf(r.Addrs().QUIC); quicPort != port {
		t.Errorf("the UDP port is %d, the TCP port %d", quicPort, port)
	}
	for proto, want := range map[string]string{"h1": "HTTP/1.1 a.test", "h2": "HTTP/2.0 a.test", "h3": "HTTP/3.0 a.test"} {
		body, header, err := get(r.client(proto), "https://a.test/")
		if err != nil || body != want {
			t.Errorf("%s: got %q, %v, want %q", proto, body, err, want)
		}
		altSvc := fmt.Sprintf(`h3=":%d"; ma=86400`, port)
		if proto == "h3" {
			altSvc = ""
		}
		if got := header.Get("Alt-Svc"); got != altSvc {
			t.Errorf("%s: Alt-Svc is %q, want %q", proto, got, altSvc)
		}
	}
}

func TestD19AltSvcOnlyWhereUDPIsServed(t *testing.T) {
	r := start(t, Config{DisableQUIC: true}, Handlers{})
	if r.Addrs().QUIC != nil {
		t.Errorf("a UDP port is open: %v", r.Addrs().QUIC)
	}
	_, header, err := get(r.client("h2"), "https://a.test/")
	if err != nil || header.Get("Alt-Svc") != "" {
		t.Errorf("Alt-Svc is %q, %v", header.Get("Alt-Svc"), err)
	}
}

func TestAgentsAreToldApartByALPN(t *testing.T) {
	agent := func(ctx context.Context, conn *tls.Conn) {
		fmt.Fprintf(conn, "agent %s", conn.ConnectionState().NegotiatedProtocol)
	}
	agentQUIC := func(ctx context.Context, conn *quic.Conn) {
		s, err := conn.OpenUniStream()
		if err != nil {
			return
		}
		fmt.Fprint(s, "agent over quic")
		s.Close()
		<-conn.Context().Done()
	}
	r := start(t, Config{}, Handlers{Agent: agent, AgentQUIC: agentQUIC})

	c, err := r.dial("edge.test", protocol.ALPN)
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := io.ReadAll(c); string(got) != "agent wormhole/1" {
		t.Errorf("over TLS an agent reads %q", got)
	}
	c.Close()

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	q, err := quic.DialAddr(ctx, r.Addrs().QUIC.String(), r.tls("edge.test", protocol.ALPN), nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := q.AcceptUniStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := io.ReadAll(s); string(got) != "agent over quic" {
		t.Errorf("over QUIC an agent reads %q", got)
	}
	q.CloseWithError(0, "")

	old := r.tls("edge.test", protocol.ALPN)
	old.MaxVersion = tls.VersionTLS12
	if c, err := tls.Dial("tcp", r.Addrs().HTTPS.String(), old); err == nil {
		c.Close()
		t.Error("an agent was let in with TLS 1.2")
	}
	if c, err := r.dial("edge.test", "wormhole/9"); err == nil {
		c.Close()
		t.Error("an unknown protocol was negotiated")
	}
}

func TestWithoutAgentHandlersAgentsAreRefused(t *testing.T) {
	r := start(t, Config{}, Handlers{})
	if c, err := r.dial("edge.test", protocol.ALPN); err == nil {
		c.Close()
		t.Error("the agents' protocol was negotiated")
	}
}

func TestE8UnknownNamesGetAnAlertAtOnce(t *testing.T) {
	r := start(t, Config{}, Handlers{})
	for _, name := range []string{"a.example.com", "x.a.test"} {
		began := time.Now()
		_, err := r.dial(name, "h2")
		if alert := new(tls.AlertError); !errors.As(err, alert) && !strings.Contains(fmt.Sprint(err), "unrecognized name") {
			t.Errorf("%s: got %v, want the alert unrecognized_name", name, err)
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("%s: it took %v", name, took)
		}
	}
}

func TestH14TLSPolicy(t *testing.T) {
	r := start(t, Config{}, Handlers{})
	for name, c := range map[string]struct {
		change func(*tls.Config)
		good   bool
	}{
		"1.3":          {func(c *tls.Config) { c.MinVersion = tls.VersionTLS13 }, true},
		"1.2 aead":     {func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, true},
		"1.1":          {func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }, false},
		"post-quantum": {func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519MLKEM768} }, true},
		"1.2 cbc": {func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}
		}, false},
		"1.2 rsa exchange": {func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}
		}, false},
	} {
		cfg := r.tls("a.test", "http/1.1")
		c.change(cfg)
		conn, err := tls.Dial("tcp", r.Addrs().HTTPS.String(), cfg)
		if (err == nil) != c.good {
			t.Errorf("%s: %v, want success %v", name, err, c.good)
		}
		if err == nil {
			conn.Close()
		}
	}
}

func TestSessionsAreResumed(t *testing.T) {
	r := start(t, Config{}, Handlers{})
	cfg := r.tls("a.test", "http/1.1")
	cfg.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	for i := range 2 {
		c, err := tls.Dial("tcp", r.Addrs().HTTPS.String(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
		_, _ = io.ReadAll(c)
		if got, want := c.ConnectionState().DidResume, i == 1; got != want {
			t.Errorf("connection %d: resumed %v, want %v", i, got, want)
		}
		c.Close()
	}
}

func TestPlainHTTPHasAPortOfItsOwn(t *testing.T) {
	r := start(t, Config{}, Handlers{Plain: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "plain ", r.Proto)
	})})
	body, _, err := get(http.DefaultClient, "http://"+r.Addrs().HTTP.String())
	http.DefaultClient.CloseIdleConnections()
	if err != nil || body != "plain HTTP/1.1" {
		t.Fatalf("got %q, %v", body, err)
	}

	// HTTP/2 without TLS is never spoken, neither by prior knowledge nor by Upgrade.
	c := dialRaw(t, r.Addrs().HTTP)
	fmt.Fprint(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
	answer, _ := io.ReadAll(c)
	if !bytes.HasPrefix(answer, []byte("HTTP/1.1 ")) {
		t.Errorf("the h2 preface is answered with %q", answer)
	}
}

func TestHTTPOnTheTLSPortIsTold(t *testing.T) {
	r := start(t, Config{}, Handlers{})
	c := dialRaw(t, r.Addrs().HTTPS)
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
	answer, _ := io.ReadAll(c)
	if !strings.HasPrefix(string(answer), "HTTP/1.0 400 ") || !strings.Contains(string(answer), "HTTPS") {
		t.Fatalf("got %q", answer)
	}
}

func dialRaw(t *testing.T, addr net.Addr) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

// waitClosed returns how long the peer took to close c.
func waitClosed(t *testing.T, c net.Conn) time.Duration {
	t.Helper()
	began := time.Now()
	if _, err := io.Copy(io.Discard, c); errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
		t.Fatalf("the connection was not closed: %v", err)
	}
	return time.Since(began)
}

func isTimeout(err error) bool {
	t, ok := errors.AsType[net.Error](err)
	return ok && t.Timeout()
}

func TestStrangersAreClosedInTime(t *testing.T) {
	r := start(t, Config{HelloTimeout: 300 * time.Millisecond, HandshakeTimeout: 600 * time.Millisecond, HeaderTimeout: 400 * time.Millisecond}, Handlers{})
	hello := clientHello(t)
	for name, act := range map[string]func(net.Conn){
		"silence":           func(net.Conn) {},
		"garbage":           func(c net.Conn) { c.Write(bytes.Repeat([]byte{0xfe, 1, 2, 3}, 1<<14)) },
		"half a hello":      func(c net.Conn) { c.Write(hello[:len(hello)/2]) },
		"a hello, no more":  func(c net.Conn) { c.Write(hello) },
		"a hello of 16 KiB": func(c net.Conn) { c.Write(longHello(16 << 10)) },
		"bytewise hello": func(c net.Conn) {
			for _, b := range hello {
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(5 * time.Millisecond) // this client is slow
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := dialRaw(t, r.Addrs().HTTPS)
			began := time.Now()
			go act(c)
			waitClosed(t, c)
			if took := time.Since(began); took > 3*time.Second {
				t.Errorf("closed after %v", took)
			}
		})
	}
	t.Run("TLS, then silence", func(t *testing.T) {
		t.Parallel()
		c, err := r.dial("a.test", "http/1.1")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		waitClosed(t, c)
	})
	t.Run("slow head", func(t *testing.T) {
		t.Parallel()
		c, err := r.dial("a.test", "http/1.1")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: a.test\r\n")
		waitClosed(t, c)
	})
}

// clientHello returns the first flight of a TLS client.
func clientHello(t *testing.T) []byte {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	go func() {
		_ = tls.Client(b, &tls.Config{ServerName: "a.test"}).Handshake()
		b.Close()
	}()
	buf := make([]byte, 16<<10)
	n, err := a.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

// longHello is a record that announces and holds a ClientHello of n bytes.
func longHello(n int) []byte {
	b := []byte{22, 3, 1, byte((n - 4) >> 8), byte(n - 4), 1, 0, byte((n - 8) >> 8), byte(n - 8)}
	return append(b, make([]byte, n)...)
}

func TestAFloodOfNonsenseWritesFewLines(t *testing.T) {
	r := start(t, Config{}, Handlers{})
	for range 200 {
		c := dialRaw(t, r.Addrs().HTTPS)
		c.Write([]byte("nonsense, nonsense"))
		waitClosed(t, c)
		c.Close()
	}
	if n := strings.Count(r.log.String(), "\n"); n == 0 || n > 20 {
		t.Errorf("%d lines, want some but few", n)
	}
}

func TestSilentConnectionsMakeRoom(t *testing.T) {
	r := start(t, Config{MaxHandshakes: 8}, Handlers{})
	first := dialRaw(t, r.Addrs().HTTPS)
	for range 20 {
		dialRaw(t, r.Addrs().HTTPS)
	}
	if took := waitClosed(t, first); took > 4*time.Second {
		t.Errorf("the oldest silent connection was closed after %v only", took)
	}
	if body, _, err := get(r.client("h1"), "https://a.test/"); err != nil {
		t.Errorf("a visitor amid silent connections: %q, %v", body, err)
	}
}

func TestE7AtTheLimitNothingMoreIsAccepted(t *testing.T) {
	r := start(t, Config{MaxConns: 3}, Handlers{})
	var held []*tls.Conn
	for range 3 {
		c, err := r.dial("a.test", "http/1.1")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		held = append(held, c)
	}
	waiting := make(chan error, 1)
	go func() {
		c, err := r.dial("a.test", "http/1.1")
		if err == nil {
			c.Close()
		}
		waiting <- err
	}()
	// Those who are in are served.
	for _, c := range held {
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
	}
	select {
	case err := <-waiting:
		t.Fatalf("a fourth connection was accepted: %v", err)
	default:
	}
	held[0].Close()
	if err := <-waiting; err != nil {
		t.Fatalf("after one left: %v", err)
	}
}

func TestQUICConnectionsAreBounded(t *testing.T) {
	r := start(t, Config{MaxQUICConns: 1}, Handlers{})
	if _, _, err := get(r.client("h3"), "https://a.test/"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if c, err := quic.DialAddr(ctx, r.Addrs().QUIC.String(), r.tls("a.test", "h3"), nil); err == nil {
		c.CloseWithError(0, "")
		t.Error("a second connection was let in")
	}
}

func TestListenNamesTheFlagOfATakenPort(t *testing.T) {
	r := start(t, Config{}, Handlers{})
	taken := r.Addrs().HTTPS.String()
	other := prepare(t, Config{HTTPS: taken, HTTP: taken}, Handlers{})
	err := other.Listen()
	if err == nil || !strings.Contains(err.Error(), "--https "+taken) || !strings.Contains(err.Error(), "--http "+taken) || !strings.Contains(err.Error(), "taken") {
		t.Fatalf("got %v", err)
	}
	if err := other.Serve(t.Context()); err == nil {
		t.Fatal("Serve worked without Listen")
	}
	_, port, _ := net.SplitHostPort(taken)
	bad := prepare(t, Config{HTTPS: "127.0.0.1:70000", HTTP: "nohost.invalid:" + port}, Handlers{})
	if err := bad.Listen(); err == nil {
		t.Fatal("impossible addresses were bound")
	}
}

func TestOpenSocketsMayBeGiven(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := start(t, Config{HTTPSListener: l, QUICConn: p, AltSvcPort: 443}, Handlers{})
	for _, proto := range []string{"h1", "h3"} {
		if _, header, err := get(r.client(proto), "https://a.test/"); err != nil || proto == "h1" && header.Get("Alt-Svc") != `h3=":443"; ma=86400` {
			t.Errorf("%s: %v, %v", proto, header, err)
		}
	}
}

func TestNewListsEveryFault(t *testing.T) {
	_, err := New(Config{AltSvcPort: -1, MaxConns: -1}, nil, Handlers{}, slog.New(slog.DiscardHandler))
	if err == nil || strings.Count(err.Error(), "\n") != 3 {
		t.Fatalf("got %v", err)
	}
}
