package e2e

import (
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"wormhole/edge/edgetest"
	"wormhole/edge/site"
)

// copyOf starts a real agent around a copy of the demo app.
func copyOf(t *testing.T, e *edgetest.EdgeProcess, token, name string, more ...string) *edgetest.Process {
	t.Helper()
	env := append(e.AgentEnv(token, "WORMHOLE_NAME="+name, "SERVER_NAME="+name, "PORT="+edgetest.FreePort(t)), more...)
	return edgetest.Start(t, env, binaries.Wormhole, binaries.App)
}

func ask(client *http.Client, path string) (status int, body, backend string, err error) {
	resp, err := client.Get("https://" + host + path)
	if err != nil {
		return 0, "", "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), resp.Header.Get("X-Backend"), err
}

func TestTwoCopiesShareAThousandRequests(t *testing.T) {
	e := binaries.StartEdge(t)
	token := binaries.Token(t, e.Dir, "--host", host)
	copyOf(t, e, token, "statler")
	copyOf(t, e, token, "waldorf")
	e.AwaitReady(t, 2)

	client := e.Client(t, "h1")
	var mu sync.Mutex
	count := map[string]int{}
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			for range 100 {
				status, body, backend, err := ask(client, "/")
				if err != nil || status != http.StatusOK || strings.TrimSpace(body) != "You have reached "+backend {
					t.Errorf("answer %d %q from %q, err %v", status, body, backend, err)
				}
				mu.Lock()
				count[backend]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for _, name := range []string{"statler", "waldorf"} {
		if n := count[name]; n < 400 || n > 600 {
			t.Errorf("%s answered %d of 1,000, want 400 to 600 (%v)", name, n, count)
		}
	}
}

func TestAThirdCopyJoinsWithinASecondOfListening(t *testing.T) {
	e := binaries.StartEdge(t)
	token := binaries.Token(t, e.Dir, "--host", host)
	copyOf(t, e, token, "statler")
	copyOf(t, e, token, "waldorf")
	e.AwaitReady(t, 2)
	client := e.Client(t, "h1")

	port := edgetest.FreePort(t)
	edgetest.Start(t, e.AgentEnv(token, "WORMHOLE_NAME=third", "SERVER_NAME=third", "PORT="+port), binaries.Wormhole, binaries.App)
	edgetest.Eventually(t, "third copy listens", func() bool {
		resp, err := http.Get("http://127.0.0.1:" + port + "/")
		if err == nil {
			resp.Body.Close()
		}
		return err == nil
	})
	listening := time.Now()
	for {
		_, _, backend, err := ask(client, "/")
		if err != nil {
			t.Fatal(err)
		}
		if backend == "third" {
			return
		}
		if time.Since(listening) > time.Second {
			t.Fatal("no request reached the third copy within 1 s of its listening")
		}
	}
}

// load asks at a fixed rate until stopped, each request on its own time.
type load struct {
	sent, failed atomic.Int64
	mu           sync.Mutex
	slowest      time.Duration
	errs         []string
	wg           sync.WaitGroup
	stop         chan struct{}
	done         chan struct{}
}

func startLoad(client *http.Client, perSecond int, path string) *load {
	l := &load{stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(l.done)
		tick := time.NewTicker(time.Second / time.Duration(perSecond))
		defer tick.Stop()
		for {
			select {
			case <-l.stop:
				l.wg.Wait()
				return
			case <-tick.C:
			}
			l.wg.Go(func() {
				began := time.Now()
				status, body, _, err := ask(client, path)
				took := time.Since(began)
				l.sent.Add(1)
				l.mu.Lock()
				defer l.mu.Unlock()
				l.slowest = max(l.slowest, took)
				if err != nil || status != http.StatusOK {
					l.failed.Add(1)
					l.errs = append(l.errs, strings.TrimSpace(strings.Join([]string{http.StatusText(status), body, errText(err)}, " ")))
				}
			})
		}
	}()
	return l
}

func (l *load) end() {
	close(l.stop)
	<-l.done
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestStoppingAnAgentUnderLoadFailsNothing(t *testing.T) {
	e := binaries.StartEdge(t)
	token := binaries.Token(t, e.Dir, "--host", host)
	statler := copyOf(t, e, token, "statler")
	copyOf(t, e, token, "waldorf")
	e.AwaitReady(t, 2)
	l := startLoad(e.Client(t, "h1"), 200, "/slow?ms=50")
	time.Sleep(time.Second)
	statler.Signal(syscall.SIGTERM)
	began := time.Now()
	if code := statler.Exit(t, 9*time.Second); code != 0 && code != 128+15 {
		t.Errorf("agent exited with %d", code)
	}
	t.Logf("agent left in %s", time.Since(began).Round(time.Millisecond))
	time.Sleep(500 * time.Millisecond)
	l.end()
	if n := l.failed.Load(); n > 0 {
		t.Errorf("%d of %d requests failed: %q", n, l.sent.Load(), l.errs)
	}
	if l.slowest > time.Second {
		t.Errorf("slowest request took %s, want 1 s at most", l.slowest)
	}
}

func TestKillingAnAgentFailsOnlyWhatWasInsideIt(t *testing.T) {
	e := binaries.StartEdge(t)
	token := binaries.Token(t, e.Dir, "--host", host)
	statler := copyOf(t, e, token, "statler")
	copyOf(t, e, token, "waldorf")
	e.AwaitReady(t, 2)
	l := startLoad(e.Client(t, "h1"), 200, "/slow?ms=50")
	time.Sleep(time.Second)
	if err := e.Refresh(); err != nil {
		t.Fatal(err)
	}
	statler.Signal(syscall.SIGKILL)
	time.Sleep(1500 * time.Millisecond)
	l.end()
	// 200/s of 50 ms each over two copies: 5 in flight in each on average.
	if n := l.failed.Load(); n > 20 {
		t.Errorf("%d of %d requests failed, more than can have been inside: %q", n, l.sent.Load(), l.errs)
	}
	if l.slowest > 2*time.Second {
		t.Errorf("slowest request took %s", l.slowest)
	}
}

func TestTheTokenIsNowhereToBeSeen(t *testing.T) {
	e := binaries.StartEdge(t)
	token := binaries.Token(t, e.Dir, "--host", host)
	p := copyOf(t, e, token, "statler", "WORMHOLE_LOG_LEVEL=debug")
	e.AwaitReady(t, 1)
	found := 0
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range procs {
		cmdline, _ := os.ReadFile(dir + "/cmdline")
		environ, _ := os.ReadFile(dir + "/environ")
		if strings.Contains(string(cmdline), token) {
			t.Errorf("%s shows the token in its arguments", dir)
		}
		if strings.HasPrefix(string(cmdline), binaries.App) {
			found++
			if strings.Contains(string(environ), token) {
				t.Errorf("the app's environment holds the token")
			}
		}
	}
	if found == 0 {
		t.Error("the app's process was not found: the test has looked at nothing")
	}
	if strings.Contains(p.Output(), token) || strings.Contains(e.Output(), token) {
		t.Error("a log shows the token")
	}
}

func TestWhatIsNotServedSaysWhy(t *testing.T) {
	n := edgetest.StartNode(t)
	closed := "127.0.0.1:" + edgetest.FreePort(t)
	_ = n.ApplySites(context.Background(), []site.Spec{mustSite(t, "host: '*.example.com'\nparking: {wait: 0s}")})
	_ = n.ApplySites(context.Background(), []site.Spec{mustSite(t, "host: "+host+"\nparking: {wait: 200ms}")})
	client := n.Client(t, "h1")
	get := func(url string) (int, string, http.Header) {
		req, _ := http.NewRequest(http.MethodGet, url, nil)
		req.Header.Set("Accept", "application/json")
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var e struct{ Error struct{ Code string } }
		text, _ := io.ReadAll(resp.Body)
		edgetest.JSON(t, text, &e)
		return resp.StatusCode, e.Error.Code, resp.Header
	}
	if status, code, _ := get("https://nobody.localhost/"); status != http.StatusNotFound || code != "no_such_site" {
		t.Errorf("unknown host: %d %s, want 404 no_such_site", status, code)
	}
	status, code, h := get("https://" + host + "/")
	if status != http.StatusServiceUnavailable || code != "no_backend" || h.Get("Retry-After") == "" || h.Get("X-Request-Id") == "" {
		t.Errorf("nobody live: %d %s %v, want 503 no_backend with Retry-After and an id", status, code, h)
	}
	// An app that dies behind a live agent.
	app := edgetest.StartAgent(t, edgetest.AgentConfig{Token: n.Token(t, host), Endpoint: closed}, n)
	app.SetReady(true, "")
	edgetest.Eventually(t, "agent is live", func() bool { return len(n.Status().Backends) == 1 && n.Status().Backends[0].State == "ready" })
	if status, code, _ := get("https://" + host + "/"); status != http.StatusBadGateway || code != "backend_unreachable" {
		t.Errorf("app down: %d %s, want 502 backend_unreachable", status, code)
	}
}

func TestRefusedTokensEndTheAgentWith77(t *testing.T) {
	e := binaries.StartEdge(t)
	other := binaries.StartEdge(t)
	cases := map[string]struct {
		token, reason string
		exit          int
	}{
		// What is no token at all is a bad setting, not a refused token.
		"garbage":           {"not-a-token", "not a token", 78},
		"another network's": {binaries.Token(t, other.Dir, "--host", host), "signed by the key", 77},
	}
	for name, c := range cases {
		env := e.AgentEnv(c.token, "WORMHOLE_PORT=1")
		p := edgetest.Start(t, env, binaries.Wormhole)
		if code := p.Exit(t, 20*time.Second); code != c.exit {
			t.Errorf("%s: exit status %d, want %d", name, code, c.exit)
		}
		if !strings.Contains(p.Output(), c.reason) {
			t.Errorf("%s: the log does not say why:\n%s", name, p.Output())
		}
	}
	// A host outside the token.
	token := binaries.Token(t, e.Dir, "--host", host)
	p := edgetest.Start(t, e.AgentEnv(token, "WORMHOLE_PORT=1", "WORMHOLE_HOST=other.example.com"), binaries.Wormhole)
	if code := p.Exit(t, 20*time.Second); code != 77 || !strings.Contains(p.Output(), "other.example.com") {
		t.Errorf("foreign host: exit status %d, want 77 and the host named:\n%s", code, p.Output())
	}
}

func TestBadConfigurationListsEveryFault(t *testing.T) {
	cfg := filepath.Join(t.TempDir(), "edge.yaml")
	_ = os.WriteFile(cfg, []byte("htps: ':1'\ndrain_timeout: soon\nsites:\n- host: '*.com'\n  nonsense: 1\n"), 0o600)
	p := edgetest.Start(t, []string{"EDGE_LOG_LEVEL=loud"}, binaries.Edge, "serve", "--config", cfg, "--data-dir", t.TempDir(),
		"--tls", "files", "--cert", "/does/not/exist", "--key", "/nor/this", "--max-connections", "many")
	if code := p.Exit(t, 10*time.Second); code != 78 {
		t.Errorf("exit status %d, want 78", code)
	}
	for _, want := range []string{"htps", "drain_timeout", "nonsense", "log_level", "/does/not/exist", "/nor/this", "max-connections"} {
		if !strings.Contains(p.Output(), want) {
			t.Errorf("%s is not among the faults:\n%s", want, p.Output())
		}
	}
}

func TestATakenPortIsToldBeforeAnythingStarts(t *testing.T) {
	e := binaries.StartEdge(t)
	p := edgetest.Start(t, nil, binaries.Edge, "serve", "--data-dir", t.TempDir(), "--https", e.Status.Addresses["https"],
		"--http", e.Status.Addresses["http"], "--admin", e.Status.Addresses["admin"])
	if code := p.Exit(t, 10*time.Second); code != 78 {
		t.Errorf("exit status %d, want 78", code)
	}
	for _, want := range []string{"--https", "--http", "--admin"} {
		if !strings.Contains(p.Output(), want) {
			t.Errorf("%s is not named:\n%s", want, p.Output())
		}
	}
}

func mustSite(t *testing.T, text string) site.Spec {
	t.Helper()
	spec, err := site.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return spec
}
