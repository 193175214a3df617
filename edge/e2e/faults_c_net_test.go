package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wormhole/edge/edgetest"
	"wormhole/edge/edgetest/oracle"
	"wormhole/shared/tunnel"
	"wormhole/wormhole/agent"
	"wormhole/wormhole/forward"
)

// through makes an agent dial a relay instead of its node.
func through(r *edgetest.Relay, more func(*agent.Config)) func(*agent.Config, *forward.Config) {
	return func(c *agent.Config, _ *forward.Config) {
		c.Edges = []string{net.JoinHostPort("localhost", r.Port())}
		if more != nil {
			more(c)
		}
	}
}

func TestC6BlackHoledTunnel(t *testing.T) {
	mostlyWaits(t)
	// Without a name of its own the edge tells agents of no way around the relay.
	e := binaries.StartEdge(t, "--hostname", "")
	relay := edgetest.StartRelay(t, e.Status.Addresses["https"])
	app := answering(t, nil)
	token := binaries.Token(t, e.Dir, "--host", host)
	holed := sidecar(t, e, token, app, "holed", "WORMHOLE_EDGE=localhost:"+relay.Port(), "WORMHOLE_TRANSPORT=tls")
	sidecar(t, e, token, app, "direct")
	e.AwaitReady(t, 2)

	load := edgetest.StartProbe(e.Client(t, "h1"), "https://"+host+"/", 10*time.Millisecond)
	time.Sleep(time.Second)
	began := time.Now()
	at := time.Second
	relay.Stall(true)
	edgeClosed := awaitGone(t, e, "holed", 20*time.Second, nil)
	edgetest.Eventually(t, "the agent gives its tunnel up", func() bool { return contains(holed, "tunnel lost") })
	agentClosed := time.Since(began)
	answers := load.Stop()
	late := answers.Since(at + 5*time.Second)
	oracle.Row{
		ID:   "C6",
		Done: "a tunnel's bytes stop in both directions, the host has another tunnel, 100 requests/s",
		Figure: fmt.Sprintf("after 5 s %d of %d failed, %d by the dead tunnel; the edge closed after %s, the agent after %s",
			late.Failed(), len(late), late.From("holed"), ms(edgeClosed), ms(agentClosed)),
		Limit: "0 failed and not chosen after 5 s, both closed in 15 s (+1 s for the beat's tick)",
		OK: late.Failed() == 0 && late.From("holed") == 0 && answers.From("holed") > 0 &&
			edgeClosed <= 15*time.Second && agentClosed <= scaled(18*time.Second, 16*time.Second),
	}.Verdict(t)
	if t.Failed() {
		t.Log(late.Faults())
	}
}

func TestC8ResetOfLiveTunnels(t *testing.T) {
	agents, rounds := scaled(20, 100), scaled(1, 3)
	n := edgetest.StartNode(t)
	relay := edgetest.StartRelay(t, n.Addr("https"))
	app, token := answering(t, nil), n.Token(t, host)
	for i := range agents {
		edgetest.StartAgent(t, edgetest.AgentConfig{Token: token, Endpoint: app, Change: through(relay, func(c *agent.Config) {
			c.Name = fmt.Sprint("agent", i)
		})}, n)
	}
	n.AwaitBackends(t, agents)
	var times []time.Duration
	for round := range rounds {
		if round > 0 {
			time.Sleep(31 * time.Second) // the back-off starts over after a stable time
		}
		old := map[string]bool{}
		for _, b := range n.Status().Backends {
			old[b.ID] = true
		}
		back := map[string]bool{}
		began := time.Now()
		relay.Reset()
		edgetest.Eventually(t, "all agents are back", func() bool {
			for _, b := range n.Status().Backends {
				if !old[b.ID] && b.State == "ready" && !back[b.Name] {
					back[b.Name] = true
					times = append(times, time.Since(began))
				}
			}
			return len(back) == agents
		})
	}
	p50, p99 := edgetest.Quantile(times, 0.5), edgetest.Quantile(times, 0.99)
	oracle.Row{
		ID:     "C8",
		Done:   fmt.Sprintf("RST to %d live tunnels at once, %d times", agents, rounds),
		Figure: fmt.Sprintf("back after p50 %s, p99 %s", ms(p50), ms(p99)),
		Limit:  "p50 1 s, p99 3 s",
		OK:     p50 <= scaled(2*time.Second, time.Second) && p99 <= scaled(5*time.Second, 3*time.Second),
	}.Verdict(t)
}

// carrierOf is the carrier of the only ready backend, empty if there is none.
func carrierOf(n *edgetest.Node) string {
	carrier := ""
	for _, b := range n.Status().Backends {
		if b.State == "ready" {
			carrier = b.Carrier
		}
	}
	return carrier
}

func TestC9UDPBlockedOrDying(t *testing.T) {
	mostlyWaits(t)
	n := edgetest.StartNode(t)
	relay := edgetest.StartRelay(t, n.Addr("https"))
	app, token := answering(t, nil), n.Token(t, host)
	auto := func(c *agent.Config) { c.Transport = agent.Auto }

	// UDP is blocked from the start.
	relay.DropUDP(true)
	began := time.Now()
	first := edgetest.StartAgent(t, edgetest.AgentConfig{Token: token, Endpoint: app, Change: through(relay, auto)}, n)
	edgetest.Eventually(t, "a tunnel without UDP", func() bool { return carrierOf(n) == string(tunnel.TLS) })
	atStart := time.Since(began)
	first.Stop()
	edgetest.Eventually(t, "the first agent is gone", func() bool { return len(n.Status().Backends) == 0 })

	// TCP leads nowhere, so the tunnel is QUIC; then UDP dies and TCP is back.
	relay.DropUDP(false)
	relay.Stall(true)
	second := edgetest.StartAgent(t, edgetest.AgentConfig{Token: token, Endpoint: app, Change: through(relay, auto)}, n)
	edgetest.Eventually(t, "a tunnel over QUIC", func() bool { return carrierOf(n) == string(tunnel.QUIC) })
	relay.Stall(false)
	relay.DropUDP(true)
	began = time.Now()
	edgetest.Eventually(t, "a tunnel over TLS", func() bool { return carrierOf(n) == string(tunnel.TLS) })
	midSession := time.Since(began)
	second.Stop()
	oracle.Row{
		ID:     "C9 fallback",
		Done:   "UDP blocked from the start; UDP dies below a QUIC tunnel; transport auto",
		Figure: fmt.Sprintf("tunnel after %s; another after %s", ms(atStart), ms(midSession)),
		Limit:  "5 s; 10 s",
		OK:     atStart <= 5*time.Second && midSession <= 10*time.Second,
	}.Verdict(t)
}

func TestC9NATRebinding(t *testing.T) {
	const streams = 20
	n := edgetest.StartNode(t)
	relay := edgetest.StartRelay(t, n.Addr("https"))
	piece := make([]byte, 1<<10)
	app := answering(t, map[string]http.HandlerFunc{"/pieces": func(w http.ResponseWriter, r *http.Request) {
		for range 60 { // 3 s
			if _, err := w.Write(piece); err != nil {
				return
			}
			_ = http.NewResponseController(w).Flush()
			select {
			case <-r.Context().Done():
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}})
	edgetest.StartAgent(t, edgetest.AgentConfig{Token: n.Token(t, host), Endpoint: app, Change: through(relay, func(c *agent.Config) {
		c.Transport = agent.OnlyQUIC
	})}, n)
	n.AwaitBackends(t, 1)
	id := n.Status().Backends[0].ID
	client := n.Client(t, "h1")
	var running, begun sync.WaitGroup
	var failed, rebound atomic.Int64
	begun.Add(streams)
	for range streams {
		running.Go(func() {
			resp, err := client.Get("https://" + host + "/pieces")
			begun.Done()
			if err != nil {
				failed.Add(1)
				return
			}
			defer resp.Body.Close()
			if got, err := io.Copy(io.Discard, resp.Body); err != nil || got != 60<<10 {
				failed.Add(1)
			}
		})
	}
	begun.Wait()
	for range 3 {
		rebound.Add(int64(relay.Rebind()))
		time.Sleep(500 * time.Millisecond)
	}
	running.Wait()
	kept := len(n.Status().Backends) == 1 && n.Status().Backends[0].ID == id
	oracle.Row{
		ID:     "C9 rebinding",
		Done:   fmt.Sprintf("the NAT below a QUIC tunnel with %d streams changes its port 3 times", streams),
		Figure: fmt.Sprintf("%d of %d streams failed, %d ports changed, tunnel kept: %t", failed.Load(), streams, rebound.Load(), kept),
		Limit:  "0 failed",
		OK:     failed.Load() == 0 && rebound.Load() >= 3 && kept,
	}.Verdict(t)
}

func TestC10ThinPipe(t *testing.T) {
	n := edgetest.StartNode(t)
	relay := edgetest.StartRelay(t, n.Addr("https"))
	relay.Limit(1_000_000 / 8)
	app := answering(t, map[string]http.HandlerFunc{"/bulk": func(w http.ResponseWriter, _ *http.Request) {
		piece := make([]byte, 32<<10)
		for {
			if _, err := w.Write(piece); err != nil {
				return
			}
		}
	}})
	edgetest.StartAgent(t, edgetest.AgentConfig{Token: n.Token(t, host), Endpoint: app, Change: through(relay, nil)}, n)
	n.AwaitBackends(t, 1)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+host+"/bulk", nil)
	resp, err := n.Client(t, "h1").Do(req)
	if err != nil {
		t.Fatal(err)
	}
	var bulk atomic.Int64
	var reading sync.WaitGroup
	reading.Go(func() {
		defer resp.Body.Close()
		buf := make([]byte, 32<<10)
		for {
			k, err := resp.Body.Read(buf)
			bulk.Add(int64(k))
			if err != nil {
				return
			}
		}
	})
	edgetest.Eventually(t, "the pipe is full", func() bool { return bulk.Load() > 256<<10 })
	from, began := bulk.Load(), time.Now()
	small := edgetest.StartProbe(n.Client(t, "h1"), "https://"+host+"/", 250*time.Millisecond)
	time.Sleep(scaled(8*time.Second, time.Minute))
	answers := small.Stop()
	rate := float64(bulk.Load()-from) * 8 / time.Since(began).Seconds() / 1e6
	cancel()
	reading.Wait()
	oracle.Row{
		ID:     "C10",
		Done:   "1 Mbit/s between agent and edge, one download without end, 4 small requests/s",
		Figure: fmt.Sprintf("%d of %d small requests failed, p99 %s; the download got %.2f Mbit/s", answers.Failed(), len(answers), ms(answers.P99()), rate),
		Limit:  "0 failed, p99 2 s, download above 0.5 Mbit/s",
		OK:     answers.Failed() == 0 && answers.P99() <= scaled(3*time.Second, 2*time.Second) && rate > 0.5,
	}.Verdict(t)
}
