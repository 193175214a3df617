package regions

import (
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"wormhole/edge/edgetest"
	"wormhole/edge/edgetest/oracle"
	"wormhole/wormhole/agent"
)

// B8 on a network: all edges are killed at once, and come back together. An agent
// knows both, and tries as seldom as if it knew one.
func TestB8AllEdgesOfANetworkAreDown(t *testing.T) {
	t.Parallel()
	agents, down, within := 30, time.Second, 15*time.Second
	limit := fmt.Sprintf("all within %s", within)
	bucket := agents // the waits have not grown yet: all may be back in one second
	if oracle.Long() {
		agents, down, within = 300, 30*time.Second, time.Minute
		bucket = agents / 10
		limit = fmt.Sprintf("all within %s, %d in a second", within, bucket)
	}
	edges := binaries.StartCluster(t, 2)
	roots := edgetest.Roots(t, edges[0].Status.CA)
	app := edgetest.App(t, edgetest.Named("app"))
	token := issue(t, edges[0], "app.localhost")
	doors := []string{edges[0].Door, edges[1].Door}
	workers := make([]*worker, agents)
	for i := range workers {
		workers[i] = workWith(t, agent.Config{
			Edges: doors, Token: token, Name: fmt.Sprint(i), RootCAs: roots, Transport: agent.OnlyTLS, EdgesMin: 1, EdgesMax: 1,
		}, app)
	}
	connected := func() int {
		n := 0
		for _, w := range workers {
			if len(w.Status().Tunnels) > 0 {
				n++
			}
		}
		return n
	}
	await := func(want int, within time.Duration) {
		t.Helper()
		for since := time.Now(); connected() != want; time.Sleep(20 * time.Millisecond) {
			if time.Since(since) > within {
				t.Fatalf("%d of %d agents have a tunnel after %s, want %d", connected(), agents, within, want)
			}
		}
	}
	await(agents, within)
	for _, e := range edges {
		e.Signal(syscall.SIGKILL)
		e.Exit(t, 5*time.Second)
	}
	await(0, within)
	time.Sleep(down)

	var wg sync.WaitGroup
	up := time.Now()
	for _, e := range edges {
		wg.Go(func() { e.Restart(t) })
	}
	wg.Wait()
	type second struct {
		edge  string
		after int
	}
	back, buckets := make([]time.Duration, 0, agents), map[second]int{}
	all, one := 0, 0 // the most in a second, and the most at one edge
	seen := make([]bool, agents)
	for len(back) < agents && time.Since(up) < within {
		for i, w := range workers {
			if tunnels := w.Status().Tunnels; !seen[i] && len(tunnels) > 0 {
				seen[i] = true
				took := time.Since(up)
				back = append(back, took)
				here, everywhere := second{tunnels[0].Node, int(took / time.Second)}, second{"", int(took / time.Second)}
				buckets[here]++
				buckets[everywhere]++
				one, all = max(one, buckets[here]), max(all, buckets[everywhere])
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	last := edgetest.Quantile(back, 1)
	for _, e := range edges {
		e.AwaitPeers(t, 1)
	}
	c := client(t, edges[1], edges[0])
	awaitOK(t, c, "app.localhost")
	oracle.Row{
		ID: "B8", Done: fmt.Sprintf("%d agents of a network of 2 edges, both killed and down for %s", agents, down),
		Figure: fmt.Sprintf("%d of %d back after %s, at most %d in a second, %d at one edge", len(back), agents, last.Round(100*time.Millisecond), all, one),
		Limit:  limit, OK: len(back) == agents && all <= bucket,
	}.Verdict(t)
}
