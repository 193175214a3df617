package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wormhole/edge/edgetest"
	"wormhole/edge/edgetest/oracle"
	"wormhole/shared/protocol"
	"wormhole/wormhole/agent"
	"wormhole/wormhole/forward"
)

// drainTrace is what a wiretap sees of one agent's drain.
type drainTrace struct {
	mu       sync.Mutex // guards what follows
	edge     messages
	acked    bool
	requests int // sent into the tunnel after the acknowledgement
	streams  int // opened after it
}

func (d *drainTrace) frame(fromEdge bool, f muxFrame) []muxFrame {
	pass := []muxFrame{f}
	if !fromEdge || !f.data() {
		return pass
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if f.stream() == controlStream {
		for _, m := range d.edge.feed(f.body) {
			d.acked = d.acked || protocol.Type(m[0]) == protocol.TypeDrainAck
		}
		return pass
	}
	if !d.acked {
		return pass
	}
	if f.opens() {
		d.streams++
	}
	if bytes.HasPrefix(f.body, []byte("GET /get")) || bytes.HasPrefix(f.body, []byte("POST /post")) {
		d.requests++
	}
	return pass
}

// The order of an agent's drain: until the edge has acknowledged, requests come;
// after the acknowledgement none is sent; those that were are answered; and only
// then is the tunnel closed.
func TestA8DrainOrder(t *testing.T) {
	n := edgetest.StartNode(t)
	ca := edgetest.NewCA(t)
	log := oracle.NewLog()
	token := n.Token(t, host)
	edgetest.StartAgent(t, edgetest.AgentConfig{Token: token, Endpoint: edgetest.App(t, oracle.NewApp("stays", log))}, n)
	n.AwaitBackends(t, 1)

	clients := []*oracle.Client{nodeClient(t, n, "h1"), nodeClient(t, n, "h2"), nodeClient(t, n, "h3")}
	rate := scaled(60, 200)
	l := oracle.Start(oracle.Plan{Rate: rate, Clients: clients, Pause: 10 * time.Millisecond})
	late, opened, unanswered, unacked := 0, 0, 0, 0
	drains := scaled(10, 100)
	for range drains {
		trace := &drainTrace{}
		tap := &wiretap{tunnel: func() func(bool, muxFrame) []muxFrame { return trace.frame }}
		tap.start(t, ca, n.Addr("https"), edgetest.Roots(t, n.CAFile()))
		var inFlight, served atomic.Int64
		app := oracle.NewApp("leaves", log)
		a := edgetest.StartAgent(t, edgetest.AgentConfig{
			Token: token,
			Endpoint: edgetest.App(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				served.Add(1)
				inFlight.Add(1)
				defer inFlight.Add(-1)
				app.ServeHTTP(w, r)
			})),
			Change: func(c *agent.Config, _ *forward.Config) {
				c.Name, c.Edges, c.RootCAs = "leaves", []string{tap.addr}, edgetest.Roots(t, ca.File)
			},
		}, n)
		n.AwaitBackends(t, 2)
		before := served.Load()
		edgetest.Eventually(t, "requests reach the agent", func() bool { return served.Load() > before+5 })

		ctx, cancel := context.WithTimeout(context.Background(), edgetest.Patience)
		if err := a.Drain(ctx); err != nil {
			t.Errorf("drain: %v", err)
		}
		cancel()
		unanswered += int(inFlight.Load()) // the tunnel is closed now
		trace.mu.Lock()
		late += trace.requests
		opened += trace.streams
		if !trace.acked {
			unacked++
		}
		trace.mu.Unlock()
		a.Stop()
	}
	r := oracle.Judge(l.Stop(), log.Seen())
	t.Logf("%s", r)
	oracle.Row{
		ID: "A8", Done: fmt.Sprintf("an agent drained %d times under %d/s, every frame watched", drains, rate),
		Figure: fmt.Sprintf("%d requests and %d streams sent after the acknowledgement, %d open when the tunnel closed; %s", late, opened, unanswered, r.Figure()),
		Limit:  "0 requests after the acknowledgement, 0 open, 0 failed",
		OK:     late+unanswered+unacked == 0 && r.Good() && r.Repeated == 0,
	}.Verdict(t)
}
