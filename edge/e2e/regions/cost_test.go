package regions

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"wormhole/edge/edgetest"
	"wormhole/edge/edgetest/oracle"
)

// A relay may cost 1.6 times what a request costs that is served locally: the CPU
// time of both edges against that of one. Rounds take turns, so that what else runs
// on the machine weighs on both; the median counts. One short round tells little of
// the ratio, and only that nothing is badly wrong.
func TestWhatARelayCosts(t *testing.T) {
	rounds, each, limit := 1, 4000, 4.0
	if oracle.Long() {
		rounds, each, limit = 5, 20_000, 1.6
	}
	edges := binaries.StartCluster(t, 2)
	app := edgetest.App(t, edgetest.Named("app"))
	work(t, edges[0].Status.CA, issue(t, edges[0], "app.localhost"), "app", app, 1, edges[0].Door).awaitTunnels(t, 1)
	cost := func(door *edge) float64 {
		c := client(t, door, edges[0])
		awaitOK(t, c, "app.localhost")
		before := ticks(t, edges[0]) + ticks(t, edges[1])
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range each / 8 {
					resp, err := c.Get("https://app.localhost/")
					if err != nil {
						t.Error(err)
						return
					}
					_, _ = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
					if resp.StatusCode != 200 {
						t.Errorf("status %d", resp.StatusCode)
						return
					}
				}
			})
		}
		wg.Wait()
		c.CloseIdleConnections()
		return ticks(t, edges[0]) + ticks(t, edges[1]) - before
	}
	cost(edges[0]) // both ways once, so that what is made once is not counted
	cost(edges[1])
	var ratios, local, relayed []float64
	for range rounds {
		l, r := cost(edges[0]), cost(edges[1])
		local, relayed, ratios = append(local, l), append(relayed, r), append(ratios, r/max(l, 1))
		t.Logf("%.2f s of CPU local, %.2f s relayed", l/100, r/100)
	}
	median := func(v []float64) float64 { slices.Sort(v); return v[len(v)/2] }
	ratio := median(ratios)
	oracle.Row{
		ID: "relay", Done: fmt.Sprintf("%d times %d requests served locally and through a relay, in turn", rounds, each),
		Figure: fmt.Sprintf("%.1f and %.1f us of the edges' CPU a request, %.2f times (%.2f to %.2f)",
			median(local)*10_000/float64(each), median(relayed)*10_000/float64(each), ratio, ratios[0], ratios[len(ratios)-1]),
		Limit: fmt.Sprintf("%.1f times", limit), OK: ratio <= limit,
	}.Verdict(t)
}

// ticks is the CPU time of a process, in hundredths of a second.
func ticks(t *testing.T, e *edge) float64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", e.Cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')'):]))
	var user, system float64
	_, _ = fmt.Sscan(f[12]+" "+f[13], &user, &system)
	return user + system
}
