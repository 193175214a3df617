package middleware

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"wormhole/edge/proxy"
	"wormhole/edge/site"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func refuse(w http.ResponseWriter, _ *http.Request, f Refusal) {
	if f.RetryAfter > 0 {
		w.Header().Set("Retry-After", fmt.Sprint(f.RetryAfter))
	}
	w.WriteHeader(f.Status)
	fmt.Fprint(w, f.Code)
}

func reached(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "reached") }

func sites(t testing.TB, specs ...string) *site.Registry {
	t.Helper()
	r := site.New(nil)
	for _, text := range specs {
		spec, err := site.Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Apply(spec); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func ask(h http.Handler, method, target string, change func(*http.Request)) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, nil)
	r.RemoteAddr = "192.0.2.1:1234"
	if change != nil {
		change(r)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestRequestIDIsTheEdgesOwn(t *testing.T) {
	seen := map[string]bool{}
	h := RequestID(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := RequestIDOf(r)
		if len(id) != 32 || seen[id] || r.Header.Get("X-Request-Id") != id {
			t.Errorf("id %q", id)
		}
		seen[id] = true
	}))
	for range 100 {
		ask(h, "GET", "http://a.test/", func(r *http.Request) { r.Header.Set("X-Request-ID", "forged") })
	}
}

func TestRecoverLogsAndAborts(t *testing.T) {
	var logged bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&logged, nil))
	for name, c := range map[string]struct {
		value any
		lines int
	}{"a fault": {errors.New("boom"), 1}, "an abort": {http.ErrAbortHandler, 0}} {
		logged.Reset()
		h := Recover(logger)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(c.value) }))
		func() {
			defer func() {
				if p := recover(); p != http.ErrAbortHandler { //nolint:errorlint // net/http compares it so
					t.Errorf("%s: panicked with %v", name, p)
				}
			}()
			ask(h, "GET", "http://a.test/", nil)
		}()
		if n := strings.Count(logged.String(), "\n"); n != c.lines {
			t.Errorf("%s: %d lines, want %d: %s", name, n, c.lines, &logged)
		}
	}
}

func TestRedirectKeepsHostPathAndQuery(t *testing.T) {
	registry := sites(t, "host: a.test", "host: '*.w.test'", "host: plain.test\nredirect_http: false")
	h := Redirect(registry, 0, refuse)(http.HandlerFunc(reached))
	h8443 := Redirect(registry, 8443, refuse)(http.HandlerFunc(reached))
	for _, c := range []struct {
		h              http.Handler
		method, target string
		host           string
		status         int
		location, body string
	}{
		{h, "GET", "/x%2Fy?q=1&r=%20", "a.test", 308, "https://a.test/x%2Fy?q=1&r=%20", ""},
		{h, "POST", "/", "A.TEST.:80", 308, "https://a.test/", ""},
		{h, "GET", "//evil.example/", "x.w.test", 308, "https://x.w.test//evil.example/", ""},
		{h8443, "GET", "/", "a.test:8080", 308, "https://a.test:8443/", ""},
		{h, "GET", "/", "plain.test", 200, "", "reached"},
		{h, "GET", "/", "b.test", 404, "", "no_such_site"},
		{h, "GET", "/", "a@b", 400, "", "bad_host"},
		{h, "GET", "/", "127.0.0.1", 400, "", "bad_host"},
		{h, "OPTIONS", "*", "a.test", 400, "", "bad_request"},
	} {
		w := ask(c.h, c.method, c.target, func(r *http.Request) { r.Host = c.host })
		if w.Code != c.status || w.Header().Get("Location") != c.location || w.Body.String() != c.body {
			t.Errorf("%s %s on %s: %d %q %q, want %d %q %q", c.method, c.target, c.host, w.Code, w.Header().Get("Location"), w.Body, c.status, c.location, c.body)
		}
	}
}

func TestHSTSOnlyOverTLS(t *testing.T) {
	h := Rules(sites(t, "host: a.test\nhsts: {max_age: 1h}", "host: b.test"), NewLimiter(0), refuse)(http.HandlerFunc(reached))
	for target, want := range map[string]string{"https://a.test/": "max-age=3600", "http://a.test/": "", "https://b.test/": "", "https://c.test/": ""} {
		w := ask(h, "GET", target, nil)
		if got := w.Header().Get("Strict-Transport-Security"); got != want || w.Body.String() != "reached" {
			t.Errorf("%s: %q %q, want %q", target, got, w.Body, want)
		}
	}
}

func TestHeadsOverTheSitesLimitAreRefused(t *testing.T) {
	h := Rules(sites(t, "host: a.test\nmax_header: 1KiB"), NewLimiter(0), refuse)(http.HandlerFunc(reached))
	for size, want := range map[int]int{100: 200, 900: 200, 1100: 431} {
		w := ask(h, "GET", "https://a.test/", func(r *http.Request) { r.Header.Set("X-Pad", strings.Repeat("x", size)) })
		if w.Code != want {
			t.Errorf("%d bytes: %d, want %d", size, w.Code, want)
		}
	}
}

func TestClientsAreJudgedByTheirAddress(t *testing.T) {
	h := Rules(sites(t, `
host: a.test
allow: [192.0.2.0/24, 10.0.0.0/8, "2001:db8::/32"]
deny: [192.0.2.66, 10.6.6.0/24]
trusted_proxies: [192.0.2.9, 10.0.0.1]
`), NewLimiter(0), refuse)(http.HandlerFunc(reached))
	for name, c := range map[string]struct {
		remote, forwarded string
		want              int
	}{
		"allowed":                        {"192.0.2.1:1", "", 200},
		"allowed, IPv6":                  {"[2001:db8::1]:1", "", 200},
		"allowed, IPv4 in IPv6":          {"[::ffff:192.0.2.1]:1", "", 200},
		"denied":                         {"192.0.2.66:1", "", 403},
		"not allowed":                    {"198.51.100.1:1", "", 403},
		"forged by a client":             {"198.51.100.1:1", "192.0.2.1", 403},
		"told by a proxy":                {"192.0.2.9:1", "198.51.100.1", 403},
		"told by a proxy, good":          {"192.0.2.9:1", "192.0.2.1", 200},
		"forged before a proxy":          {"192.0.2.9:1", "192.0.2.1, 198.51.100.1", 403},
		"through two proxies":            {"192.0.2.9:1", "10.6.6.6, 10.0.0.1", 403},
		"nonsense behind a proxy":        {"192.0.2.9:1", "nonsense", 200},
		"no address":                     {"pipe", "", 403},
		"nonsense, then a denied client": {"192.0.2.9:1", "nonsense, 192.0.2.66", 403},
	} {
		w := ask(h, "GET", "https://a.test/", func(r *http.Request) {
			r.RemoteAddr = c.remote
			if c.forwarded != "" {
				r.Header.Set("X-Forwarded-For", c.forwarded)
			}
		})
		if w.Code != c.want {
			t.Errorf("%s: %d, want %d", name, w.Code, c.want)
		}
	}
}

func TestE9RateLimitIsPerClientOrSite(t *testing.T) {
	h := Rules(sites(t, "host: a.test\nrate_limit: {requests_per_second: 0.01, burst: 3}",
		"host: b.test\nrate_limit: {requests_per_second: 0.01, burst: 3, per: site}"), NewLimiter(0), refuse)(http.HandlerFunc(reached))
	from := func(host, remote string) *httptest.ResponseRecorder {
		return ask(h, "GET", "https://"+host+"/", func(r *http.Request) { r.RemoteAddr = remote })
	}
	for i := range 4 {
		w := from("a.test", fmt.Sprintf("192.0.2.1:%d", i+1))
		if want := map[bool]int{true: 200, false: 429}[i < 3]; w.Code != want {
			t.Errorf("request %d: %d, want %d", i, w.Code, want)
		}
		if w.Code == 429 && (w.Header().Get("Retry-After") == "" || w.Body.String() != "rate_limited") {
			t.Errorf("refused with %v %q", w.Header(), w.Body)
		}
	}
	if w := from("a.test", "192.0.2.2:1"); w.Code != 200 {
		t.Errorf("another client: %d", w.Code)
	}
	for i := range 4 {
		w := from("b.test", fmt.Sprintf("192.0.2.%d:1", i+1))
		if want := map[bool]int{true: 200, false: 429}[i < 3]; w.Code != want {
			t.Errorf("site's request %d: %d, want %d", i, w.Code, want)
		}
	}
	for i := range 4 { // one subscriber's /64
		w := from("a.test", fmt.Sprintf("[2001:db8::%d]:1", i+1))
		if want := map[bool]int{true: 200, false: 429}[i < 3]; w.Code != want {
			t.Errorf("IPv6 request %d: %d, want %d", i, w.Code, want)
		}
	}
}

func TestTheLimitersMemoryIsBounded(t *testing.T) {
	l := NewLimiter(640)
	s, _ := sites(t, "host: a.test").Lookup("a.test")
	rate := site.Rate{PerSecond: 1, Burst: 1, PerClient: true}
	for i := range 10_000 {
		l.take(s, netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), rate, time.Now())
	}
	n := 0
	for i := range l.shards {
		n += len(l.shards[i].buckets)
	}
	if n > 640 {
		t.Fatalf("%d buckets, want at most 640", n)
	}
}

func TestTokensComeBack(t *testing.T) {
	l := NewLimiter(0)
	s, _ := sites(t, "host: a.test").Lookup("a.test")
	rate := site.Rate{PerSecond: 2, Burst: 1}
	now := time.Now()
	if wait := l.take(s, netip.Addr{}, rate, now); wait != 0 {
		t.Fatalf("wait %v", wait)
	}
	for range 5 { // being refused costs nothing
		if wait := l.take(s, netip.Addr{}, rate, now); wait != 500*time.Millisecond {
			t.Fatalf("wait %v, want 500ms", wait)
		}
	}
	if wait := l.take(s, netip.Addr{}, rate, now.Add(501*time.Millisecond)); wait != 0 {
		t.Fatalf("wait %v after the token came back", wait)
	}
}

func record() *proxy.Record {
	return &proxy.Record{
		Start: time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC), Duration: 1500 * time.Microsecond, RequestID: "id", Site: "*.test", Host: "a.test",
		Method: "GET", Path: "/x", Proto: "HTTP/2.0", Remote: "192.0.2.1:1", UserAgent: "agent \"x\"\n\xff", Status: 200, BytesIn: 1, BytesOut: 2,
		Backend: "b", Tunnel: "t", Attempts: 1, Parked: time.Second, Code: "c", Err: errors.New("e"),
	}
}

func TestAccessLogWritesOneJSONLineARequest(t *testing.T) {
	var out bytes.Buffer
	l, err := NewAccessLog(AccessLogConfig{}, &out, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	long := record()
	long.Path = "/" + strings.Repeat("p", 5000)
	l.Log(record())
	l.Log(long)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Run(ctx); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 || len(lines[1]) > 2000 {
		t.Fatalf("%d lines, the second of %d bytes", len(lines), len(lines[1]))
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(lines[0]), &got); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{
		"time": "2026-01-02T03:04:05.000006Z", "msg": "request", "site": "*.test", "host": "a.test", "method": "GET", "path": "/x", "proto": "HTTP/2.0",
		"status": 200.0, "bytes_in": 1.0, "bytes_out": 2.0, "duration": 0.0015, "remote": "192.0.2.1:1", "request_id": "id", "backend": "b",
		"tunnel": "t", "attempts": 1.0, "parked": 1.0, "code": "c", "user_agent": "agent \"x\"\n\ufffd", "err": "e",
	} {
		if got[key] != want {
			t.Errorf("%s is %v, want %v", key, got[key], want)
		}
	}
}

func TestAccessLogThroughSlogHasTheSameKeys(t *testing.T) {
	var own, slogged bytes.Buffer
	l, _ := NewAccessLog(AccessLogConfig{}, &own, slog.New(slog.DiscardHandler))
	l.Log(record())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_ = l.Run(ctx)
	LogTo(slog.New(slog.NewJSONHandler(&slogged, nil)))(record())
	var a, b map[string]any
	if err := errors.Join(json.Unmarshal(own.Bytes(), &a), json.Unmarshal(slogged.Bytes(), &b)); err != nil {
		t.Fatal(err)
	}
	delete(b, "level")
	for key := range a {
		if _, ok := b[key]; !ok {
			t.Errorf("slog misses %s", key)
		}
	}
	if len(a) != len(b) {
		t.Errorf("%d keys and %d", len(a), len(b))
	}
}

// stuck is a writer that waits.
type stuck struct {
	release chan struct{}
	began   chan struct{}
	once    sync.Once
}

func (s *stuck) Write(p []byte) (int, error) {
	s.once.Do(func() { close(s.began) })
	<-s.release
	return len(p), nil
}

func TestE10ASlowWriterCostsLinesNotRequests(t *testing.T) {
	w := &stuck{release: make(chan struct{}), began: make(chan struct{})}
	l, err := NewAccessLog(AccessLogConfig{Buffer: 4 << 10, Every: time.Millisecond}, w, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	l.Log(record())
	<-w.began
	for range 1000 {
		l.Log(record()) // must not block
	}
	if l.Dropped() == 0 {
		t.Error("nothing was dropped")
	}
	close(w.release)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if cap(l.pending) > 16<<10 {
		t.Errorf("%d bytes were kept", cap(l.pending))
	}
}

func BenchmarkAccessLog(b *testing.B) {
	l, _ := NewAccessLog(AccessLogConfig{}, io.Discard, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	defer func() { cancel(); <-done }()
	rec := record()
	rec.UserAgent, rec.Err = "curl/8", nil
	b.ReportAllocs()
	for b.Loop() {
		l.Log(rec)
	}
}

func BenchmarkRules(b *testing.B) {
	h := Rules(sites(b, "host: a.test\nhsts: {}\nrate_limit: {requests_per_second: 1000000}"), NewLimiter(0), refuse)(
		http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	r := httptest.NewRequest("GET", "https://a.test/", nil)
	r.TLS = &tls.ConnectionState{}
	w := httptest.NewRecorder()
	b.ReportAllocs()
	for b.Loop() {
		h.ServeHTTP(w, r)
	}
}
