package regions

import (
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"wormhole/edge/edgetest"
	"wormhole/edge/edgetest/oracle"
)

// distant starts one edge for each delay, in regions of their own. Agents and other
// edges are told to reach it over a way that is so long; the test's own clients and
// Door do not take it.
func distant(t *testing.T, delays ...time.Duration) ([]*edge, []*edgetest.Relay) {
	t.Helper()
	var edges []*edge
	var ways []*edgetest.Relay
	for _, d := range delays {
		port := edgetest.KeptPort(t)
		way := edgetest.StartRelay(t, "127.0.0.1:"+port)
		way.Delay(d)
		e := binaries.JoinCluster(t, edges, "--https", "127.0.0.1:"+port, "--advertise", "localhost:"+way.Port(), "--drain-delay", "500ms")
		e.Door = "localhost:" + port
		edges, ways = append(edges, e), append(ways, way)
	}
	for _, e := range edges {
		e.AwaitPeers(t, len(edges)-1)
	}
	return edges, ways
}

// at are the edges, as numbers from 1, that the agent holds tunnels to.
func (w *worker) at(edges []*edge) string {
	var out []string
	for _, tunnel := range w.Status().Tunnels {
		if i := slices.IndexFunc(edges, func(e *edge) bool { return e.Status.Node == tunnel.Node }); i >= 0 && !tunnel.Leaving {
			out = append(out, fmt.Sprint(i+1))
		}
	}
	slices.Sort(out)
	return strings.Join(out, "+")
}

// A site's agents are told of every edge and leave the far one they were started
// with for the two nearest; they move when the nearest is killed, and return when it
// is back. Clients of the living edges notice none of it.
func TestAgentsKeepToTheNearestEdges(t *testing.T) {
	edges, ways := distant(t, 2*time.Millisecond, 25*time.Millisecond, 60*time.Millisecond)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	copyFile(t, edges[0].Status.CA, ca)
	app := edgetest.App(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		_, _ = w.Write(text)
	}))
	agents := 6
	if oracle.Long() {
		agents = 40
	}
	token := issue(t, edges[0], "app.localhost")
	var workers []*worker
	for i := range agents {
		workers = append(workers, workAt(t, ca, token, fmt.Sprint(i), app, 2, 2, "localhost:"+ways[2].Port()))
	}
	await := func(what, want string) time.Duration {
		t.Helper()
		began := time.Now()
		t.Logf("%s: %s", began.Format("05.000"), what)
		edgetest.Eventually(t, fmt.Sprintf("%s: tunnels to edges %s", what, want), func() bool {
			return !slices.ContainsFunc(workers, func(w *worker) bool { return w.at(edges) != want || len(w.Status().Tunnels) != 2 })
		})
		return time.Since(began)
	}
	found := await("at first", "1+2")

	var asked, failed atomic.Int64
	var clients sync.WaitGroup
	stop := make(chan struct{})
	for _, e := range edges[1:] {
		e.Status.CA = ca
		for _, proto := range []string{"h1", "h2"} {
			c := e.Client(t, proto)
			c.Timeout = 5 * time.Second
			awaitOK(t, c, "app.localhost")
			for i := range 2 {
				clients.Go(func() {
					for n := 0; ; n++ {
						select {
						case <-stop:
							return
						case <-time.After(4 * time.Millisecond):
						}
						text := strings.Repeat(fmt.Sprint(n, i), 100)
						// A POST is never sent twice, unless it surely reached nobody.
						resp, err := c.Post("https://app.localhost/", "text/plain", strings.NewReader(text))
						got := ""
						if err == nil {
							body, readErr := io.ReadAll(resp.Body)
							_ = resp.Body.Close()
							got, err = string(body), readErr
						}
						asked.Add(1)
						if err != nil || resp.StatusCode != 200 || got != text {
							failed.Add(1)
							t.Logf("%s: edge %s: %v %.100s", time.Now().Format("05.000"), e.Door, err, got)
						}
					}
				})
			}
		}
	}
	moved := make([]time.Duration, 2)
	// A drain loses nothing. A kill loses what is inside: requests of clients at edge 3,
	// which relays to 1 and 2.
	edges[0].Signal(syscall.SIGTERM)
	moved[0] = await("after the nearest was stopped", "2+3")
	edges[0].Exit(t, 30*time.Second)
	edges[0].Restart(t)
	moved[1] = await("after it came back", "1+2")
	beforeKill := failed.Load()
	edges[0].Signal(syscall.SIGKILL)
	killed := await("after the nearest was killed", "2+3")
	close(stop)
	clients.Wait()
	oracle.Row{
		ID:     "agents-nearest",
		Done:   fmt.Sprintf("%d agents, edges 2, 25 and 60 ms away; the nearest is drained, restarted and killed under POSTs at the others", agents),
		Figure: fmt.Sprintf("at the two nearest %.1f s after the start, moved %.1f s and back %.1f s after the drain and the restart, moved %.1f s after the kill; %d of %d failed up to the kill, %d after it", found.Seconds(), moved[0].Seconds(), moved[1].Seconds(), killed.Seconds(), beforeKill, asked.Load(), failed.Load()-beforeKill),
		Limit:  "0 failed, but for those inside the edge that is killed; moved within 15 s",
		OK:     beforeKill == 0 && failed.Load()-beforeKill <= 4 && asked.Load() > 500,
	}.Verdict(t)
}
