package upstream_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"wormhole/edge/upstream"
	"wormhole/edge/upstream/upstreamtest"
	"wormhole/shared/protocol"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newPool returns a pool with a fast clock over an app that runs serve.
func newPool(t testing.TB, o upstream.Opener, cfg upstream.Config) *upstream.Pool {
	t.Helper()
	if cfg.Tick == 0 {
		cfg.Tick = 10 * time.Millisecond
	}
	p := upstream.New(o, cfg)
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func get(target string) *upstream.Request {
	return &upstream.Request{Method: "GET", Target: target, Host: "app.test"}
}

func queued() *upstream.Request {
	r := get("/")
	r.Queue = true
	return r
}

// exchange sends r and returns the status and the whole body.
func exchange(t testing.TB, p *upstream.Pool, r *upstream.Request) (int, string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	x, err := p.Do(ctx, r)
	if err != nil {
		return 0, "", err
	}
	defer x.Close()
	var body []byte
	for {
		b, err := x.Next(ctx)
		body = append(body, b...)
		if errors.Is(err, io.EOF) {
			return x.Status, string(body), nil
		}
		if err != nil {
			return x.Status, string(body), err
		}
	}
}

func mustGet(t testing.TB, p *upstream.Pool, target, want string) {
	t.Helper()
	status, body, err := exchange(t, p, get(target))
	if err != nil || status != 200 || body != want {
		t.Fatalf("GET %s: got %d %q %v, want 200 %q", target, status, body, err, want)
	}
}

// answer serves fixed bytes to every request without a body.
func answer(raw string) func(net.Conn) {
	return func(c net.Conn) {
		r := bufio.NewReader(c)
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, req.Body)
			if _, err := io.WriteString(c, raw); err != nil {
				return
			}
		}
	}
}

func TestCleanExchangesShareOneStream(t *testing.T) {
	for name, raw := range map[string]string{
		"content length": "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
		"chunked":        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nX-Sum: 1\r\n\r\n",
		"bare LF head":   "HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
		"no reason":      "HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello",
	} {
		t.Run(name, func(t *testing.T) {
			o := upstreamtest.New(t, answer(raw))
			p := newPool(t, o, upstream.Config{})
			for range 20 {
				mustGet(t, p, "/", "hello")
			}
			if n := o.Opened(); n != 1 {
				t.Errorf("opened %d streams for 20 requests, want 1", n)
			}
		})
	}
}

func TestDoubtfulExchangesNeverShareAStream(t *testing.T) {
	const plain = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
	body := func(method string) *upstream.Request {
		return &upstream.Request{Method: method, Target: "/", Host: "app.test", Body: []byte("x")}
	}
	for name, c := range map[string]struct {
		raw string
		req *upstream.Request
	}{
		"connection close":  {"HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 5\r\n\r\nhello", get("/")},
		"HTTP/1.0":          {"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello", get("/")},
		"extra bytes":       {plain + "x", get("/")},
		"second answer":     {plain + plain, get("/")},
		"body on GET":       {plain, body("GET")},
		"body on DELETE":    {plain, body("DELETE")},
		"body on OPTIONS":   {plain, body("OPTIONS")},
		"keep-alive of 1 s": {"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1\r\nContent-Length: 5\r\n\r\nhello", get("/")},
		"expectation": {plain, &upstream.Request{
			Method: "POST", Target: "/", Host: "a", Stream: strings.NewReader("x"), Length: 1, Expect: true,
		}},
	} {
		t.Run(name, func(t *testing.T) {
			o := upstreamtest.New(t, answer(c.raw))
			p := newPool(t, o, upstream.Config{})
			for range 3 {
				status, got, err := exchange(t, p, c.req)
				if err != nil || status != 200 || got != "hello" {
					t.Fatalf("got %d %q %v, want 200 hello", status, got, err)
				}
				if s, ok := c.req.Stream.(*strings.Reader); ok {
					s.Reset("x")
				}
			}
			if n := o.Opened(); n != 3 {
				t.Errorf("opened %d streams for 3 requests, want 3", n)
			}
		})
	}
}

// D11: whatever an app sends, its answer is refused or exact, and the next user
// gets the answer to their own request.
func TestD11BadAnswersAreRefused(t *testing.T) {
	for name, raw := range map[string]string{
		"CL and TE":              "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"TE and CL":              "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
		"two lengths":            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
		"two equal lengths":      "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
		"list of lengths":        "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello",
		"signed length":          "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
		"hex length":             "HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\nhello",
		"empty length":           "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nhello",
		"huge length":            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nhello",
		"gzip, chunked":          "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
		"identity":               "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\nhello",
		"TE twice":               "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"TE in HTTP/1.0":         "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"short body":             "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello",
		"short chunk":            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhello",
		"no last chunk":          "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
		"signed chunk":           "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n",
		"hex prefix":             "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
		"bare LF chunk":          "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
		"bare LF after data":     "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n",
		"CR in extension":        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a\rb\r\nhello\r\n0\r\n\r\n",
		"long extension":         "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;" + strings.Repeat("a", 17<<10) + "\r\nhello\r\n0\r\n\r\n",
		"long size":              "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n00000000000000005\r\nhello\r\n0\r\n\r\n",
		"junk after data":        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n",
		"1,000 x 103":            strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 1000) + "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"101 unasked":            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
		"2 MiB head":             "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", 2<<20) + "\r\n\r\n",
		"NUL in value":           "HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n",
		"CR in value":            "HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 0\r\n\r\n",
		"space before colon":     "HTTP/1.1 200 OK\r\nX : a\r\nContent-Length: 0\r\n\r\n",
		"folding":                "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
		"no colon":               "HTTP/1.1 200 OK\r\nX\r\nContent-Length: 0\r\n\r\n",
		"HTTP/2.0":               "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
		"not HTTP":               "SSH-2.0-OpenSSH\r\n\r\n",
		"status of two digits":   "HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
		"status with a sign":     "HTTP/1.1 +20 OK\r\nContent-Length: 0\r\n\r\n",
		"empty line first":       "\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"bad trailer":            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX Y: 1\r\n\r\n",
		"close in head":          "HTTP/1.1 200 OK\r\nContent-Le",
		"nothing":                "",
		"length taken by option": "HTTP/1.1 200 OK\r\nConnection: content-length\r\nContent-Length: 6\r\n\r\nhello",
	} {
		t.Run(name, func(t *testing.T) {
			var good atomic.Bool
			o := upstreamtest.New(t, func(c net.Conn) {
				r := bufio.NewReader(c)
				for {
					req, err := http.ReadRequest(r)
					if err != nil {
						return
					}
					if good.Load() {
						_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(req.URL.Path), req.URL.Path)
						continue
					}
					_, _ = io.WriteString(c, raw)
					return
				}
			})
			p := newPool(t, o, upstream.Config{})
			status, body, err := exchange(t, p, get("/first"))
			var failure *upstream.Error
			if !errors.As(err, &failure) {
				t.Fatalf("got %d %q and error %v, want an error", status, body, err)
			}
			good.Store(true)
			for i := range 5 {
				want := fmt.Sprintf("/next%d", i)
				mustGet(t, p, want, want)
			}
		})
	}
}

func TestBodyUntilCloseEndsOnlyByEnd(t *testing.T) {
	const head = "HTTP/1.0 200 OK\r\n\r\n"
	t.Run("END", func(t *testing.T) {
		o := upstreamtest.New(t, func(c net.Conn) {
			_, _ = http.ReadRequest(bufio.NewReader(c))
			_, _ = io.WriteString(c, head+"hello")
		})
		mustGet(t, newPool(t, o, upstream.Config{}), "/", "hello")
	})
	t.Run("abort", func(t *testing.T) {
		o := upstreamtest.New(t, func(c net.Conn) {
			_, _ = http.ReadRequest(bufio.NewReader(c))
			_, _ = io.WriteString(c, head+"hello")
			_, _ = c.Read(make([]byte, 1)) // until the tunnel dies
		})
		p := newPool(t, o, upstream.Config{})
		x, err := p.Do(t.Context(), get("/"))
		if err != nil {
			t.Fatal(err)
		}
		defer x.Close()
		if b, err := x.Next(t.Context()); string(b) != "hello" || err != nil {
			t.Fatalf("got %q %v, want hello", b, err)
		}
		o.Kill()
		var failure *upstream.Error
		if _, err := x.Next(t.Context()); !errors.As(err, &failure) || failure.Stage != upstream.Answered {
			t.Fatalf("got %v, want an error of an answered exchange", err)
		}
	})
}

func TestTrailersPassBothWays(t *testing.T) {
	o := upstreamtest.NewHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		body, _ := io.ReadAll(r.Body)
		_, _ = w.Write(body)
		w.Header().Set("X-Sum", r.Trailer.Get("X-Count"))
	}))
	for _, h2c := range []bool{false, true} {
		t.Run(fmt.Sprintf("h2c=%v", h2c), func(t *testing.T) {
			p := newPool(t, o, upstream.Config{})
			trailer := http.Header{"X-Count": {"5"}}
			x, err := p.Do(t.Context(), &upstream.Request{
				Method: "POST", Target: "/", Host: "app.test", Stream: strings.NewReader("hello"), Length: -1,
				Trailer: func() http.Header { return trailer }, Announced: true, H2C: h2c,
			})
			if err != nil {
				t.Fatal(err)
			}
			defer x.Close()
			var body []byte
			for {
				b, err := x.Next(t.Context())
				body = append(body, b...)
				if err != nil {
					break
				}
			}
			want := upstream.Field{Name: "X-Sum", Value: "5"}
			if got := x.Trailers(); string(body) != "hello" || len(got) != 1 || got[0] != want {
				t.Errorf("got %q with trailers %v, want hello with %v", body, got, want)
			}
		})
	}
}

func TestBodiesOfAnySizePass(t *testing.T) {
	o := upstreamtest.NewHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		_, _ = io.Copy(w, r.Body)
	}))
	for _, size := range []int{0, 1, 4000, 5000, 64 << 10, 3 << 20} {
		for _, mode := range []string{"memory", "length", "chunked", "h2c"} {
			t.Run(fmt.Sprintf("%s %d", mode, size), func(t *testing.T) {
				p := newPool(t, o, upstream.Config{})
				data := bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size]
				r := &upstream.Request{Method: "POST", Target: "/", Host: "app.test"}
				switch mode {
				case "memory":
					r.Body = data
				case "length":
					r.Stream, r.Length = bytes.NewReader(data), int64(size)
				default:
					r.Stream, r.Length, r.H2C = bytes.NewReader(data), -1, mode == "h2c"
				}
				_, got, err := exchange(t, p, r)
				if err != nil || got != string(data) {
					t.Fatalf("got %d bytes, %v; want %d", len(got), err, size)
				}
			})
		}
	}
}

func TestStaleStreamIsProvenUndelivered(t *testing.T) {
	// The app answers once, then closes as the second request arrives, unread.
	closeNow := make(chan struct{})
	o := upstreamtest.New(t, func(c net.Conn) {
		r := bufio.NewReader(c)
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
		<-closeNow
	})
	p := newPool(t, blind{o}, upstream.Config{})
	mustGet(t, p, "/", "hello")
	post := &upstream.Request{Method: "POST", Target: "/", Host: "app.test", Body: []byte("x")}
	time.AfterFunc(20*time.Millisecond, func() { close(closeNow) })
	_, _, err := exchange(t, p, post)
	var failure *upstream.Error
	if !errors.As(err, &failure) || failure.Stage != upstream.NotSent || !failure.Kept {
		t.Fatalf("got %v, want a kept stream's error with nothing sent", err)
	}
}

// blind hides an opener's Quiet, so that a dead stream is found only by using it.
type blind struct{ *upstreamtest.Opener }

func (b blind) OpenStream(ctx context.Context, h protocol.StreamHeader) (upstream.Stream, error) {
	s, err := b.Opener.OpenStream(ctx, h)
	if err != nil {
		return nil, err
	}
	return sightless{s}, nil
}

type sightless struct{ upstream.Stream }

func TestStreamClosedByTheAppIsNotUsedAgain(t *testing.T) {
	for _, seeing := range []bool{true, false} {
		t.Run(fmt.Sprintf("Prober=%v", seeing), func(t *testing.T) {
			answered, closed := make(chan struct{}), make(chan struct{})
			o := upstreamtest.New(t, func(c net.Conn) {
				_, _ = http.ReadRequest(bufio.NewReader(c))
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
				<-answered
				_ = c.Close()
				closed <- struct{}{}
			})
			var opener upstream.Opener = o
			if !seeing {
				opener = blind{o}
			}
			p := newPool(t, opener, upstream.Config{Tick: time.Hour})
			for range 5 {
				mustGet(t, p, "/", "hello")
				answered <- struct{}{}
				<-closed
				time.Sleep(25 * time.Millisecond) // beyond what is trusted without a look
			}
		})
	}
}

func TestDrainClosesHTTP2WhenItsExchangesEnd(t *testing.T) {
	release := make(chan struct{})
	o := upstreamtest.NewHTTP(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	p := newPool(t, o, upstream.Config{})
	r := get("/")
	r.H2C = true
	var wg sync.WaitGroup
	wg.Go(func() {
		if status, _, err := exchange(t, p, r); err != nil || status != 200 {
			t.Errorf("got %d %v, want 200", status, err)
		}
	})
	waitFor(t, func() bool { return o.Open() == 1 })
	p.CloseIdle()
	close(release)
	wg.Wait()
	waitFor(t, func() bool { return o.Open() == 0 })
}

func TestIdleStreamsAreClosedInTimeWithoutReset(t *testing.T) {
	ended := make(chan error, 1)
	o := upstreamtest.New(t, func(c net.Conn) {
		r := bufio.NewReader(c)
		_, _ = http.ReadRequest(r)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
		_, err := r.ReadByte()
		ended <- err
	})
	p := newPool(t, o, upstream.Config{IdleTimeout: 30 * time.Millisecond})
	mustGet(t, p, "/", "hello")
	if err := <-ended; !errors.Is(err, io.EOF) {
		t.Errorf("the app read %v, want EOF", err)
	}
	waitFor(t, func() bool { return o.Open() == 0 })
}

func TestCloseIdleLetsExchangesFinish(t *testing.T) {
	release := make(chan struct{})
	o := upstreamtest.NewHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			<-release
		}
		_, _ = io.WriteString(w, "hello")
	}))
	p := newPool(t, o, upstream.Config{})
	var wg sync.WaitGroup
	wg.Go(func() { mustGet(t, p, "/slow", "hello") })
	waitFor(t, func() bool { active, _ := p.Stats(); return active == 1 })
	mustGet(t, p, "/", "hello")
	p.CloseIdle()
	close(release)
	wg.Wait()
	waitFor(t, func() bool { return o.Open() == 0 })
}

func TestAfterCloseIdleNoRequestIsSent(t *testing.T) {
	var drained, late atomic.Bool
	o := upstreamtest.NewHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if drained.Load() {
			late.Store(true)
		}
		_, _ = io.WriteString(w, "hello")
	}))
	for range 20 {
		drained.Store(false)
		p := newPool(t, o, upstream.Config{})
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for {
					_, _, err := exchange(t, p, get("/"))
					if err == nil {
						continue
					}
					var failure *upstream.Error
					var refused *upstream.Refused
					if !errors.As(err, &failure) || failure.Stage != upstream.NotSent || !errors.As(err, &refused) || refused.Answer != protocol.AnswerDraining {
						t.Errorf("got %v, want a refusal before anything is sent", err)
					}
					return
				}
			})
		}
		waitFor(t, func() bool { return o.Opened() > 0 })
		p.CloseIdle()
		// Whoever was being answered may finish.
		waitFor(t, func() bool { active, _ := p.Stats(); return active == 0 })
		drained.Store(true)
		wg.Wait()
	}
	if late.Load() {
		t.Error("a request reached the app after the drain")
	}
}

func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatal("did not happen within 5 s")
		}
		time.Sleep(time.Millisecond)
	}
}

func TestSilentAppTimesOut(t *testing.T) {
	for name, raw := range map[string]string{
		"before the head": "",
		"in the body":     "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
	} {
		t.Run(name, func(t *testing.T) {
			o := upstreamtest.New(t, func(c net.Conn) {
				_, _ = io.WriteString(c, raw)
				_, _ = io.Copy(io.Discard, c)
			})
			p := newPool(t, o, upstream.Config{})
			r := get("/")
			r.Timeouts = upstream.Timeouts{Header: 50 * time.Millisecond, Silence: 50 * time.Millisecond}
			_, _, err := exchange(t, p, r)
			var failure *upstream.Error
			if !errors.As(err, &failure) || failure.Cause != upstream.Timeout {
				t.Errorf("got %v, want a timeout", err)
			}
		})
	}
}

func TestCanceledExchangeReachesTheApp(t *testing.T) {
	for _, h2c := range []bool{false, true} {
		t.Run(fmt.Sprintf("h2c=%v", h2c), func(t *testing.T) {
			began, gone := make(chan struct{}), make(chan struct{})
			o := upstreamtest.NewHTTP(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				close(began)
				<-r.Context().Done()
				close(gone)
			}))
			p := newPool(t, o, upstream.Config{})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go func() { <-began; cancel() }()
			r := get("/")
			r.H2C = h2c
			_, err := p.Do(ctx, r)
			var failure *upstream.Error
			if !errors.As(err, &failure) || failure.Cause != upstream.Canceled {
				t.Fatalf("got %v, want canceled", err)
			}
			select {
			case <-gone:
			case <-time.After(time.Second):
				t.Fatal("the app did not see it within 1 s")
			}
		})
	}
}

func TestC5BurstBeyondTheStreamsQueues(t *testing.T) {
	o := upstreamtest.NewHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "hello")
	}))
	o.Limit.Store(16)
	p := newPool(t, o, upstream.Config{})
	var wg sync.WaitGroup
	for range 1000 {
		wg.Go(func() {
			if status, body, err := exchange(t, p, queued()); err != nil || status != 200 || body != "hello" {
				t.Errorf("got %d %q %v, want 200 hello", status, body, err)
			}
		})
	}
	wg.Wait()
}

func TestEarlyAnswerArrivesBeforeTheBodyIsSent(t *testing.T) {
	o := upstreamtest.New(t, func(c net.Conn) {
		_, _ = http.ReadRequest(bufio.NewReader(c))
		_, _ = io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
		_, _ = io.Copy(io.Discard, c)
	})
	p := newPool(t, o, upstream.Config{})
	body, feed := io.Pipe()
	r := &upstream.Request{Method: "POST", Target: "/", Host: "a", Stream: body, Length: 1 << 30, Client: closer{body}}
	status, got, err := exchange(t, p, r)
	if err != nil || status != 413 || got != "big" {
		t.Fatalf("got %d %q %v, want 413 big", status, got, err)
	}
	if _, err := feed.Write([]byte("x")); err == nil {
		t.Error("the body is still read after the exchange")
	}
	if active, idle := p.Stats(); active+idle != 0 {
		t.Errorf("%d active, %d idle streams after an early answer, want none", active, idle)
	}
}

// closer is a client whose body is a pipe.
type closer struct{ *io.PipeReader }

func (c closer) InterruptRead()  { _ = c.Close() }
func (c closer) InterruptWrite() {}

func TestExpectationWaitsForTheApp(t *testing.T) {
	read := new(atomic.Bool)
	o := upstreamtest.New(t, func(c net.Conn) {
		req, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil || req.Header.Get("Expect") != "100-continue" || read.Load() {
			_, _ = io.WriteString(c, "HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n")
			return
		}
		if req.URL.Path == "/no" {
			_, _ = io.WriteString(c, "HTTP/1.1 401 X\r\nContent-Length: 0\r\n\r\n")
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
		b, _ := io.ReadAll(req.Body)
		_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(b), b)
	})
	p := newPool(t, o, upstream.Config{})
	for path, want := range map[string]int{"/yes": 200, "/no": 401} {
		read.Store(false)
		r := &upstream.Request{
			Method: "POST", Target: path, Host: "a", Length: 5, Expect: true,
			Stream: readerFunc(func(b []byte) (int, error) { read.Store(true); return copy(b, "hello"), io.EOF }),
		}
		status, _, err := exchange(t, p, r)
		if err != nil || status != want || read.Load() != (want == 200) {
			t.Errorf("%s: got %d %v, body read: %v; want %d", path, status, err, read.Load(), want)
		}
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

func TestUpgradeHandsOverTheStream(t *testing.T) {
	o := upstreamtest.New(t, func(c net.Conn) {
		_, _ = http.ReadRequest(bufio.NewReader(c))
		_, _ = io.WriteString(c, "HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst")
		_, _ = io.Copy(c, c)
	})
	p := newPool(t, o, upstream.Config{})
	r := get("/")
	r.Upgrade = "websocket"
	x, err := p.Do(t.Context(), r)
	if err != nil || !x.Upgraded {
		t.Fatalf("got %v, want an upgrade", err)
	}
	s, first := x.Hijack()
	_, _ = s.Write([]byte("echo"))
	echo := make([]byte, 4)
	if _, err := io.ReadFull(s, echo); err != nil || string(first)+string(echo) != "firstecho" {
		t.Errorf("got %q %q %v, want first and echo", first, echo, err)
	}
	x.Close()
	waitFor(t, func() bool { return o.Open() == 0 })
}

func TestRequestsThatWouldBeTwoAreNotWritten(t *testing.T) {
	o := upstreamtest.New(t, answer("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
	p := newPool(t, o, upstream.Config{})
	for name, r := range map[string]*upstream.Request{
		"method":      {Method: "GET /x HTTP/1.1\r\nX: ", Target: "/", Host: "a"},
		"target":      {Method: "GET", Target: "/ HTTP/1.1\r\nX: ", Host: "a"},
		"no slash":    {Method: "GET", Target: "http://b/", Host: "a"},
		"host":        {Method: "GET", Target: "/", Host: "a\r\nX: b"},
		"name":        {Method: "GET", Target: "/", Host: "a", Header: http.Header{"X\r\nY": {"1"}}},
		"empty name":  {Method: "GET", Target: "/", Host: "a", Header: http.Header{"": {"1"}}},
		"value":       {Method: "GET", Target: "/", Host: "a", Header: http.Header{"X": {"1\r\nY: 2"}}},
		"NUL":         {Method: "GET", Target: "/", Host: "a", Header: http.Header{"X": {"1\x00"}}},
		"edge's own":  {Method: "GET", Target: "/", Host: "a", Set: []upstream.Field{{Name: "X", Value: "\n"}}},
		"h2c as well": {Method: "GET", Target: "/", Host: "a", Header: http.Header{"X": {"1\n"}}, H2C: true},
	} {
		_, _, err := exchange(t, p, r)
		var failure *upstream.Error
		if !errors.As(err, &failure) || failure.Cause != upstream.BadRequest || failure.Stage != upstream.NotSent {
			t.Errorf("%s: got %v, want a bad request", name, err)
		}
	}
	if n := o.Opened(); n != 0 {
		t.Errorf("opened %d streams, want none", n)
	}
}

func TestRefusalSaysNothingWasSent(t *testing.T) {
	o := upstreamtest.New(t, answer(""))
	o.Refuse(&upstream.Refused{Answer: protocol.AnswerAppDown})
	p := newPool(t, o, upstream.Config{})
	for _, h2c := range []bool{false, true} {
		r := get("/")
		r.H2C = h2c
		_, _, err := exchange(t, p, r)
		var failure *upstream.Error
		var refused *upstream.Refused
		if !errors.As(err, &failure) || failure.Stage != upstream.NotSent || failure.Cause != upstream.Unreachable || !errors.As(err, &refused) {
			t.Errorf("h2c=%v: got %v, want a refusal with nothing sent", h2c, err)
		}
	}
}

func TestCloseEndsExchangesAndIsIdempotent(t *testing.T) {
	o := upstreamtest.New(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	p := newPool(t, o, upstream.Config{})
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, _, err := exchange(t, p, get("/")); err == nil {
			t.Error("an exchange survived Close")
		}
	})
	waitFor(t, func() bool { return o.Open() == 1 })
	_ = p.Close()
	_ = p.Close()
	wg.Wait()
	if _, _, err := exchange(t, p, get("/")); err == nil {
		t.Error("a closed pool took a request")
	}
	waitFor(t, func() bool { return o.Open() == 0 })
}

// placed is a tunnel of two connections: streams are opened on the one without bulk.
type placed struct {
	*upstreamtest.Opener
	bulk  atomic.Int32 // the connection with bulk: 1, 2, or 0 for none
	rests atomic.Int32
}

type placedStream struct {
	upstream.Stream
	tunnel *placed
	on     int32
}

func (p *placed) OpenStream(ctx context.Context, h protocol.StreamHeader) (upstream.Stream, error) {
	s, err := p.Opener.OpenStream(ctx, h)
	if err != nil {
		return nil, err
	}
	on := int32(1)
	if p.bulk.Load() == 1 {
		on = 2
	}
	return &placedStream{s, p, on}, nil
}

func (s *placedStream) Behind() bool { return s.tunnel.bulk.Load() == s.on }
func (s *placedStream) Rest()        { s.tunnel.rests.Add(1) }

func TestStreamsBehindBulkAreLeftUntilItIsOver(t *testing.T) {
	o := &placed{Opener: upstreamtest.New(t, answer("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))}
	p := newPool(t, o, upstream.Config{})
	mustGet(t, p, "/", "ok")
	o.bulk.Store(1)
	for range 5 {
		mustGet(t, p, "/", "ok")
	}
	if n := o.Opened(); n != 2 {
		t.Errorf("opened %d streams, want one more beside bulk", n)
	}
	if _, idle := p.Stats(); idle != 2 {
		t.Errorf("%d streams are kept, want that behind bulk too", idle)
	}
	o.bulk.Store(2)
	mustGet(t, p, "/", "ok")
	o.bulk.Store(0)
	mustGet(t, p, "/", "ok")
	if n := o.Opened(); n != 2 {
		t.Errorf("opened %d streams, want the kept ones used again", n)
	}
	if n := o.rests.Load(); n != 8 {
		t.Errorf("%d of 8 exchanges were said to be over", n)
	}
}

func TestAStreamBehindBulkIsBetterThanNone(t *testing.T) {
	o := &placed{Opener: upstreamtest.New(t, answer("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))}
	p := newPool(t, o, upstream.Config{})
	mustGet(t, p, "/", "ok")
	o.bulk.Store(1)
	o.Refuse(errors.New("no more"))
	mustGet(t, p, "/", "ok")
}
