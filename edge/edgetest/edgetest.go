// Package edgetest runs whole networks on loopback for tests: edges and agents in
// this process, or the real binaries where a process is signalled or killed.
// Everything it starts is stopped when the test ends.
package edgetest

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"testing"
	"time"

	"wormhole/edge/authority"
	"wormhole/edge/config"
	"wormhole/edge/node"
	"wormhole/wormhole/agent"
	"wormhole/wormhole/forward"
)

// Patience is how long helpers wait for something that should happen soon.
const Patience = 15 * time.Second

// Node is one edge in this process.
type Node struct {
	*node.Node
	Config config.Config

	stop func()
	done chan struct{} // closed when Run has returned
	err  error         // of Run; valid once done is closed
}

// Logger writes to the test's output if WORMHOLE_TEST_LOG is set, else nowhere.
func Logger(tb testing.TB) *slog.Logger {
	if os.Getenv("WORMHOLE_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(tb.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// StartNode starts an edge on free ports of loopback, with an authority of its
// own; change may alter its configuration.
func StartNode(tb testing.TB, change ...func(*config.Config)) *Node {
	tb.Helper()
	cfg := config.Default()
	cfg.DataDir = tb.TempDir()
	cfg.Hostname = "edge.localhost"
	cfg.HTTPS, cfg.HTTP, cfg.Admin = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	cfg.AccessLog = "off"
	cfg.BackendHeader = "X-Backend"
	cfg.DrainDelay, cfg.DrainTimeout = 0, 10*time.Second
	for _, f := range change {
		f(&cfg)
	}
	if err := cfg.Validate(); err != nil {
		tb.Fatalf("configuration: %v", err)
	}
	n, err := node.New(context.Background(), cfg, "test", Logger(tb))
	if err != nil {
		tb.Fatalf("start edge: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	e := &Node{Node: n, Config: cfg, stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(e.done)
		e.err = n.Run(ctx)
	}()
	tb.Cleanup(func() {
		if err := e.Stop(); err != nil {
			tb.Errorf("edge ended with %v", err)
		}
	})
	select {
	case <-n.Opened():
	case <-e.done:
		tb.Fatalf("edge did not open: %v", e.err)
	}
	return e
}

// Stop drains the edge, waits until it is gone and returns what Run returned. It
// is idempotent.
func (n *Node) Stop() error {
	n.stop()
	<-n.done
	return n.err
}

// Addr is host:port of one of the edge's doors: https, http, admin.
func (n *Node) Addr(door string) string { return n.Status().Addresses[door] }

// Token issues a token for hosts.
func (n *Node) Token(tb testing.TB, hosts ...string) string {
	tb.Helper()
	issued, err := n.Authority().IssueToken(context.Background(), authority.IssueRequest{Hosts: hosts, Name: "test"})
	if err != nil {
		tb.Fatalf("issue token: %v", err)
	}
	return issued.Token
}

// Client asks for https://HOST/… of any host by dialling this edge, and verifies
// its certificate. proto is h1, h2 or h3.
func (n *Node) Client(tb testing.TB, proto string) *http.Client {
	tb.Helper()
	return clientFor(tb, proto, n.CAFile(), func() string { return n.Addr("https") })
}

// App is an HTTP app on loopback.
func App(tb testing.TB, h http.Handler) (addr string) {
	tb.Helper()
	s := httptest.NewServer(h)
	tb.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// Named is the app everybody starts with.
func Named(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "You have reached "+name+"\n")
	})
}

// Agent is one agent in this process.
type Agent struct {
	*agent.Agent
	stop func()
	done chan struct{}
}

// AgentConfig says what an agent serves.
type AgentConfig struct {
	Token    string
	Endpoint string // the app; see forward.ParseEndpoint
	Change   func(*agent.Config, *forward.Config)
}

// StartAgent starts an agent with tunnels to every node.
func StartAgent(tb testing.TB, c AgentConfig, nodes ...*Node) *Agent {
	tb.Helper()
	endpoint, err := forward.ParseEndpoint(c.Endpoint)
	if err != nil {
		tb.Fatal(err)
	}
	var authorities []string
	cfg := agent.Config{Token: c.Token, AppProtocol: endpoint.AppProtocol(), Transport: agent.OnlyTLS}
	for _, n := range nodes {
		authorities = append(authorities, n.CAFile())
		_, port, _ := net.SplitHostPort(n.Addr("https"))
		cfg.Edges = append(cfg.Edges, net.JoinHostPort("localhost", port))
	}
	cfg.RootCAs = Roots(tb, authorities...)
	fcfg := forward.Config{Endpoint: endpoint}
	if c.Change != nil {
		c.Change(&cfg, &fcfg)
	}
	f := forward.New(fcfg)
	a, err := agent.New(cfg, f, Logger(tb))
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	running := &Agent{Agent: a, stop: cancel, done: make(chan struct{})}
	var wg sync.WaitGroup
	wg.Go(func() { _ = a.Run(ctx) })
	wg.Go(func() {
		f.Watch(ctx, func(err error) {
			reason := ""
			if err != nil {
				reason = err.Error()
			}
			a.SetReady(err == nil, reason)
		})
	})
	go func() { wg.Wait(); close(running.done) }()
	tb.Cleanup(running.Stop)
	return running
}

// Stop ends the agent without a drain, as if its machine lost power politely. It
// is idempotent.
func (a *Agent) Stop() {
	a.stop()
	<-a.done
}

// Eventually waits until cond is true.
func Eventually(tb testing.TB, what string, cond func() bool) {
	tb.Helper()
	deadline := time.Now().Add(Patience)
	for !cond() {
		if time.Now().After(deadline) {
			tb.Fatalf("did not happen within %s: %s", Patience, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// AwaitBackends waits until exactly want backends of the edge are ready.
func (n *Node) AwaitBackends(tb testing.TB, want int) {
	tb.Helper()
	Eventually(tb, "number of ready backends", func() bool {
		ready := 0
		for _, b := range n.Status().Backends {
			if b.State == "ready" {
				ready++
			}
		}
		return ready == want
	})
}
