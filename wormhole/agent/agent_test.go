package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"wormhole/shared/protocol"
)

func TestTunnelCarriesStreams(t *testing.T) {
	p := newPKI(t)
	edge := startEdge(t, p, "e1", "127.0.0.1:0")
	a, _ := startAgent(t, p, Config{Edges: []string{edge.addr}, Name: "statler", Hosts: []string{"x.test"}})
	a.SetReady(true, "")
	s := edge.next()
	if s.hello.Token != "token-1" || s.hello.Name != "statler" || len(s.hello.Instance) != 32 || s.hello.Hosts[0] != "x.test" {
		t.Fatalf("hello is %+v", s.hello)
	}
	if !s.hello.Ready {
		s.hearsReady(true)
	}
	stream, answer := s.open()
	if answer != protocol.AnswerOK {
		t.Fatalf("answer %d, want OK", answer)
	}
	if _, err := io.WriteString(stream, "hello"); err != nil {
		t.Fatal(err)
	}
	_ = stream.CloseWrite()
	got, err := io.ReadAll(stream)
	if err != nil || string(got) != "hello" {
		t.Fatalf("read %q, %v", got, err)
	}
	end, err := protocol.DecodeStreamEnd(s.hears(protocol.TypeStreamEnd))
	if err != nil || end.Stream != stream.ID() || end.Delivered != 5 || !end.Clean {
		t.Fatalf("stream end %+v, %v", end, err)
	}
	_ = stream.Close()
}

func TestReadinessIsToldAndEnforced(t *testing.T) {
	p := newPKI(t)
	edge := startEdge(t, p, "e1", "127.0.0.1:0")
	a, _ := startAgent(t, p, Config{Edges: []string{edge.addr}})
	s := edge.next()
	if s.hello.Ready {
		t.Fatal("hello says ready before SetReady")
	}
	if _, answer := s.open(); answer != protocol.AnswerNotReady {
		t.Fatalf("answer %d, want not ready", answer)
	}
	a.SetReady(true, "")
	s.hearsReady(true)
	if _, answer := s.open(); answer != protocol.AnswerOK {
		t.Fatalf("answer %d, want OK", answer)
	}
	a.SetReady(false, "broken")
	s.hearsReady(false)
}

func TestLostTunnelIsReplacedAtOnce(t *testing.T) {
	p := newPKI(t)
	edge := startEdge(t, p, "e1", "127.0.0.1:0")
	startAgent(t, p, Config{Edges: []string{edge.addr}})
	for range 5 {
		s := edge.next()
		if tcp, ok := s.raw.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = s.raw.Close()
	}
	edge.next()
}

func TestEdgeThatComesLateIsFound(t *testing.T) {
	p := newPKI(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	_ = ln.Close()
	startAgent(t, p, Config{Edges: []string{addr}})
	time.Sleep(50 * time.Millisecond) // let it fail a few times; nothing depends on it
	startEdge(t, p, "e1", addr).next()
}

func TestTwoAddressesOfOneNodeMakeOneTunnel(t *testing.T) {
	p := newPKI(t)
	edge := startEdge(t, p, "e1", "127.0.0.1:0")
	port := portOf(t, edge.addr)
	second := startEdge(t, p, "e1", "127.0.0.2:"+port)
	a, _ := startAgent(t, p, Config{Edges: []string{"edge.test:" + port}}, "127.0.0.1", "127.0.0.2")
	a.SetReady(true, "")
	// Whichever came second is drained and closed.
	s1, s2 := edge.next(), second.next()
	select {
	case <-s1.Done():
	case <-s2.Done():
	case <-time.After(patience):
		t.Fatal("both tunnels stay open")
	}
	eventually(t, "one tunnel", func() bool { return len(a.Status().Tunnels) == 1 })
}

func TestEdgesThatWereToldAreDialled(t *testing.T) {
	p := newPKI(t)
	e1, e2 := startEdge(t, p, "e1", "127.0.0.1:0"), startEdge(t, p, "e2", "127.0.0.1:0")
	e3 := startEdge(t, p, "e3", "127.0.0.1:0")
	e1.set(func() {
		e1.edges = []protocol.Edge{{Node: "e1", Addr: e1.addr}, {Node: "e2", Addr: e2.addr}}
	})
	startAgent(t, p, Config{Edges: []string{e1.addr}, EdgesMin: 3})
	s := e1.next()
	e2.next()
	s.say(protocol.TypeEdges, protocol.Edges{Edges: []protocol.Edge{{Node: "e1", Addr: e1.addr}, {Node: "e2", Addr: e2.addr}, {Node: "e3", Addr: e3.addr}}})
	e3.next()
	if n := e1.hellos(); n != 1 {
		t.Errorf("%d hellos to e1, want 1", n)
	}
}

func TestDrainWaitsForAcknowledgementAndStreams(t *testing.T) {
	p := newPKI(t)
	edge := startEdge(t, p, "e1", "127.0.0.1:0")
	a, _ := startAgent(t, p, Config{Edges: []string{edge.addr}})
	s := edge.next()
	a.SetReady(true, "")
	s.hearsReady(true)
	stream, _ := s.open()

	drained := make(chan error, 1)
	go func() { drained <- a.Drain(context.Background()) }()
	s.hears(protocol.TypeDrain)
	eventually(t, "new streams are refused", func() bool {
		extra, answer := s.open()
		_ = extra.Close()
		return answer == protocol.AnswerDraining
	})
	if _, err := io.WriteString(stream, "still here"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 10)
	if _, err := io.ReadFull(stream, got); err != nil || string(got) != "still here" {
		t.Fatalf("stream in flight: %q, %v", got, err)
	}
	select {
	case err := <-drained:
		t.Fatalf("Drain returned %v with a stream open", err)
	default:
	}
	_ = stream.CloseWrite()
	_, _ = io.ReadAll(stream)
	_ = stream.Close()
	select {
	case err := <-drained:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(patience):
		t.Fatal("Drain does not return")
	}
	if n := len(a.Status().Tunnels); n != 0 {
		t.Errorf("%d tunnels after Drain", n)
	}
}

func TestDrainEndsWithItsContext(t *testing.T) {
	p := newPKI(t)
	edge := startEdge(t, p, "e1", "127.0.0.1:0")
	edge.set(func() { edge.noAck = true })
	a, _ := startAgent(t, p, Config{Edges: []string{edge.addr}})
	a.SetReady(true, "")
	s := edge.next()
	eventually(t, "ready", func() bool { _, answer := s.open(); return answer == protocol.AnswerOK })
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := a.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Drain returned %v", err)
	}
}

func TestGoAwayOpensAnotherTunnelAndServesOnUntilTheEdgeCloses(t *testing.T) {
	p := newPKI(t)
	e1 := startEdge(t, p, "e1", "127.0.0.1:0")
	port := portOf(t, e1.addr)
	a, _ := startAgent(t, p, Config{Edges: []string{"edge.test:" + port}}, "127.0.0.1")
	a.SetReady(true, "")
	old := e1.next()
	old.say(protocol.TypeGoAway, protocol.GoAway{Reason: "upgrade", DeadlineMillis: 60_000})
	again := e1.next() // the same address, which takes agents again
	if !again.hello.Ready {
		again.hearsReady(true)
	}
	// A client of the old edge that has not gone yet.
	stream, answer := old.open()
	if answer != protocol.AnswerOK {
		t.Fatalf("the old tunnel answers %v, want that it serves on", answer)
	}
	if _, err := io.WriteString(stream, "x"); err != nil {
		t.Fatal(err)
	}
	_ = stream.CloseWrite()
	if got, err := io.ReadAll(stream); err != nil || string(got) != "x" {
		t.Fatalf("request on the old tunnel: %q, %v", got, err)
	}
	_ = stream.Close()
	_ = old.Close()
	eventually(t, "the old tunnel is forgotten", func() bool { return len(a.Status().Tunnels) == 1 })
}

func TestAnEdgeThatStaysAfterItsDeadlineIsLeft(t *testing.T) {
	p := newPKI(t)
	edge := startEdge(t, p, "e1", "127.0.0.1:0")
	a, _ := startAgent(t, p, Config{Edges: []string{edge.addr}, timing: timing{dead: 10 * time.Millisecond, deadAlways: patience}})
	a.SetReady(true, "")
	old := edge.next()
	old.say(protocol.TypeGoAway, protocol.GoAway{Reason: "upgrade", DeadlineMillis: 50})
	old.hears(protocol.TypeDrain)
	select {
	case <-old.Done():
	case <-time.After(patience):
		t.Fatal("the old tunnel stays open")
	}
}

func TestPermanentRefusalByEveryEdgeEndsSidecar(t *testing.T) {
	p := newPKI(t)
	e1, e2 := startEdge(t, p, "e1", "127.0.0.1:0"), startEdge(t, p, "e2", "127.0.0.1:0")
	refuse := func(*protocol.Hello) (*protocol.Welcome, error) {
		return nil, &protocol.Reject{Code: protocol.CodeTokenRevoked, Reason: "taken back"}
	}
	e1.set(func() { e1.admit = refuse })
	e2.set(func() { e2.admit = refuse })
	_, done := startAgent(t, p, Config{Edges: []string{e1.addr, e2.addr}, StopWhenRefused: true})
	select {
	case err := <-done:
		var reject *protocol.Reject
		if !errors.As(err, &reject) || reject.Code != protocol.CodeTokenRevoked {
			t.Fatalf("Run returned %v", err)
		}
	case <-time.After(patience):
		t.Fatal("Run goes on")
	}
}

func TestRefusedAgentReturnsWithAnotherToken(t *testing.T) {
	p := newPKI(t)
	edge := startEdge(t, p, "e1", "127.0.0.1:0")
	edge.set(func() {
		edge.admit = func(h *protocol.Hello) (*protocol.Welcome, error) {
			if h.Token == "token-2" {
				return edge.accepted(), nil
			}
			return nil, &protocol.Reject{Code: protocol.CodeTokenExpired, Reason: "too old"}
		}
	})
	slow := quick()
	slow.refused = time.Hour
	a, _ := startAgent(t, p, Config{Edges: []string{edge.addr}, timing: slow})
	eventually(t, "refusal in the status", func() bool { return strings.Contains(a.Status().Refused, "too old") })
	a.SetToken("token-2")
	edge.next()
}

func TestNewTokenIsPresentedOnOpenTunnels(t *testing.T) {
	p := newPKI(t)
	edge := startEdge(t, p, "e1", "127.0.0.1:0")
	a, _ := startAgent(t, p, Config{Edges: []string{edge.addr}})
	s := edge.next()
	eventually(t, "tunnel", func() bool { return len(a.Status().Tunnels) == 1 })
	a.SetToken("token-2")
	var m protocol.TokenRefresh
	if err := protocol.Decode(s.hears(protocol.TypeToken), &m); err != nil || m.Token != "token-2" {
		t.Fatalf("refresh %+v, %v", m, err)
	}
}

func TestRetryAfterIsHonoured(t *testing.T) {
	p := newPKI(t)
	edge := startEdge(t, p, "e1", "127.0.0.1:0")
	var mu sync.Mutex
	var tries []time.Time
	edge.set(func() {
		edge.admit = func(*protocol.Hello) (*protocol.Welcome, error) {
			mu.Lock()
			defer mu.Unlock()
			tries = append(tries, time.Now())
			if len(tries) == 1 {
				return nil, &protocol.Reject{Code: protocol.CodeBusy, Reason: "storm", RetryAfterMillis: 300}
			}
			return edge.accepted(), nil
		}
	})
	startAgent(t, p, Config{Edges: []string{edge.addr}})
	edge.next()
	mu.Lock()
	defer mu.Unlock()
	if d := tries[1].Sub(tries[0]); d < 300*time.Millisecond {
		t.Errorf("came back after %s, asked for 300ms", d)
	}
}

func TestSilentEdgeIsLeft(t *testing.T) {
	p := newPKI(t)
	edge := startEdge(t, p, "e1", "127.0.0.1:0")
	edge.set(func() { edge.mute = true })
	startAgent(t, p, Config{Edges: []string{edge.addr}})
	s := edge.next()
	select {
	case <-s.Done():
	case <-time.After(patience):
		t.Fatal("the agent stays with an edge that does not answer")
	}
	edge.set(func() { edge.mute = false })
	edge.next()
}

func TestExpelledAgentCountsAsRefused(t *testing.T) {
	p := newPKI(t)
	edge := startEdge(t, p, "e1", "127.0.0.1:0")
	slow := quick()
	slow.refused = time.Hour
	_, done := startAgent(t, p, Config{Edges: []string{edge.addr}, StopWhenRefused: true, timing: slow})
	edge.next().say(protocol.TypeGoAway, protocol.GoAway{Code: protocol.CodeTokenRevoked, Reason: "taken back"})
	select {
	case err := <-done:
		var reject *protocol.Reject
		if !errors.As(err, &reject) || reject.Code != protocol.CodeTokenRevoked {
			t.Fatalf("Run returned %v", err)
		}
	case <-time.After(patience):
		t.Fatal("Run goes on")
	}
}

func TestTunnelPassesHTTPProxy(t *testing.T) {
	p := newPKI(t)
	edge := startEdge(t, p, "e1", "127.0.0.1:0")
	asked := make(chan string, 8)
	proxy := startProxy(t, edge.addr, asked)
	a, _ := startAgent(t, p, Config{
		Edges:     []string{"edge.test:443"},
		Transport: Auto,
		Proxy: func(string) (*url.URL, error) {
			return &url.URL{Scheme: "http", Host: proxy, User: url.UserPassword("user", "secret")}, nil
		},
	})
	a.SetReady(true, "")
	edge.next()
	want := "CONNECT edge.test:443 HTTP/1.1\nHost: edge.test:443\nProxy-Authorization: Basic dXNlcjpzZWNyZXQ="
	if got := <-asked; got != want {
		t.Errorf("proxy was asked\n%s\nwant\n%s", got, want)
	}
}

// startProxy joins every CONNECT to target.
func startProxy(t *testing.T, target string, asked chan<- string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer func() { _ = conn.Close() }()
				r := bufio.NewReader(conn)
				var lines []string
				for {
					line, err := r.ReadString('\n')
					if err != nil {
						return
					}
					if line = strings.TrimSpace(line); line == "" {
						break
					}
					lines = append(lines, line)
				}
				asked <- strings.Join(lines, "\n")
				up, err := net.Dial("tcp", target)
				if err != nil {
					return
				}
				defer func() { _ = up.Close() }()
				_, _ = fmt.Fprint(conn, "HTTP/1.1 200 Connection established\r\nX: y\r\n\r\n")
				done := make(chan struct{})
				go func() { // ends when either side closes
					defer close(done)
					_, _ = io.Copy(conn, up)
					_ = conn.Close()
				}()
				_, _ = io.Copy(up, r)
				_ = up.Close()
				<-done
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		wg.Wait()
	})
	return ln.Addr().String()
}

func TestConfigFaultsAreListed(t *testing.T) {
	_, err := New(Config{Edges: []string{"nonsense"}, Transport: "pigeon"}, echo{}, nil)
	if err == nil {
		t.Fatal("New accepted it")
	}
	for _, want := range []string{"nonsense", "pigeon", "Token"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not mention %s", err, want)
		}
	}
}
