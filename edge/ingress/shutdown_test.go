package ingress

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wormhole/shared/protocol"
)

// slow is a handler whose answers begin at once and end when released.
type slow struct {
	began   chan struct{}
	release chan struct{}
}

func newSlow() *slow {
	return &slow{began: make(chan struct{}, 100), release: make(chan struct{})}
}

func (s *slow) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	fmt.Fprint(w, "begin ")
	_ = http.NewResponseController(w).Flush()
	s.began <- struct{}{}
	<-s.release
	fmt.Fprint(w, "end")
}

func TestShutdownLetsRequestsInFlightFinish(t *testing.T) {
	for _, proto := range []string{"h1", "h2", "h3"} {
		t.Run(proto, func(t *testing.T) {
			h := newSlow()
			r := start(t, Config{}, Handlers{Visitor: h})
			client := r.client(proto)
			got := make(chan string, 1)
			go func() {
				body, _, err := get(client, "https://a.test/")
				got <- fmt.Sprint(body, err)
			}()
			<-h.began
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			down := make(chan error, 1)
			go func() { down <- r.Shutdown(ctx) }()
			for !r.drains.Load() {
				time.Sleep(time.Millisecond) // there is no event for it
			}
			select {
			case err := <-down:
				t.Fatalf("Shutdown ended with a request in flight: %v", err)
			case <-time.After(100 * time.Millisecond):
			}
			close(h.release)
			if body := <-got; body != "begin end<nil>" {
				t.Errorf("the request in flight ended as %q", body)
			}
			if err := <-down; err != nil {
				t.Errorf("Shutdown: %v", err)
			}
			if c, err := net.Dial("tcp", r.Addrs().HTTPS.String()); err == nil {
				c.Close()
				t.Error("the port is still open")
			}
		})
	}
}

func TestShutdownCutsWhatIsLeftAtTheDeadline(t *testing.T) {
	for _, proto := range []string{"h1", "h2", "h3"} {
		t.Run(proto, func(t *testing.T) {
			h := newSlow()
			defer close(h.release)
			r := start(t, Config{}, Handlers{Visitor: h})
			client := r.client(proto)
			got := make(chan error, 1)
			go func() {
				_, _, err := get(client, "https://a.test/")
				got <- err
			}()
			<-h.began
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if err := r.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Shutdown: %v, want the deadline", err)
			}
			select {
			case err := <-got:
				if err == nil {
					t.Error("a request that was cut ended cleanly")
				}
			case <-time.After(2 * time.Second):
				t.Error("the request goes on after the deadline")
			}
		})
	}
}

// TestA6NoRequestFailsOverGOAWAY sends requests on HTTP/2 connections while one
// ingress takes the place of another.
func TestA6NoRequestFailsOverGOAWAY(t *testing.T) {
	answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	old := start(t, Config{DisableQUIC: true}, Handlers{Visitor: answer})
	next := start(t, Config{DisableQUIC: true}, Handlers{Visitor: answer})
	old.trust(next)
	var current atomic.Pointer[rig]
	current.Store(old)
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	transport := &http.Transport{
		Protocols: protocols,
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			d := tls.Dialer{Config: old.tls("a.test", "h2")}
			return d.DialContext(ctx, "tcp", current.Load().Addrs().HTTPS.String())
		},
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	var (
		wg             sync.WaitGroup
		sent, failed   atomic.Int64
		switched, halt = make(chan struct{}), make(chan struct{})
	)
	for range 8 {
		wg.Go(func() {
			for {
				select {
				case <-halt:
					return
				default:
				}
				n := sent.Add(1)
				if n == 500 {
					close(switched)
				}
				req, _ := http.NewRequest("POST", "https://a.test/", strings.NewReader("hello"))
				resp, err := client.Do(req)
				if err == nil {
					var body []byte
					body, err = io.ReadAll(resp.Body)
					resp.Body.Close()
					if string(body) != "hello" {
						err = fmt.Errorf("body %q, %w", body, err)
					}
				}
				if err != nil {
					failed.Add(1)
					t.Log(err)
				}
			}
		})
	}
	<-switched
	current.Store(next)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := old.Shutdown(ctx); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	after := sent.Load()
	for sent.Load() < after+500 {
		time.Sleep(time.Millisecond) // until as many went to the new one
	}
	close(halt)
	wg.Wait()
	if failed.Load() != 0 {
		t.Errorf("%d of %d requests failed", failed.Load(), sent.Load())
	}
}

func TestShutdownDoesNotWaitForIdleConnections(t *testing.T) {
	r := start(t, Config{}, Handlers{})
	for _, proto := range []string{"h1", "h2", "h3"} {
		if _, _, err := get(r.client(proto), "https://a.test/"); err != nil {
			t.Fatal(err)
		}
	}
	dialRaw(t, r.Addrs().HTTPS) // and one that says nothing
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	began := time.Now()
	if err := r.Shutdown(ctx); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestA5UpgradedConnectionsLiveUntilTheDeadline(t *testing.T) {
	hijacked := make(chan net.Conn, 1)
	r := start(t, Config{}, Handlers{Visitor: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\n\r\n")
		hijacked <- c
	})})
	c, err := r.dial("a.test", "http/1.1")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	server := <-hijacked
	ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
	defer cancel()
	down := make(chan error, 1)
	go func() { down <- r.Shutdown(ctx) }()
	echoed := make([]byte, 4)
	for range 3 {
		fmt.Fprint(server, "ping")
		buf := make([]byte, 256)
		if _, err := c.Read(buf); err != nil {
			t.Fatalf("the upgraded connection broke before the deadline: %v", err)
		}
		fmt.Fprint(c, "pong")
		if _, err := io.ReadFull(server, echoed); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-down; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown: %v", err)
	}
	if took := waitClosed(t, c); took > time.Second {
		t.Errorf("closed %v after the deadline", took)
	}
}

func TestShutdownLeavesAgentsAlone(t *testing.T) {
	agentEnded := make(chan struct{})
	r := start(t, Config{}, Handlers{Agent: func(ctx context.Context, c *tls.Conn) {
		defer close(agentEnded)
		_, _ = io.Copy(c, c)
	}})
	c, err := r.dial("edge.test", protocol.ALPN)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "here")
	buf := make([]byte, 4)
	if _, err := io.ReadFull(c, buf); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := r.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(c, "and ")
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "and " {
		t.Fatalf("the agent's connection after Shutdown: %q, %v", buf, err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	<-agentEnded
}

func TestUnreadBytesOfAConnectionAreSeen(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux is asked")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if hasUnread(server) {
		t.Error("nothing was sent, and something is unread")
	}
	fmt.Fprint(client, "G")
	for deadline := time.Now().Add(5 * time.Second); !hasUnread(server); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("what was sent is not seen")
		}
	}
	if _, err := server.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if hasUnread(server) {
		t.Error("all was read, and something is unread")
	}
}
