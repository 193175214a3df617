package e2e

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"wormhole/edge/edgetest"
	"wormhole/edge/edgetest/oracle"
)

func TestA6OneHTTP2ConnectionThroughADrain(t *testing.T) { oneConnection(t, "A6", "h2") }

func TestA7OneHTTP3ConnectionThroughADrain(t *testing.T) { oneConnection(t, "A7", "h3") }

// oneConnection asks over one connection at a time while the edge at its other end
// drains. The client sends again only what the server says it did not process.
func oneConnection(t *testing.T, id, proto string) {
	s := newStage(t, 2, "--drain-delay", "200ms", "--drain-timeout", "5s")
	for i := range 2 {
		s.app(t, fmt.Sprint("app", i), host, []int{0, 1})
	}
	for _, e := range s.Edges {
		e.AwaitReady(t, 2)
	}
	c := s.client(t, proto, host, s.anyReady())
	// Requests that find no connection each dial one, of which all but the first are
	// closed again; so the one connection is there before the load begins.
	if r := c.Ask(t.Context(), oracle.Question{Path: "/get?n=1"}); r.Err != nil || r.Status != http.StatusOK {
		t.Fatalf("the first request: status %d, %v", r.Status, r.Err)
	}
	l := oracle.Start(oracle.Plan{Rate: 100, Clients: []*oracle.Client{c}, Pause: 30 * time.Millisecond})
	hold(500 * time.Millisecond)
	before := c.Dialed()
	drains := scaled(2, 8)
	for i := range drains {
		e := s.Edges[i%2]
		l.Mark("drain %d begins", i)
		e.Stop(t)
		l.Mark("drain %d is over", i)
		e.Start(t)
		e.AwaitReady(t, 2)
		edgetest.Eventually(t, "edge is ready again", e.IsReady)
		hold(scaled(200*time.Millisecond, 2*time.Second))
	}
	r := s.judge(t, l.Stop())
	moves := c.Dialed() - before
	oracle.Row{
		ID: id, Done: fmt.Sprintf("one %s connection at 100/s through %d drains of 2 edges", proto, drains),
		Figure: fmt.Sprintf("%s; moved %d times", r.Figure(), moves), Limit: "0 failed, 0 duplicated",
		OK: r.Good() && r.Repeated == 0,
	}.Verdict(t)
	if before != 1 || moves == 0 {
		t.Errorf("%d connections before the drains and %d after: the test has not shown what it claims", before, moves)
	}
}
