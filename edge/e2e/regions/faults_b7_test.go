package regions

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"wormhole/edge/admin"
	"wormhole/edge/authority"
	"wormhole/edge/edgetest"
	"wormhole/edge/edgetest/oracle"
	"wormhole/wormhole/agent"
)

// operator is a connection to the edge's API that is kept: one a question would be
// among what is measured.
func operator(t *testing.T, e *edge) *admin.Client {
	t.Helper()
	c, err := admin.Connect(e.Dir, "")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// status is what an edge says now.
func status(t *testing.T, c *admin.Client) admin.Status {
	t.Helper()
	var s admin.Status
	if err := c.Call(context.Background(), http.MethodGet, "/v1/status", nil, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// seen asks an edge again and again how many sites it reaches through others, until
// the answer has changed by n, and returns when each change was first in an answer. The
// edge that the agents are at is not asked meanwhile: to tell of hundreds of backends
// takes it long, and what it does then is not what is measured.
func seen(t *testing.T, other *admin.Client, n int, within time.Duration) []time.Time {
	t.Helper()
	from := status(t, other).Cluster.Routes
	var list []time.Time
	for deadline := time.Now().Add(within); len(list) < n; time.Sleep(2 * time.Millisecond) {
		routes, at := status(t, other).Cluster.Routes, time.Now()
		for max(routes-from, from-routes) > len(list) {
			list = append(list, at)
		}
		if at.After(deadline) {
			t.Fatalf("%d of %d changes are known at the other edge within %s", len(list), n, within)
		}
	}
	return list
}

// later is how much later than the k-th change the k-th was known.
func later(changed, known []time.Time) []time.Duration {
	slices.SortFunc(changed, time.Time.Compare)
	out := make([]time.Duration, len(known))
	for k := range known {
		out[k] = known[k].Sub(changed[k])
	}
	return out
}

// B7: many agents come and go, and the edge that they are not at knows.
func TestB7RoutesOfManyAgentsConverge(t *testing.T) {
	agents, within := 60, edgetest.Patience
	if oracle.Long() {
		agents, within = 500, 2*time.Minute
	}
	edges := binaries.StartCluster(t, 2)
	roots := edgetest.Roots(t, edges[0].Status.CA)
	app := edgetest.App(t, edgetest.Named("app"))
	own, other := operator(t, edges[0]), operator(t, edges[1])
	tokens := make([]string, agents)
	for i := range tokens {
		issued, err := own.IssueToken(t.Context(), authority.IssueRequest{Hosts: []string{fmt.Sprintf("s%d.localhost", i)}})
		if err != nil {
			t.Fatal(err)
		}
		tokens[i] = issued.Token
	}
	workers := make([]*worker, agents)
	left := make([]time.Time, agents)
	var wg sync.WaitGroup
	each := func(f func(i int)) { // 50 a second
		wg.Go(func() {
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for i := range workers {
				<-tick.C
				f(i)
			}
		})
	}
	each(func(i int) {
		workers[i] = workWith(t, agent.Config{ // the region, so that none moves to the other edge
			Edges: []string{edges[0].Door}, Token: tokens[i], Name: fmt.Sprint(i), RootCAs: roots, Transport: agent.OnlyTLS,
			EdgesMin: 1, EdgesMax: 1, Region: "r1",
		}, app)
	})
	known := seen(t, other, agents, within)
	wg.Wait()
	var joined []time.Time // when their own edge welcomed them, each with its app ready
	for _, b := range status(t, own).Backends {
		joined = append(joined, b.Since)
	}
	if len(joined) != agents {
		t.Fatalf("%d backends at their own edge, want %d", len(joined), agents)
	}
	came := later(joined, known)
	each(func(i int) { // counted from before the agent hangs up
		left[i] = time.Now()
		wg.Go(workers[i].stop)
	})
	known = seen(t, other, agents, within)
	wg.Wait()
	went := later(left, known)
	arrive, leave := edgetest.Quantile(came, 0.99), edgetest.Quantile(went, 0.99)
	oracle.Row{
		ID: "B7", Done: fmt.Sprintf("%d agents of as many sites come to one edge, 50/s, and go again; another is asked how many sites it reaches through it", agents),
		Figure: fmt.Sprintf("known there p50 %s, p99 %s later, forgotten p50 %s, p99 %s later", edgetest.Quantile(came, 0.5).Round(time.Millisecond), arrive.Round(time.Millisecond),
			edgetest.Quantile(went, 0.5).Round(time.Millisecond), leave.Round(time.Millisecond)),
		Limit: "p99 500 ms", OK: max(arrive, leave) <= 500*time.Millisecond,
	}.Verdict(t)
}
