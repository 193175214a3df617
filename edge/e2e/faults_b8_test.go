package e2e

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"wormhole/edge/config"
	"wormhole/edge/edgetest"
	"wormhole/edge/edgetest/oracle"
	"wormhole/wormhole/agent"
	"wormhole/wormhole/forward"
)

func TestB8ReconnectStorm(t *testing.T) {
	const agents = 300
	down := scaled(2*time.Second, 30*time.Second)
	within := scaled(30*time.Second, time.Minute)
	// The longer the edge is away, the further the agents have backed off.
	share := scaled(0.50, 0.10)

	log := oracle.NewLog()
	endpoint := edgetest.App(t, oracle.NewApp("app", log))
	n := edgetest.StartNode(t)
	token := n.Token(t, "storm.example.com")
	began := time.Now()
	var wg sync.WaitGroup
	for i := range agents {
		wg.Go(func() { // all at once: the first storm
			edgetest.StartAgent(t, edgetest.AgentConfig{Token: token, Endpoint: endpoint, Change: func(c *agent.Config, _ *forward.Config) {
				c.Name = fmt.Sprint("agent", i)
			}}, n)
		})
	}
	wg.Wait()
	awaitAll := func(n *edgetest.Node, want int, limit time.Duration) time.Duration {
		t.Helper()
		since := time.Now()
		for len(n.Status().Backends) < want {
			if time.Since(since) > limit {
				t.Fatalf("%d of %d agents are back after %s", len(n.Status().Backends), want, limit)
			}
			time.Sleep(50 * time.Millisecond)
		}
		return time.Since(since)
	}
	awaitAll(n, agents, within)
	t.Logf("%d agents that start at once are there after %s", agents, time.Since(began).Round(time.Millisecond))

	// Visitors' requests, and beside them the same to the app itself: what delays
	// those is the machine.
	direct, err := oracle.NewClient(oracle.ClientConfig{Proto: "h1", URL: "http://" + host, Addr: oracle.At(endpoint)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(direct.Close)
	load := func(n *edgetest.Node, d time.Duration) (visitors, machine *oracle.Report) {
		a := edgetest.StartAgent(t, edgetest.AgentConfig{Token: n.Token(t, host), Endpoint: endpoint}, n)
		defer a.Stop()
		edgetest.Eventually(t, "the visitors' agent is there", func() bool {
			for _, s := range n.Sites() {
				if s.Host == host && s.Backends > 0 {
					return true
				}
			}
			return false
		})
		l := oracle.Start(oracle.Plan{Rate: 50, Clients: []*oracle.Client{nodeClient(t, n, "h1"), nodeClient(t, n, "h2")}})
		m := oracle.Start(oracle.Plan{Rate: 50, Clients: []*oracle.Client{direct}})
		hold(d)
		visitors, machine = oracle.Judge(l.Stop(), log.Seen()), oracle.Judge(m.Stop(), log.Seen())
		t.Logf("%sthe machine: %s", visitors, machine.Figure())
		return visitors, machine
	}
	calm, _ := load(n, scaled(time.Second, 10*time.Second))

	addr, dir := n.Addr("https"), n.Config.DataDir
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	hold(down)
	up := time.Now()
	n = edgetest.StartNode(t, func(c *config.Config) { c.DataDir, c.HTTPS = dir, addr })
	storm, machine := load(n, scaled(2*time.Second, 20*time.Second))
	awaitAll(n, agents, within-time.Since(up))

	buckets := map[int]int{}
	last := time.Duration(0)
	for _, b := range n.Status().Backends {
		after := b.Since.Sub(up)
		buckets[int(after/time.Second)]++
		last = max(last, after)
	}
	most := 0
	for _, count := range buckets {
		most = max(most, count)
	}
	ratio := float64(storm.P99) / float64(max(calm.P99, machine.P99, 5*time.Millisecond))
	oracle.Row{
		ID: "B8", Done: fmt.Sprintf("%d agents, their only edge down for %s", agents, down),
		Figure: fmt.Sprintf("all back after %s, at most %d in a second, visitors' p99 x %.1f (%s), %d of their requests failed",
			last.Round(100*time.Millisecond), most, ratio, storm.P99.Round(time.Millisecond), storm.Failed),
		Limit: fmt.Sprintf("all within %s, %.0f in a second, p99 x 3, 0 failed", within, share*agents),
		OK:    last <= within && float64(most) <= share*agents && storm.Good() && (ratio <= 3 || !oracle.Long()),
	}.Verdict(t)
}
