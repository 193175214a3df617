package forward

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestReadyAsksThePath(t *testing.T) {
	var status atomic.Int32
	var host atomic.Value
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host.Store(r.Host)
		w.Header().Set("X-Path", r.URL.Path)
		w.WriteHeader(int(status.Load()))
	}))
	defer srv.Close()
	addr := strings.TrimPrefix(srv.URL, "http://")
	f := New(Config{Endpoint: endpoint(t, addr), ReadyPath: "/healthz?deep=1"})
	for code, ready := range map[int32]bool{200: true, 204: true, 299: true, 301: false, 404: false, 503: false} {
		status.Store(code)
		if err := f.Ready(context.Background()); (err == nil) != ready {
			t.Errorf("status %d: %v", code, err)
		}
	}
	if host.Load() != addr {
		t.Errorf("Host was %q, want %q", host.Load(), addr)
	}
}

func TestReadySkipsInterimAnswers(t *testing.T) {
	e := app(t, func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n")
	})
	if err := New(Config{Endpoint: e, ReadyPath: "/"}).Ready(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestReadyRefusesNonsense(t *testing.T) {
	for _, answer := range []string{
		"", "HTTP/1.1", "HTTP/1.1 2", "HTTP/1.1 2x0 OK\r\n", "HTTP/1.1 2000\r\n", "SSH-2.0-OpenSSH\r\n",
		"HTTP/1.1 099 x\r\n", strings.Repeat("x", 100<<10), strings.Repeat("HTTP/1.1 100 x\r\n\r\n", 10<<10),
	} {
		conn := struct {
			io.Reader
			io.Writer
		}{strings.NewReader(answer), io.Discard}
		if status, err := get(conn, "h", "/"); err == nil {
			t.Errorf("%.40q: status %d", answer, status)
		}
	}
}

func TestReadyIsBounded(t *testing.T) {
	silent := make(chan struct{})
	defer close(silent)
	e := app(t, func(*net.TCPConn) { <-silent })
	f := New(Config{Endpoint: e, ReadyPath: "/", HealthTimeout: 30 * time.Millisecond})
	start := time.Now()
	if err := f.Ready(context.Background()); err == nil {
		t.Error("a silent app is ready")
	}
	if d := time.Since(start); d > patience/2 {
		t.Errorf("the check took %s", d)
	}
}

func TestWatchFollowsTheApp(t *testing.T) {
	addr := unusedAddr(t)
	f := New(Config{Endpoint: endpoint(t, addr), HealthInterval: 10 * time.Millisecond})
	ctx, cancel := context.WithCancel(context.Background())
	changes := make(chan error)
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.Watch(ctx, func(err error) {
			select {
			case changes <- err:
			case <-ctx.Done():
			}
		})
	}()
	defer func() { cancel(); <-done }()

	for range 2 {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		listening := time.Now()
		if err := next(t, changes); err != nil {
			t.Fatalf("the app listens, but: %v", err)
		}
		if d := time.Since(listening); d > time.Second {
			t.Errorf("noticed after %s, want within 1s", d)
		}
		_ = ln.Close()
		if err := next(t, changes); err == nil {
			t.Fatal("the app is gone, but counts as ready")
		}
	}
}

// One slow answer is no reason to take an app out.
func TestWatchToleratesFewerFailuresThanTheThreshold(t *testing.T) {
	var asked atomic.Int32
	e := app(t, func(c *net.TCPConn) {
		_, _ = c.Read(make([]byte, 1024))
		status := "200 OK"
		if n := asked.Add(1); n > 1 && n%3 != 0 {
			status = "500 Oops" // two of three fail
		}
		_, _ = io.WriteString(c, "HTTP/1.1 "+status+"\r\n\r\n")
	})
	f := New(Config{Endpoint: e, ReadyPath: "/", HealthInterval: time.Millisecond, HealthThreshold: 3})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	changes := 0
	go func() { // ends the watch when the app was asked often enough
		for asked.Load() < 30 && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	f.Watch(ctx, func(err error) {
		if changes++; err != nil {
			t.Errorf("taken out: %v", err)
		}
	})
	if changes != 1 {
		t.Errorf("%d changes, want 1", changes)
	}
}

func next(t *testing.T, changes <-chan error) error {
	t.Helper()
	select {
	case err := <-changes:
		return err
	case <-time.After(patience):
		t.Fatal("no change was told")
		return nil
	}
}

func FuzzStatusAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\n\r\n"))
	f.Add([]byte("HTTP/1.0 100\r\n\r\nHTTP/1.1 503 x\r\n"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		conn := struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(answer), io.Discard}
		if status, err := get(conn, "h", "/"); err == nil && (status < 200 || status > 999) {
			t.Errorf("status %d", status)
		}
	})
}
