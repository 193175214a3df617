package e2e

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"wormhole/edge/edgetest"
	"wormhole/edge/edgetest/oracle"
)

func TestA3RollingRestartOfAgents(t *testing.T) {
	s := newStage(t, 2)
	drain := "WORMHOLE_DRAIN_TIMEOUT=" + scaled("3s", "8s")
	type agent struct {
		name, site string
		*edgetest.Process
	}
	var agents []*agent
	for i := range 2 {
		agents = append(agents, &agent{name: fmt.Sprint("app", i), site: host}, &agent{name: fmt.Sprint("chat", i), site: chatHost})
	}
	edges := []int{0, 1}
	for _, a := range agents {
		a.Process = s.app(t, a.name, a.site, edges, drain)
	}
	ready := func() {
		for _, e := range s.Edges {
			e.AwaitReady(t, len(agents))
		}
	}
	ready()
	var clients []*oracle.Client
	for _, e := range s.Edges {
		for _, proto := range []string{"h1", "h2", "h3"} {
			clients = append(clients, s.client(t, proto, host, oracle.At(e.HTTPS)))
		}
	}
	plan := oracle.Plan{
		Rate: 120, WebSockets: 4, Events: 4, Chats: 4, Pause: 20 * time.Millisecond,
		Clients: clients, WebSocketClients: clients[:1], EventClients: clients,
		ChatClients: []*oracle.Client{s.client(t, "h2", chatHost, oracle.At(s.Edges[0].HTTPS))}, Reopen: true,
	}
	if oracle.Long() {
		plan = plan.Standard()
	}
	l := oracle.Start(plan)
	awaitOpen(t, l, plan.WebSockets+plan.Events+plan.Chats)
	hold(scaled(500*time.Millisecond, 2*time.Second))
	for _, a := range agents {
		l.Mark("agent %s is told to stop", a.name)
		began := time.Now()
		a.Signal(syscall.SIGTERM)
		if code := a.Exit(t, 10*time.Second); code != 0 {
			t.Errorf("agent %s ended with status %d", a.name, code)
		}
		if took := time.Since(began); took > 9*time.Second {
			t.Errorf("agent %s took %s to leave, want less than 9 s", a.name, took)
		}
		l.Mark("agent %s has stopped", a.name)
		a.Process = s.app(t, a.name, a.site, edges, drain)
		ready()
		l.Mark("agent %s is back", a.name)
		hold(scaled(200*time.Millisecond, time.Second))
	}
	r := s.judge(t, l.Stop())
	oracle.Row{
		ID: "A3", Done: fmt.Sprintf("4 agents of 2 hosts restarted in turn under %d/s and %d streams for %s",
			plan.Rate, plan.WebSockets+plan.Events+plan.Chats, r.Duration.Round(time.Second)),
		Figure: r.Figure(), Limit: "0 failed, 0 duplicated", OK: r.Good() && r.Repeated == 0,
	}.Verdict(t)
}
