package oracle

import (
	"bufio"
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// startApp serves h over TLS for h1 and h2 and returns a client of it.
func startApp(t *testing.T, h http.Handler, proto string) *Client {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.EnableHTTP2 = proto == "h2"
	s.StartTLS()
	t.Cleanup(s.Close)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	return newClient(t, ClientConfig{Proto: proto, URL: "https://example.com", Roots: roots, Addr: At(s.Listener.Addr().String())})
}

func newClient(t *testing.T, cfg ClientConfig) *Client {
	t.Helper()
	c, err := NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// ask runs a load until n requests were sent and all streams have said something.
func ask(t *testing.T, plan Plan, n int64) *Run {
	t.Helper()
	l := Start(plan)
	streams := int64(plan.WebSockets + plan.Events + plan.Chats)
	deadline := time.Now().Add(20 * time.Second)
	for l.Sent() < n || l.Open() < streams {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d requests were sent in time, %d of %d streams opened", l.Sent(), n, l.Open(), streams)
		}
		time.Sleep(5 * time.Millisecond)
	}
	time.Sleep(5 * plan.Every) // so that they say more
	return l.Stop()
}

func TestAnAppThatDoesNothingWrongPasses(t *testing.T) {
	log := NewLog()
	app := NewApp("statler", log)
	h1, h2 := startApp(t, app, "h1"), startApp(t, app, "h2")
	plan := Plan{
		Rate: 150, Clients: []*Client{h1, h2}, WebSockets: 3, WebSocketClients: []*Client{h1},
		Events: 3, EventClients: []*Client{h1, h2}, Chats: 3, ChatClients: []*Client{h2}, Every: 50 * time.Millisecond,
	}
	l := Start(plan)
	for deadline := time.Now().Add(30 * time.Second); l.Sent() < 100 || l.Talking() < 9; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d of 100 requests were sent in time, %d of 9 streams exchanged two messages", l.Sent(), l.Talking())
		}
	}
	run := l.Stop()
	r := Judge(run, log.Seen())
	if !r.Good() || r.Repeated != 0 || r.Cut != 0 || r.Streams != 9 || r.Sent < 109 {
		t.Errorf("report is not clean:\n%s", r)
	}
	for _, e := range run.Endings {
		if e.Messages < 2 {
			t.Errorf("%s %s exchanged only %d messages in %s", e.Kind, e.Proto, e.Messages, e.Ended-e.Opened)
		}
	}
}

func TestEveryKindOfHarmIsSeen(t *testing.T) {
	log := NewLog()
	app := NewApp("statler", log)
	cases := map[string]struct {
		proxy func(http.ResponseWriter, *http.Request)
		seen  func(*Report) bool
	}{
		"an error of the proxy": {
			func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusBadGateway) },
			func(r *Report) bool {
				return r.Failed == r.Sent && strings.Contains(r.Faults[0], "status 502, not from the app")
			},
		},
		"an app that was not asked": {
			func(w http.ResponseWriter, r *http.Request) { NewApp("impostor", NewLog()).ServeHTTP(w, r) },
			func(r *Report) bool { return r.Unseen == r.Sent && r.Failed == r.Sent },
		},
		"a truncated answer that looks whole": {
			change(app, func(b []byte) []byte { return b[:len(b)/2] }),
			func(r *Report) bool {
				return r.Failed == r.Sent && strings.Contains(r.Faults[0], "truncated and looks whole")
			},
		},
		"altered answers": {
			change(app, func(b []byte) []byte { b[3] ^= 1; return b }),
			func(r *Report) bool { return r.Failed == r.Sent && strings.Contains(r.Faults[0], "altered") },
		},
		"altered bodies": {
			func(w http.ResponseWriter, r *http.Request) {
				r.Body = io.NopCloser(io.MultiReader(strings.NewReader("x"), r.Body))
				change(app, func([]byte) []byte { // hides from the client what the app saw
					sent := Content(r.Header.Get(IDHeader), 8<<10)
					return fmt.Appendf(nil, "%d %s\n", len(sent), Hash(sent))
				})(w, r)
			},
			func(r *Report) bool { return strings.Contains(strings.Join(r.Faults, "\n"), "the app saw other bytes") },
		},
		"requests sent twice": {
			func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				for _, w := range []http.ResponseWriter{httptest.NewRecorder(), w} {
					r := r.Clone(r.Context())
					r.Body = io.NopCloser(strings.NewReader(string(body)))
					app.ServeHTTP(w, r)
				}
			},
			func(r *Report) bool { return r.Failed == 0 && r.Repeated == r.Sent && r.Duplicated > 0 && !r.Good() },
		},
		"a connection that breaks": {
			func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
			func(r *Report) bool { return r.Failed == r.Sent },
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			client := startApp(t, http.HandlerFunc(c.proxy), "h1")
			r := Judge(ask(t, Plan{Rate: 500, Clients: []*Client{client}}, 30), log.Seen())
			if r.Sent < 30 || !c.seen(r) {
				t.Errorf("the oracle did not see it:\n%s", r)
			}
		})
	}
}

// change passes the app's answers on changed.
func change(app http.Handler, f func([]byte) []byte) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, r *http.Request) {
		answer := httptest.NewRecorder()
		app.ServeHTTP(answer, r)
		w.Header().Set(AppHeader, answer.Header().Get(AppHeader))
		_, _ = w.Write(f(answer.Body.Bytes()))
	}
}

func TestSlowAnswersAreFailures(t *testing.T) {
	run := &Run{Results: []Result{{ID: "a", Kind: SmallGet, Took: SlowAfter + 1}, {ID: "b", Kind: SmallGet, Took: SlowAfter}}}
	r := Judge(run, Seen{"a": {Times: 1}, "b": {Times: 1}})
	if r.Slow != 1 || r.Failed != 1 {
		t.Errorf("%d slow and %d failed, want 1 and 1", r.Slow, r.Failed)
	}
}

// A server that closes a kept connection when the second request has arrived: Go's
// own client would send a GET again and hide it.
func TestClientsDoNotSendAgainWhatWasSent(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var requests atomic.Int32
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				in := bufio.NewReader(conn)
				for i := range 2 {
					if _, err := http.ReadRequest(in); err != nil {
						return
					}
					requests.Add(1)
					if i == 0 {
						_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
					}
				}
			})
		}
	})
	c := newClient(t, ClientConfig{Proto: "h1", URL: "http://example.com", Addr: At(l.Addr().String())})
	if r := c.Ask(t.Context(), Question{Path: "/"}); r.Err != nil || r.Status != 200 {
		t.Fatalf("first request: %d, %v", r.Status, r.Err)
	}
	if r := c.Ask(t.Context(), Question{Path: "/"}); r.Err == nil {
		t.Error("the second request was answered, want an error")
	}
	if n := requests.Load(); n != 2 || c.Dialed() != 1 {
		t.Errorf("%d requests on %d connections, want 2 on 1", n, c.Dialed())
	}
	_ = l.Close()
	c.Close()
	wg.Wait()
}

func TestAnEmptyBodyDoesNotReachTheWire(t *testing.T) {
	var length atomic.Int64
	var encoding atomic.Value
	h := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		length.Store(r.ContentLength)
		encoding.Store(fmt.Sprint(r.TransferEncoding))
	})
	c := startApp(t, h, "h1")
	if r := c.Ask(t.Context(), Question{Path: "/"}); r.Err != nil {
		t.Fatal(r.Err)
	}
	if length.Load() != 0 || encoding.Load() != "[]" {
		t.Errorf("GET has length %d and encoding %v, want none", length.Load(), encoding.Load())
	}
}

func TestLogsOfSeveralProcessesAreReadAsOne(t *testing.T) {
	dir := t.TempDir()
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	for _, path := range []string{one, one, two} {
		log, err := OpenLog(path)
		if err != nil {
			t.Fatal(err)
		}
		log.Arrived("app", "id1")
		log.Body("id1", 5, "abc")
		if err := log.Close(); err != nil {
			t.Fatal(err)
		}
	}
	seen, err := ReadLogs(one, two, filepath.Join(dir, "never written"))
	if err != nil {
		t.Fatal(err)
	}
	if s := seen["id1"]; s == nil || s.Times != 3 || s.Whole != 3 || s.Bytes != 5 || s.Hash != "abc" || s.Apps != "app,app,app" {
		t.Errorf("seen %+v", s)
	}
	if err := os.WriteFile(one, []byte("a id1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadLogs(one); err == nil {
		t.Error("half a line was read without an error")
	}
}

func TestServeLetsRequestsFinish(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	log := NewLog()
	served := make(chan error, 1)
	go func() { served <- NewApp("statler", log).Serve(ctx, l, 5*time.Second) }()
	c := newClient(t, ClientConfig{Proto: "h1", URL: "http://example.com", Addr: At(l.Addr().String())})
	load := Start(Plan{Rate: 200, Clients: []*Client{c}, Pause: 200 * time.Millisecond})
	for load.Sent() < 20 {
		time.Sleep(time.Millisecond)
	}
	run := load.Stop // stops asking, then the app goes while answers are due
	go func() {
		for len(log.Seen()) < 20 {
			time.Sleep(time.Millisecond)
		}
		stop()
	}()
	if r := Judge(run(), log.Seen()); r.Failed > 0 {
		t.Errorf("stopping failed requests:\n%s", r)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	c.Close()
}
