package regions

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"wormhole/edge/edgetest"
	"wormhole/edge/edgetest/oracle"
)

// awaitWhole waits until the edges that hold the store have all of it.
func awaitWhole(t *testing.T, edges ...*edge) {
	t.Helper()
	awaitInStep(t, time.Minute, edges...)
	for _, e := range edges {
		for began := time.Now(); e.Refresh() != nil || e.Status.Cluster.StoreCatchingUp; time.Sleep(50 * time.Millisecond) {
			if time.Since(began) > time.Minute {
				t.Fatalf("%s has not all of the store:\n%s", e.Door, e.Output())
			}
		}
	}
}

// B14 with a store on three edges: they are killed at random moments while tokens are
// issued at all edges, one at a time, and in the long form every fifth time all three
// at once. What was acknowledged is there afterwards, and with one of three dead
// writes go on.
func TestB14AcknowledgedWritesSurviveKillsOfThreeHosts(t *testing.T) {
	kills, writes := 1, 100
	if oracle.Long() {
		kills, writes = 50, 1000
	}
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 14))
	t.Logf("seed %d", seed)
	edges := binaries.StartCluster(t, 4)
	holders := edges[:3]
	promote(t, edges[0], "r2", "r3")
	awaitInStep(t, 30*time.Second, edges...)
	acked := map[string]bool{}
	var gaps []time.Duration
	refused, all := 0, 0
	for round := range kills {
		w := startWriters(t, 0, acked, edges...)
		await := func(n int, patience time.Duration) {
			t.Helper()
			for began := time.Now(); w.count() < n; time.Sleep(time.Millisecond) {
				if time.Since(began) > patience {
					t.Fatalf("no writes are taken %s after kill %d: %s", patience, round, w.refused[len(w.refused)-1])
				}
			}
		}
		await(w.count()+writes, 3*time.Minute)
		time.Sleep(time.Duration(random.IntN(int(50 * time.Millisecond))))
		victims := []*edge{holders[random.IntN(3)]}
		if round%5 == 4 {
			victims = holders
			all++
		}
		w.mu.Lock()
		w.last, w.gap = time.Now(), 0
		w.mu.Unlock()
		for _, e := range victims {
			e.Signal(syscall.SIGKILL)
		}
		for _, e := range victims {
			e.Exit(t, 5*time.Second)
		}
		if len(victims) == 1 {
			await(w.count()+20, time.Minute)
		} else {
			time.Sleep(time.Duration(random.IntN(int(200 * time.Millisecond))))
		}
		w.end()
		if len(victims) == 1 {
			gaps = append(gaps, w.gap)
		}
		refused += len(w.refused)
		for _, e := range victims {
			e.Restart(t)
		}
		awaitWhole(t, edges...)
	}
	n := lost(t, acked, edges...)
	slices.Sort(gaps)
	most := slices.Max(gaps)
	oracle.Row{
		ID: "B14 three", Done: fmt.Sprintf("the store on three of four edges that write as fast as they can, %d kills -9 at random, %d of them of all three", kills, all),
		Figure: fmt.Sprintf("%d of %d acknowledged writes lost, %d refused; with two of three no write for %s at most, %s at p50",
			n, len(acked), refused, most.Round(10*time.Millisecond), edgetest.Quantile(gaps, 0.5).Round(10*time.Millisecond)),
		Limit: fmt.Sprintf("0 lost of %d and more, writes go on within 20 s", kills*writes),
		OK:    n == 0 && len(acked) >= kills*writes && most < 20*time.Second,
	}.Verdict(t)
}

// B5 with a store on three edges: all three are killed, and the fourth serves its
// sites, admits agents and says why it takes no writes. Nothing that was acknowledged
// is lost when they come back.
func TestB5AllThreeHostsOfTheStoreAreGone(t *testing.T) {
	edges := binaries.StartCluster(t, 4)
	ca, last := filepath.Join(t.TempDir(), "ca.pem"), edges[3]
	copyFile(t, edges[0].Status.CA, ca)
	app := edgetest.App(t, edgetest.Named("app"))
	token := issue(t, edges[0], "app.localhost")
	work(t, ca, token, "app", app, 1, last.Door).awaitTunnels(t, 1)
	last.Status.CA = ca
	c := last.Client(t, "h1")
	awaitOK(t, c, "app.localhost")
	promote(t, edges[0], "r2", "r3")
	awaitInStep(t, 20*time.Second, edges...)
	acked := map[string]bool{}
	w := startWriters(t, 0, acked, edges...)
	edgetest.Eventually(t, "writes", func() bool { return w.count() > 100 })
	probe := edgetest.StartProbe(c, "https://app.localhost/", 5*time.Millisecond)
	for _, e := range edges[:3] {
		e.Signal(syscall.SIGKILL)
	}
	for _, e := range edges[:3] {
		e.Exit(t, 5*time.Second)
	}
	w.end()
	edgetest.Eventually(t, "the edge notices", func() bool { return last.Refresh() == nil && last.Status.Cluster.Store != "" })
	began := time.Now()
	if out, err := last.TryCLI("token", "issue", "--host", "x.localhost"); err == nil || !strings.Contains(out, "store cannot be reached") {
		t.Errorf("a write without a store: %v %s", err, out)
	} else if took := time.Since(began); took > 2*time.Second {
		t.Errorf("the write was refused after %s", took)
	}
	away := time.Second
	if oracle.Long() {
		away = 2 * time.Minute
	}
	came := 0
	for since := time.Now(); time.Since(since) < away; came++ { // agents come and go all the time
		g := work(t, ca, token, fmt.Sprint("guest", came), app, 1, last.Door)
		g.awaitTunnels(t, 1)
		time.Sleep(time.Second)
		g.drain(t)
	}
	for _, e := range edges[:3] {
		e.Restart(t)
	}
	awaitWhole(t, edges...)
	answers := probe.Stop()
	n := lost(t, acked, edges...)
	oracle.Row{
		ID: "B5 three", Done: fmt.Sprintf("all three edges that hold the store killed under writes for %s (the catalogue says an hour), 200/s at the fourth", away),
		Figure: fmt.Sprintf("%d of %d requests failed, p99 %s; %d agents came and went; a write is refused and says why; %d of %d acknowledged writes lost",
			answers.Failed(), len(answers), answers.P99().Round(time.Millisecond), came, n, len(acked)),
		Limit: "0 failed, 0 lost", OK: answers.Failed() == 0 && came > 0 && n == 0,
	}.Verdict(t)
	if answers.Failed() > 0 {
		t.Logf("failed:%s", answers.Faults())
	}
}
