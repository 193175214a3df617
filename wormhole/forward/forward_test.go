package forward

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
)

func echoApp(c *net.TCPConn) {
	_, _ = io.Copy(c, c)
	_ = c.CloseWrite()
}

func TestBytesGoBothWaysAndHalfCloses(t *testing.T) {
	r := newRig(t, New(Config{Endpoint: app(t, echoApp)}))
	for _, kind := range []protocol.Kind{protocol.KindHTTP, protocol.KindTCP, protocol.KindTLS} {
		s := r.mustOpen(kind)
		body := make([]byte, 8<<20)
		_, _ = rand.NewChaCha8([32]byte{byte(kind)}).Read(body)
		go func() {
			_, _ = s.Write(body)
			_ = s.CloseWrite()
		}()
		h := sha256.New()
		if n, err := io.Copy(h, s); err != nil || n != int64(len(body)) {
			t.Fatalf("kind %d: read %d bytes, %v", kind, n, err)
		}
		if want := sha256.Sum256(body); !bytes.Equal(h.Sum(nil), want[:]) {
			t.Errorf("kind %d: bytes were altered", kind)
		}
		if e := r.end(); e.Stream != s.ID() || e.Delivered != uint64(len(body)) || !e.Clean {
			t.Errorf("kind %d: end %+v", kind, e)
		}
	}
}

func TestStreamIsReusedForManyExchanges(t *testing.T) {
	r := newRig(t, New(Config{Endpoint: app(t, echoApp)}))
	s := r.mustOpen(protocol.KindHTTP)
	for range 1000 {
		exchange(t, s, "a small request")
	}
}

func exchange(t testing.TB, s tunnel.Stream, request string) {
	t.Helper()
	if _, err := io.WriteString(s, request); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(request))
	if _, err := io.ReadFull(s, got); err != nil || string(got) != request {
		t.Fatalf("got %q, %v", got, err)
	}
}

func TestRefusalsSayWhyAndReachNoApp(t *testing.T) {
	down := endpoint(t, unusedAddr(t))
	touched := make(chan struct{}, 1)
	up := app(t, func(*net.TCPConn) { touched <- struct{}{} })
	ok := func() protocol.Answer { return protocol.AnswerOK }
	http := protocol.StreamHeader{Kind: protocol.KindHTTP}
	for _, c := range []struct {
		name   string
		cfg    Config
		header protocol.StreamHeader
		gate   func() protocol.Answer
		want   protocol.Answer
	}{
		{"app down", Config{Endpoint: down}, http, ok, protocol.AnswerAppDown},
		{"no endpoint yet", Config{}, http, ok, protocol.AnswerNotReady},
		{"unknown port", Config{Endpoint: up}, protocol.StreamHeader{Kind: protocol.KindHTTP, Port: "admin"}, ok, protocol.AnswerNoSuchPort},
		{"unknown kind", Config{Endpoint: up}, protocol.StreamHeader{Kind: 99}, ok, protocol.AnswerUnsupported},
		{"draining", Config{Endpoint: up}, http, func() protocol.Answer { return protocol.AnswerDraining }, protocol.AnswerDraining},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, New(c.cfg))
			r.gate = c.gate
			s, got := r.open(c.header)
			if got != c.want {
				t.Errorf("answer %d, want %d", got, c.want)
			}
			if _, err := s.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("after the answer: %v, want EOF", err)
			}
		})
	}
	select {
	case <-touched:
		t.Error("a refused stream reached the app")
	default:
	}
}

func TestTooManyStreamsAreRefused(t *testing.T) {
	r := newRig(t, New(Config{Endpoint: app(t, echoApp), MaxStreams: 2}))
	r.mustOpen(protocol.KindHTTP)
	r.mustOpen(protocol.KindHTTP)
	if _, a := r.open(protocol.StreamHeader{Kind: protocol.KindHTTP}); a != protocol.AnswerFull {
		t.Errorf("answer %d, want full", a)
	}
}

func TestGarbageHeaderIsRefused(t *testing.T) {
	r := newRig(t, New(Config{Endpoint: app(t, echoApp)}))
	if _, a := r.openRaw(bytes.Repeat([]byte{0xff}, 4096)); a != protocol.AnswerUnsupported {
		t.Errorf("answer %d, want unsupported", a)
	}
}

func TestSilentHeaderIsRefused(t *testing.T) {
	r := newRig(t, New(Config{Endpoint: app(t, echoApp), HeaderTimeout: 20 * time.Millisecond}))
	if _, a := r.openRaw([]byte{1}); a != protocol.AnswerUnsupported {
		t.Errorf("answer %d, want unsupported", a)
	}
}

// An app closes an idle connection while a request is on its way: the edge must
// learn that none of it arrived.
func TestBytesAfterTheAppsEndAreNotDelivered(t *testing.T) {
	ended := make(chan struct{})
	r := newRig(t, New(Config{Endpoint: app(t, func(c *net.TCPConn) {
		_, _ = io.ReadFull(c, make([]byte, 5))
		_, _ = io.WriteString(c, "done")
		_ = c.CloseWrite()
		close(ended)
		_, _ = io.Copy(io.Discard, c)
	})}))
	s := r.mustOpen(protocol.KindHTTP)
	if _, err := io.WriteString(s, "first"); err != nil {
		t.Fatal(err)
	}
	<-ended
	e := r.end()
	if _, err := io.WriteString(s, "second"); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(s); err != nil || string(got) != "done" {
		t.Errorf("read %q, %v", got, err)
	}
	if e.Delivered != 5 || !e.Clean {
		t.Errorf("end %+v, want 5 bytes, clean", e)
	}
}

func TestResetOfAppIsAnAbort(t *testing.T) {
	r := newRig(t, New(Config{Endpoint: app(t, func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "half an ans")
		_, _ = io.ReadFull(c, make([]byte, 2))
		_ = c.SetLinger(0)
	})}))
	s := r.mustOpen(protocol.KindHTTP)
	got := make([]byte, 11)
	if _, err := io.ReadFull(s, got); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(s, "go"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(s); !errors.Is(err, tunnel.ErrAborted) {
		t.Errorf("after a reset: %v, want ErrAborted", err)
	}
	if e := r.end(); e.Clean || e.Delivered != 2 {
		t.Errorf("end %+v, want 2 bytes, not clean", e)
	}
}

// A server that answers early and closes resets the connection if it has not read
// all of the request. The answer must arrive all the same.
func TestEarlyAnswerSurvivesTheReset(t *testing.T) {
	answer := "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno\n"
	r := newRig(t, New(Config{Endpoint: app(t, func(c *net.TCPConn) {
		_, _ = io.ReadFull(c, make([]byte, 1000))
		_, _ = io.WriteString(c, answer)
	})}))
	for range 20 {
		s := r.mustOpen(protocol.KindHTTP)
		writing := make(chan struct{})
		go func() {
			defer close(writing)
			_, _ = s.Write(make([]byte, 1<<20))
		}()
		got := make([]byte, len(answer))
		if n, err := io.ReadFull(s, got); err != nil {
			t.Fatalf("read %d bytes of the answer, %v", n, err)
		}
		if string(got) != answer {
			t.Fatalf("got %q", got)
		}
		_ = s.Close()
		<-writing
	}
}

func TestAbortOfStreamResetsARawApp(t *testing.T) {
	for kind, want := range map[protocol.Kind]string{protocol.KindTCP: "connection reset by peer", protocol.KindHTTP: ""} {
		seen := make(chan error, 1)
		r := newRig(t, New(Config{Endpoint: app(t, func(c *net.TCPConn) {
			_, _ = io.WriteString(c, "x")
			_, err := io.Copy(io.Discard, c)
			seen <- err
		})}))
		s := r.mustOpen(kind)
		if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		s.Abort()
		select {
		case err := <-seen:
			if (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("kind %d: the app saw %v, want %q", kind, err, want)
			}
		case <-time.After(patience):
			t.Fatalf("kind %d: the app was not told", kind)
		}
	}
}

func TestServeEndsWithItsContextThoughTheAppDoesNotRead(t *testing.T) {
	stuck := make(chan struct{})
	defer close(stuck)
	f := New(Config{Endpoint: app(t, func(*net.TCPConn) { <-stuck })})
	r := newRig(t, f)
	s := r.mustOpen(protocol.KindTCP)
	_ = s.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	_, _ = s.Write(make([]byte, 32<<20))
	// The rig's cleanup ends the context and waits for Serve.
}

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	serveApp(t, ln, func(c net.Conn) { _, _ = io.Copy(c, c) })
	f := New(Config{Endpoint: endpoint(t, "unix:"+path)})
	exchange(t, newRig(t, f).mustOpen(protocol.KindHTTP), "over a socket")
	if err := f.Ready(context.Background()); err != nil {
		t.Errorf("not ready: %v", err)
	}
}

func TestTLSApp(t *testing.T) {
	cert, _ := certificate(t)
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	serveApp(t, ln, func(c net.Conn) { _, _ = io.Copy(c, c) })
	addr := ln.Addr().String()

	insecure := newRig(t, New(Config{Endpoint: endpoint(t, "https+insecure://"+addr)}))
	exchange(t, insecure.mustOpen(protocol.KindHTTP), "inside TLS")

	verified := newRig(t, New(Config{Endpoint: endpoint(t, "https://"+addr)}))
	if _, a := verified.open(protocol.StreamHeader{Kind: protocol.KindHTTP}); a != protocol.AnswerAppDown {
		t.Errorf("answer %d for a certificate that nobody vouches for, want app down", a)
	}

	// The client's own TLS goes through as it is.
	raw := verified.mustOpen(protocol.KindTLS)
	client := tls.Client(raw, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // a test
	if err := client.Handshake(); err != nil {
		t.Errorf("handshake through: %v", err)
	}
}

func TestLocalhostIsEitherFamily(t *testing.T) {
	ln, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6 loopback here")
	}
	serveApp(t, ln, func(c net.Conn) { _, _ = io.Copy(c, c) })
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	r := newRig(t, New(Config{Endpoint: endpoint(t, port)}))
	exchange(t, r.mustOpen(protocol.KindHTTP), "six")
	exchange(t, r.mustOpen(protocol.KindHTTP), "six")
}

func unusedAddr(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	return ln.Addr().String()
}

// One exchange over a kept stream, tunnel and app included.
func BenchmarkExchange(b *testing.B) {
	r := newRig(b, New(Config{Endpoint: app(b, echoApp)}))
	s := r.mustOpen(protocol.KindHTTP)
	_ = s.SetDeadline(time.Time{})
	request := strings.Repeat("x", 300)
	b.ReportAllocs()
	for b.Loop() {
		exchange(b, s, request)
	}
}

func BenchmarkDownload(b *testing.B) {
	chunk := make([]byte, 1<<20)
	r := newRig(b, New(Config{Endpoint: app(b, func(c *net.TCPConn) {
		for {
			if _, err := c.Write(chunk); err != nil {
				return
			}
		}
	})}))
	s := r.mustOpen(protocol.KindHTTP)
	_ = s.SetDeadline(time.Time{})
	b.SetBytes(1 << 20)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := io.ReadFull(s, chunk[:1<<20]); err != nil {
			b.Fatal(err)
		}
	}
}
