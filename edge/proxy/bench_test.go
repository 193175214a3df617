package proxy_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"testing"
	"time"

	"wormhole/edge/balance"
	"wormhole/edge/proxy"
	"wormhole/edge/site"
	"wormhole/edge/upstream"
	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
)

// canned is a tunnel whose app gives one answer to every write, without system calls
// or goroutines, so that only the edge's own work is measured.
type canned struct{ answer []byte }

func (c *canned) OpenStream(context.Context, protocol.StreamHeader) (upstream.Stream, error) {
	return &cannedStream{answer: c.answer}, nil
}

type cannedStream struct {
	net.Conn
	answer  []byte
	pending []byte
}

func (s *cannedStream) Write(b []byte) (int, error) { s.pending = s.answer; return len(b), nil }
func (s *cannedStream) Read(b []byte) (int, error) {
	if len(s.pending) == 0 {
		return 0, tunnel.ErrAborted
	}
	n := copy(b, s.pending)
	s.pending = s.pending[n:]
	return n, nil
}
func (s *cannedStream) Quiet() bool                              { return len(s.pending) == 0 }
func (s *cannedStream) ID() uint64                               { return 1 }
func (s *cannedStream) CloseWrite() error                        { return nil }
func (s *cannedStream) Abort()                                   {}
func (s *cannedStream) Close() error                             { return nil }
func (s *cannedStream) SetDeadline(time.Time) error              { return nil }
func (s *cannedStream) SetReadDeadline(time.Time) error          { return nil }
func (s *cannedStream) SetWriteDeadline(time.Time) error         { return nil }
func (s *cannedStream) Delivered(context.Context) (uint64, bool) { return 0, false }

// sink is a ResponseWriter that keeps nothing.
type sink struct {
	h http.Header
	n int
}

func (s *sink) Header() http.Header         { return s.h }
func (s *sink) WriteHeader(int)             {}
func (s *sink) Write(b []byte) (int, error) { s.n += len(b); return len(b), nil }
func (s *sink) Flush()                      {}

// browser is a request as a browser sends it.
func browser(method, path string, body []byte) *http.Request {
	r := httptest.NewRequest(method, "https://"+host+path, nil)
	r.RequestURI = path
	r.RemoteAddr = "203.0.113.7:51234"
	for name, value := range map[string]string{
		"User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", "Accept": "text/html,application/xhtml+xml",
		"Accept-Language": "en-US,en;q=0.5", "Accept-Encoding": "gzip, deflate, br, zstd", "Cookie": "session=0123456789abcdef",
		"Sec-Fetch-Mode": "navigate", "Referer": "https://app.test/",
	} {
		r.Header.Set(name, value)
	}
	if body != nil {
		r.ContentLength = int64(len(body))
	}
	return r
}

const small = "HTTP/1.1 200 OK\r\nDate: Fri, 20 Nov 2026 10:00:00 GMT\r\nContent-Type: text/plain; charset=utf-8\r\n" +
	"ETag: \"abc\"\r\nCache-Control: no-cache\r\nContent-Length: 300\r\n\r\n"

func BenchmarkServeHTTP(b *testing.B) {
	answers := map[string][]byte{
		"small":   append([]byte(small), bytes.Repeat([]byte("x"), 300)...),
		"chunked": []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n12c\r\n" + string(bytes.Repeat([]byte("x"), 300)) + "\r\n0\r\n\r\n"),
		"bulk":    append([]byte("HTTP/1.1 200 OK\r\nContent-Length: 1048576\r\n\r\n"), make([]byte, 1<<20)...),
	}
	for _, name := range []string{"small", "chunked", "bulk"} {
		sites := site.New(nil)
		up := upstream.New(&canned{answer: answers[name]}, upstream.Config{})
		defer up.Close()
		sites.Attach(host, balance.NewBackend(balance.Info{ID: "1", Name: "a"}, up))
		p, err := proxy.New(proxy.Config{AccessLog: func(*proxy.Record) {}}, sites, nil, slog.New(slog.DiscardHandler))
		if err != nil {
			b.Fatal(err)
		}
		for _, method := range []string{"GET", "POST"} {
			if method == "POST" && name != "small" {
				continue
			}
			b.Run(method+" "+name, func(b *testing.B) {
				body := make([]byte, 1024)
				reader := bytes.NewReader(body)
				r := browser("GET", "/small", nil)
				if method == "POST" {
					r = browser("POST", "/small", body)
				}
				ctx, cancel := context.WithCancel(b.Context()) // as the server's
				defer cancel()
				r = r.WithContext(ctx)
				w := &sink{h: http.Header{}}
				b.ReportAllocs()
				for b.Loop() {
					clear(w.h)
					if method == "POST" {
						reader.Reset(body)
						r.Body = io.NopCloser(reader)
					}
					p.ServeHTTP(w, r)
				}
				if w.n == 0 {
					b.Fatal("nothing came")
				}
			})
		}
	}
}

// BenchmarkReverseProxy is what the standard library takes for the same.
func BenchmarkReverseProxy(b *testing.B) {
	o := &canned{answer: append([]byte(small), bytes.Repeat([]byte("x"), 300)...)}
	tr := &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return pumped(ctx, o) },
		DisableCompression: true,
	}
	defer tr.CloseIdleConnections()
	target, _ := url.Parse("http://app")
	p := &httputil.ReverseProxy{
		Transport: tr,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host
			r.SetXForwarded()
		},
	}
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	r := browser("GET", "/small", nil).WithContext(ctx)
	w := &sink{h: http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		clear(w.h)
		p.ServeHTTP(w, r)
	}
	if w.n == 0 {
		b.Fatal("nothing came")
	}
}

// pumped is a canned stream for a client that reads before it writes.
func pumped(ctx context.Context, o *canned) (net.Conn, error) {
	s, err := o.OpenStream(ctx, protocol.StreamHeader{})
	if err != nil {
		return nil, err
	}
	return &pump{Stream: s, ready: make(chan struct{}, 1), closed: make(chan struct{})}, nil
}

type pump struct {
	upstream.Stream
	ready, closed chan struct{}
}

func (p *pump) Write(b []byte) (int, error) {
	n, err := p.Stream.Write(b)
	p.ready <- struct{}{}
	return n, err
}

func (p *pump) Read(b []byte) (int, error) {
	select {
	case <-p.ready:
		return p.Stream.Read(b)
	case <-p.closed:
		return 0, net.ErrClosed
	}
}
func (p *pump) Close() error         { close(p.closed); return nil }
func (p *pump) LocalAddr() net.Addr  { return &net.TCPAddr{} }
func (p *pump) RemoteAddr() net.Addr { return &net.TCPAddr{} }
