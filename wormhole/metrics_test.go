package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// scrape asks the agent for its metrics, which it serves once it has said where.
func scrape(t *testing.T, w *wormhole) (text string) {
	t.Helper()
	_, rest, _ := strings.Cut(awaitLog(t, w, `"addr":"`), `"addr":"`)
	addr, _, _ := strings.Cut(rest, `"`)
	response, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s, %v", response.Status, err)
	}
	return string(body)
}

func awaitLog(t *testing.T, w *wormhole, text string) string {
	t.Helper()
	for deadline := time.Now().Add(patience); !strings.Contains(w.stderr.String(), text); {
		if time.Now().After(deadline) {
			t.Fatalf("the agent does not log %q", text)
		}
		time.Sleep(2 * time.Millisecond)
	}
	return w.stderr.String()
}

func TestMetricsTellWhatTheAgentDoes(t *testing.T) {
	e := startEdge(t)
	w := launch(t, e, []string{tokenEnv(t), "WORMHOLE_METRICS=127.0.0.1:0", "WORMHOLE_LOG_FORMAT=json"}, "serve", "0")
	stream := e.next().open()
	ask(t, stream, "x")

	text := scrape(t, w)
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatalf("not Prometheus's format: %v\n%s", err, text)
	}
	value := func(name string) float64 {
		for _, m := range families[name].GetMetric() {
			if v := m.GetGauge().GetValue() + m.GetCounter().GetValue(); v != 0 {
				return v
			}
		}
		return 0
	}
	for _, name := range []string{
		"wormhole_agent_build_info", "wormhole_agent_app_ready", "wormhole_agent_tunnels", "wormhole_agent_tunnels_opened_total",
		"wormhole_agent_streams", "wormhole_agent_streams_total",
	} {
		if value(name) < 1 {
			t.Errorf("%s is %v", name, value(name))
		}
	}
	if got := value("wormhole_agent_received_bytes_total"); got < float64(len("x\n")) {
		t.Errorf("%v bytes received", got)
	}
	if left := value("wormhole_agent_token_expiry_timestamp_seconds") - float64(time.Now().Unix()); left < 3000 || left > 3600 {
		t.Errorf("the token expires in %v s, want an hour", left)
	}
	for name, f := range families {
		if !strings.HasPrefix(name, "wormhole_agent_") || f.GetHelp() == "" {
			t.Errorf("%s: wrong prefix or no help", name)
		}
	}
}

func TestMetricsAreOffUnlessAskedForAndATakenAddressIsAFault(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	w := launch(t, nil, []string{tokenEnv(t), "WORMHOLE_METRICS=" + taken.Addr().String()}, "deaf", "")
	if got := w.status(); got != exitConfig {
		t.Errorf("exit status %d, want %d", got, exitConfig)
	}
	for _, bad := range []string{"9090", "example.com:9090", "127.0.0.1:x", "127.0.0.1:70000"} {
		if err := checkListen(bad); err == nil {
			t.Errorf("%q passes", bad)
		}
	}
	for _, good := range []string{":9090", "127.0.0.1:0", "[::1]:9090", "localhost:9090"} {
		if err := checkListen(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
}

func TestMetricsDoorAnswersOnlyWhatItShould(t *testing.T) {
	for _, c := range []struct{ name, request, status, body string }{
		{"get", "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "200", "it\n"},
		{"query", "GET /metrics?a=b HTTP/1.0\r\n\r\n", "200", "it\n"},
		{"bare newlines", "GET /metrics HTTP/1.0\n\n", "200", "it\n"},
		{"head", "HEAD /metrics HTTP/1.1\r\n\r\n", "200", ""},
		{"other path", "GET / HTTP/1.1\r\n\r\n", "404", "404 Not Found\n"},
		{"other method", "POST /metrics HTTP/1.1\r\n\r\n", "405", "405 Method Not Allowed\n"},
		{"not http", "\x16\x03\x01\n\n", "400", "400 Bad Request\n"},
		{"cut head", "GET /metrics HTTP/1.1\r\nHost", "400", "400 Bad Request\n"},
		{"long head", "GET /metrics HTTP/1.1\r\nA: " + strings.Repeat("a", metricsHead) + "\r\n\r\n", "400", "400 Bad Request\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out strings.Builder
			answerScrape(struct {
				io.Reader
				io.Writer
			}{strings.NewReader(c.request), &out}, func() string { return "it\n" })
			head, body, _ := strings.Cut(out.String(), "\r\n\r\n")
			if !strings.HasPrefix(head, "HTTP/1.1 "+c.status+" ") || body != c.body {
				t.Errorf("got %q", out.String())
			}
		})
	}
}

func TestMetricsDoorIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			answerMetrics(ctx, l, func() string { return "" })
		}()
		var clients []net.Conn
		for range metricsConnections + 1 {
			client, server := net.Pipe()
			l.conns <- server
			clients = append(clients, client)
		}
		synctest.Wait()
		// One too many is closed at once; the silent ones when their time is over.
		started := time.Now()
		last := clients[metricsConnections]
		if _, err := last.Read(make([]byte, 1)); !errors.Is(err, io.EOF) || time.Since(started) != 0 {
			t.Errorf("the connection beyond the bound: %v after %v", err, time.Since(started))
		}
		if _, err := io.ReadAll(clients[0]); err != nil || time.Since(started) != metricsTimeout {
			t.Errorf("a silent connection: %v after %v", err, time.Since(started))
		}
		cancel()
		<-done
	})
}

// pipes is a listener whose connections a test makes.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { close(p.closed); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

func TestLabelValuesAreEscaped(t *testing.T) {
	var x expositor
	x.family("m", "gauge", "help")
	x.sample(1, "a", "q\"b\\s\nn", "b", "")
	if got, want := x.text.String(), "# HELP m help\n# TYPE m gauge\nm{a=\"q\\\"b\\\\s\\nn\",b=\"\"} 1\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// FuzzReadRequest: whatever comes, the door reads a bounded head, and a path that
// it accepts begins with a slash.
func FuzzReadRequest(f *testing.F) {
	for _, seed := range []string{"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "GET / HTTP/1.0\n\n", "\x00", "GET  / HTTP/1.1\r\n\r\n", "A /?? HTTP/1.\n\n"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r := strings.NewReader(text)
		method, path, ok := readRequest(r)
		if read := len(text) - r.Len(); read > metricsHead {
			t.Errorf("read %d bytes", read)
		}
		if ok && (method == "" || !strings.HasPrefix(path, "/") || strings.ContainsAny(method+path, " \n?")) {
			t.Errorf("accepted method %q, path %q", method, path)
		}
	})
}

func TestSidecarTellsTheServiceManager(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = manager.Close() }()
	heard := func(want string) {
		t.Helper()
		_ = manager.SetReadDeadline(time.Now().Add(patience))
		for buf := make([]byte, 1024); ; {
			n, err := manager.Read(buf)
			if err != nil {
				t.Fatalf("the manager does not hear %q: %v", want, err)
			}
			if strings.Contains(string(buf[:n]), want) {
				return
			}
		}
	}
	app, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = app.Close() }()
	w := launch(t, startEdge(t), []string{tokenEnv(t), "NOTIFY_SOCKET=" + path}, "", "", "--endpoint", app.Addr().String())
	heard("READY=1")
	heard("STATUS=the app is ready at " + app.Addr().String())
	_ = w.Process.Signal(syscall.SIGTERM)
	heard("STOPPING=1\nEXTEND_TIMEOUT_USEC=9000000")
	if got := w.status(); got != 0 {
		t.Errorf("exit status %d, want 0", got)
	}
}
