package regions

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"wormhole/edge/admin"
	"wormhole/edge/authority"
	"wormhole/edge/cluster"
	"wormhole/edge/edgetest"
	"wormhole/edge/edgetest/oracle"
)

// promote has three edges hold the store of their network.
func promote(t *testing.T, by *edge, names ...string) cluster.Promotion {
	t.Helper()
	out := by.CLI(t, append([]string{"cluster", "promote", "--json"}, names...)...)
	var done cluster.Promotion
	if err := json.Unmarshal([]byte(out), &done); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return done
}

// awaitInStep waits until every edge is in step with its store.
func awaitInStep(t *testing.T, patience time.Duration, edges ...*edge) {
	t.Helper()
	began := time.Now()
	for _, e := range edges {
		for e.Refresh() != nil || e.Status.Cluster.Store != "" {
			if time.Since(began) > patience {
				t.Fatalf("edge %s is not in step within %s: %s\n%s", e.Door, patience, e.Status.Cluster.Store, e.Output())
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// writers issue tokens at edges, one after another at each.
type writers struct {
	stop chan struct{}
	wg   sync.WaitGroup

	mu      sync.Mutex
	acked   map[string]bool
	refused []string
	last    time.Time     // last acknowledgement
	gap     time.Duration // longest time without one
}

// startWriters has tokens issued at each edge, with a pause after each.
func startWriters(t *testing.T, pause time.Duration, acked map[string]bool, edges ...*edge) *writers {
	t.Helper()
	w := &writers{stop: make(chan struct{}), acked: acked, last: time.Now()}
	for i, e := range edges {
		client, err := admin.Connect(e.Dir, "")
		if err != nil {
			t.Fatal(err)
		}
		w.wg.Go(func() { // ends with stop
			for n := 0; ; n++ {
				select {
				case <-w.stop:
					return
				default:
				}
				issued, err := client.IssueToken(t.Context(), authority.IssueRequest{Hosts: []string{fmt.Sprintf("h%d.localhost", i)}})
				w.mu.Lock()
				if err == nil {
					w.acked[issued.ID] = true
					w.gap = max(w.gap, time.Since(w.last))
					w.last = time.Now()
				} else {
					w.refused = append(w.refused, err.Error())
				}
				w.mu.Unlock()
				if err != nil {
					time.Sleep(5 * time.Millisecond)
				} else {
					time.Sleep(pause)
				}
			}
		})
	}
	return w
}

func (w *writers) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.acked)
}

func (w *writers) end() {
	close(w.stop)
	w.wg.Wait()
}

// learns is how long an edge may take to know what another wrote: the watch by which
// it hears of it may have died with the edge that told it, which is found out in
// seconds. What it does not know then is lost.
const learns = 15 * time.Second

// lost counts the tokens that an edge does not know.
func lost(t *testing.T, acked map[string]bool, edges ...*edge) (n int) {
	t.Helper()
	began := time.Now()
	for i, e := range edges {
		client, err := admin.Connect(e.Dir, "")
		if err != nil {
			t.Fatal(err)
		}
		for {
			list, err := client.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			have := map[string]bool{}
			for _, info := range list {
				have[info.ID] = true
			}
			var lacks []string
			for id := range acked {
				if !have[id] {
					lacks = append(lacks, id)
				}
			}
			if len(lacks) == 0 {
				break
			}
			if time.Since(began) > learns {
				t.Logf("edge %d does not know %d, such as %s", i+1, len(lacks), lacks[0])
				n += len(lacks)
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	return n
}

// The store moves from one edge to three while tokens are issued and requests go on.
func TestAStoreIsPromotedUnderWrites(t *testing.T) {
	edges := binaries.StartCluster(t, 4)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	copyFile(t, edges[0].Status.CA, ca)
	app := edgetest.App(t, edgetest.Named("app"))
	work(t, ca, issue(t, edges[0], "app.localhost"), "app", app, 1, edges[3].Door).awaitTunnels(t, 1)
	c := client(t, edges[1], edges[0])
	awaitOK(t, c, "app.localhost")
	for what, r := range map[string]struct {
		args []string
		says string
	}{
		"one":       {[]string{"r2"}, "exactly three"},
		"four":      {[]string{"r1", "r2", "r3", "r4"}, "exactly three"},
		"twice":     {[]string{"r2", edges[1].Status.Node}, "exactly three"},
		"not there": {[]string{"r2", "yyz"}, "no edge"},
		"many":      {[]string{"r2", "localhost"}, "several edges"},
		"no host":   {[]string{"r2", "r3", "r4"}, "exactly three"},
	} {
		if out, err := edges[1].TryCLI(append([]string{"cluster", "promote"}, r.args...)...); err == nil || !strings.Contains(out, r.says) {
			t.Errorf("%s: %v, it says %s", what, err, out)
		}
	}
	acked := map[string]bool{}
	w := startWriters(t, 5*time.Millisecond, acked, edges...)
	probe := edgetest.StartProbe(c, "https://app.localhost/", 5*time.Millisecond)
	edgetest.Eventually(t, "writes", func() bool { return w.count() > 50 })
	began := time.Now()
	done := promote(t, edges[1], "r2", edges[2].Door) // asked at one that does not hold it
	took := time.Since(began)
	before := w.count()
	edgetest.Eventually(t, "writes go on", func() bool { return w.count() > before+50 })
	w.end()
	answers := probe.Stop()
	t.Logf("%d entries moved in %s, %d ms of refusals at the host, longest gap between two acknowledged writes %s, %d refused",
		done.Entries, took, done.HeldMillis, w.gap, len(w.refused))
	if len(w.refused) > 0 {
		t.Logf("such as %s", w.refused[len(w.refused)/2])
	}
	if answers.Failed() > 0 {
		t.Errorf("%d of %d requests failed:%s", answers.Failed(), len(answers), answers.Faults())
	}
	if w.gap > 10*time.Second {
		t.Errorf("no write was taken for %s", w.gap)
	}
	awaitInStep(t, 20*time.Second, edges...)
	if n := lost(t, acked, edges...); n > 0 {
		t.Errorf("%d of %d acknowledged writes lost", n, len(acked))
	}
	var want []string
	for i, e := range edges {
		if i < 3 {
			want = append(want, e.Status.Node)
		}
		if s := e.Status.Cluster; s.StoreHere != (i < 3) || len(s.StoreEdges) != 3 || s.StoreGeneration != 2 {
			t.Errorf("edge %d says %+v", i+1, s)
		}
	}
	slices.Sort(want)
	if !slices.Equal(done.Edges, want) {
		t.Errorf("%v hold the store, want %v", done.Edges, want)
	}
	if out := edges[3].CLI(t, "cluster", "list"); !strings.Contains(out, "in step, on 3 edges") || strings.Count(out, "up, store") != 3 {
		t.Errorf("cluster list says\n%s", out)
	}
	if out, err := edges[0].TryCLI("cluster", "promote", "r2", "r3"); err == nil || !strings.Contains(out, "already") {
		t.Errorf("twice: %v %s", err, out)
	}
	for _, e := range edges[:3] {
		if out, err := e.TryCLI("cluster", "leave", e.Status.Node); err == nil {
			t.Errorf("an edge with a part of the store left: %s", out)
		}
	}
	// A newcomer is told where the store is.
	late := binaries.JoinCluster(t, edges)
	awaitInStep(t, 10*time.Second, late)
	if n := lost(t, acked, late); n > 0 {
		t.Errorf("a newcomer lacks %d", n)
	}
}

// Somebody is killed while the store moves. Either it moved or it did not, for
// everybody, and nothing that was acknowledged is lost; if it did not, it moves when
// asked again.
func TestAPromotionIsKilled(t *testing.T) {
	type kill struct {
		victim int
		when   string
	}
	trials := []kill{{0, "decided"}}
	if oracle.Long() {
		trials = append(trials, trials[0], trials[0])
		for i := range 3 {
			trials = append(trials, kill{i, "begun"}, kill{i, "decided"}, kill{i, "any"}, kill{i, "any"}, kill{i, "any"})
		}
	}
	moved, stayed, total := 0, 0, 0
	for _, trial := range trials {
		edges := binaries.StartCluster(t, 3)
		acked := map[string]bool{}
		w := startWriters(t, 0, acked, edges...)
		edgetest.Eventually(t, "writes", func() bool { return w.count() > 50 })
		victim := edges[trial.victim]
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = edges[0].TryCLI("cluster", "promote", "r2", "r3") })
		file := filepath.Join(edges[0].Dir, "cluster", "placement.json")
		switch trial.when {
		case "begun":
			file = filepath.Join(victim.Dir, "cluster", "stores")
			fallthrough
		case "decided":
			for began := time.Now(); time.Since(began) < 30*time.Second; time.Sleep(time.Millisecond / 4) {
				if _, err := os.Stat(file); err == nil {
					break
				}
			}
		default:
			time.Sleep(time.Duration(rand.IntN(int(9 * time.Second))))
		}
		victim.Signal(syscall.SIGKILL)
		victim.Exit(t, 5*time.Second)
		wg.Wait()
		w.end()
		victim.Restart(t)
		// All agree soon, and keep to it.
		generation := func() (common uint64, agreed bool) {
			for i, e := range edges {
				if e.Refresh() != nil || e.Status.Cluster.Store != "" || i > 0 && e.Status.Cluster.StoreGeneration != common {
					return 0, false
				}
				common = e.Status.Cluster.StoreGeneration
			}
			return common, true
		}
		var now uint64
		var agreedAt time.Time
		for began := time.Now(); agreedAt.IsZero() || time.Since(agreedAt) < 3*time.Second; time.Sleep(20 * time.Millisecond) {
			if g, agreed := generation(); !agreed {
				agreedAt = time.Time{}
			} else if agreedAt.IsZero() || g != now {
				now, agreedAt = g, time.Now()
			}
			if time.Since(began) > time.Minute {
				t.Fatalf("%+v: edges do not agree: %+v %+v %+v", trial, edges[0].Status.Cluster, edges[1].Status.Cluster, edges[2].Status.Cluster)
			}
		}
		n := lost(t, acked, edges...)
		if now == 0 {
			stayed++
			edges[0].AwaitPeers(t, 2)
			promote(t, edges[0], "r2", "r3")
			awaitInStep(t, 30*time.Second, edges...)
			n += lost(t, acked, edges...)
		} else {
			moved++
		}
		t.Logf("%+v: generation %d, %d of %d lost", trial, now, n, len(acked))
		if n > 0 {
			t.Errorf("%+v: %d of %d acknowledged writes lost", trial, n, len(acked))
		}
		for _, e := range edges {
			parts, err := os.ReadDir(filepath.Join(e.Dir, "cluster", "stores"))
			if err != nil || len(parts) != 1 {
				t.Errorf("%s holds parts of %d stores: %v", e.Door, len(parts), err)
			}
			e.Signal(syscall.SIGTERM)
		}
		total += len(acked)
		for _, e := range edges {
			e.Exit(t, 20*time.Second)
		}
	}
	if trials := len(trials); trials > 1 {
		t.Logf("%d promotions of which one edge was killed: %d moved, %d stayed and moved when asked again, 0 of %d acknowledged writes lost", trials, moved, stayed, total)
	}
	if moved+stayed != len(trials) || moved == 0 {
		t.Errorf("%d moved and %d stayed", moved, stayed)
	}
}

// A backup of a network whose store is on three edges begins it anew on one, and the
// others follow, those that held the store among them.
func TestAPromotedStoreIsRestored(t *testing.T) {
	edges := binaries.StartCluster(t, 4)
	promote(t, edges[0], "r2", "r3")
	awaitInStep(t, 20*time.Second, edges...)
	issue(t, edges[3], "kept.localhost")
	file := filepath.Join(t.TempDir(), "net.backup")
	edges[0].CLI(t, "backup", "--out", file)
	for _, e := range edges[:3] {
		e.Signal(syscall.SIGTERM)
	}
	for _, e := range edges[:3] {
		e.Exit(t, 20*time.Second)
	}
	edges[0].CLI(t, "restore", file, "--force")
	for _, e := range edges[:3] {
		e.Restart(t)
	}
	awaitInStep(t, 30*time.Second, edges...)
	for i, e := range edges {
		edgetest.Eventually(t, fmt.Sprintf("edge %d follows", i+1), func() bool {
			return e.Refresh() == nil && e.Status.Cluster.StoreGeneration == 3 && e.Status.Cluster.StoreHere == (i == 0)
		})
	}
	awaitInStep(t, 30*time.Second, edges...)
	for i, e := range edges {
		edgetest.Eventually(t, fmt.Sprintf("edge %d knows what was restored", i+1), func() bool {
			return strings.Contains(e.CLI(t, "token", "list"), "kept.localhost")
		})
	}
	edges[2].Signal(syscall.SIGKILL)
	edges[2].Exit(t, 5*time.Second)
	edges[0].AwaitPeers(t, 2)
	if out, err := edges[3].TryCLI("cluster", "promote", "r2", "r3"); err == nil || !strings.Contains(out, edges[2].Status.Node+" ("+edges[2].Door+") cannot be reached now") || strings.Contains(out, "faults") {
		t.Errorf("with one that is dead: %v %s", err, out)
	}
	if !oracle.Long() {
		return
	}
	edges[2].Restart(t)
	edges[0].AwaitPeers(t, 3)
	promote(t, edges[3], "r2", "r3") // and on
	awaitInStep(t, 30*time.Second, edges...)
	issue(t, edges[3], "again.localhost")
}
