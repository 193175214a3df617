package e2e

import (
	"fmt"
	"testing"
	"time"

	"wormhole/edge/edgetest"
	"wormhole/edge/edgetest/oracle"
)

func TestA1RollingRestartOfEdges(t *testing.T) {
	s := newStage(t, 3, "--drain-delay", "500ms", "--drain-timeout", scaled("2s", "10s"))
	// Each agent has tunnels to two edges, and each edge to two agents of each site.
	for i := range 2 {
		s.app(t, fmt.Sprint("app", i), host, []int{0, 1, 2})
		s.app(t, fmt.Sprint("chat", i), chatHost, []int{0, 1, 2})
	}
	for _, e := range s.Edges {
		e.AwaitReady(t, 4)
	}
	front := oracle.At(s.StartHAProxy(t))
	var clients []*oracle.Client
	for range 4 {
		clients = append(clients, s.client(t, "h1", host, front), s.client(t, "h2", host, front), s.client(t, "h3", host, s.anyReady()))
	}
	plan := oracle.Plan{
		Rate: 120, WebSockets: 6, Events: 6, Chats: 4,
		Clients: clients, WebSocketClients: clients[:1], EventClients: clients[:3],
		ChatClients: []*oracle.Client{s.client(t, "h2", chatHost, front)}, Reopen: true,
	}
	if oracle.Long() {
		plan = plan.Standard()
	}
	l := oracle.Start(plan)
	awaitOpen(t, l, plan.WebSockets+plan.Events+plan.Chats)
	hold(scaled(time.Second, 15*time.Second))
	for i, e := range s.Edges {
		l.Mark("edge %d is told to stop", i)
		e.Stop(t)
		l.Mark("edge %d has stopped", i)
		e.Start(t)
		l.Mark("edge %d is started", i)
		edgetest.Eventually(t, "edge is ready again", e.IsReady)
		hold(scaled(500*time.Millisecond, 20*time.Second))
	}
	hold(scaled(time.Second, 15*time.Second))
	r := s.judge(t, l.Stop())
	oracle.Row{
		ID: "A1", Done: fmt.Sprintf("3 edges restarted in turn behind HAProxy, %d/s and %d streams over h1, h2, h3 for %s",
			plan.Rate, plan.WebSockets+plan.Events+plan.Chats, r.Duration.Round(time.Second)),
		Figure: r.Figure(), Limit: "0 failed, 0 duplicated", OK: r.Good() && r.Repeated == 0,
	}.Verdict(t)
}
