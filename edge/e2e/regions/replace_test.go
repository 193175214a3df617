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

	"wormhole/edge/cluster"
	"wormhole/edge/edgetest"
	"wormhole/edge/edgetest/oracle"
)

// replace has another edge hold the store in place of lost.
func replace(t *testing.T, by *edge, lost, come string) cluster.Replacement {
	t.Helper()
	var done cluster.Replacement
	edgetest.JSON(t, []byte(by.CLI(t, "cluster", "replace", "--json", lost, come)), &done)
	return done
}

// awaitHolders waits until all edges agree that those of holders hold the store, with
// everything in it.
func awaitHolders(t *testing.T, patience time.Duration, generation uint64, holders, edges []*edge) {
	t.Helper()
	var want []string
	for _, e := range holders {
		want = append(want, e.Status.Node)
	}
	slices.Sort(want)
	began := time.Now()
	for _, e := range edges {
		for {
			if e.Refresh() == nil {
				s := e.Status.Cluster
				if s.Store == "" && s.StoreGeneration == generation && slices.Equal(s.StoreEdges, want) &&
					s.StoreHere == slices.Contains(want, e.Status.Node) && !s.StoreCatchingUp {
					break
				}
			}
			if time.Since(began) > patience {
				t.Fatalf("%s says after %s that %v hold the store (generation %d, here %v, %q), want %v:\n%s", e.Door, patience, e.Status.Cluster.StoreEdges,
					e.Status.Cluster.StoreGeneration, e.Status.Cluster.StoreHere, e.Status.Cluster.Store, want, e.Output())
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}

// The machine of one of three edges that hold the store is gone. Another takes its
// place under writes, and the lost one comes back with its old files and confuses
// nobody.
func TestALostHolderOfTheStoreIsReplaced(t *testing.T) {
	edges := binaries.StartCluster(t, 4)
	promote(t, edges[0], "r2", "r3")
	awaitHolders(t, 30*time.Second, 2, edges[:3], edges)
	for what, r := range map[string]struct {
		args []string
		says string
	}{
		"not a holder":     {[]string{"r4", "r3"}, "holds the store already"},
		"nobody":           {[]string{"r3", "yyz"}, "no edge"},
		"two that do not":  {[]string{edges[3].Status.Node, edges[3].Status.Node}, "does not hold the store"},
		"one name missing": {[]string{"r3"}, "name the edge"},
	} {
		if out, err := edges[1].TryCLI(append([]string{"cluster", "replace"}, r.args...)...); err == nil || !strings.Contains(out, r.says) {
			t.Errorf("%s: %v, it says %s", what, err, out)
		}
	}
	acked := map[string]bool{}
	w := startWriters(t, 0, acked, edges[0], edges[1], edges[3])
	edgetest.Eventually(t, "writes", func() bool { return w.count() > 50 })
	lost3 := edges[2]
	lost3.Signal(syscall.SIGKILL)
	lost3.Exit(t, 5*time.Second)
	goesOn := func(what string) {
		t.Helper()
		for began, n := time.Now(), w.count(); w.count() < n+50; time.Sleep(time.Millisecond) {
			if time.Since(began) > time.Minute {
				t.Fatalf("no writes are taken %s", what)
			}
		}
	}
	goesOn("with two of three")
	w.mu.Lock()
	w.last, w.gap = time.Now(), 0
	refused := len(w.refused)
	w.mu.Unlock()
	done := replace(t, edges[3], "r3", "r4") // asked at the one that is to hold it
	goesOn("with three again")
	w.mu.Lock()
	t.Logf("replaced in %d ms; longest gap between two acknowledged writes %s, %d refused", done.TookMillis, w.gap, len(w.refused)-refused)
	w.mu.Unlock()
	holders := []*edge{edges[0], edges[1], edges[3]}
	awaitHolders(t, 30*time.Second, 3, holders, holders)
	if done.Generation != 3 || done.Lost != lost3.Status.Node || done.New != edges[3].Status.Node || len(done.Edges) != 3 {
		t.Errorf("it says %+v", done)
	}

	// Back with its old files.
	lost3.Restart(t)
	awaitHolders(t, 30*time.Second, 3, holders, edges)
	if parts, err := filepath.Glob(filepath.Join(lost3.Dir, "cluster", "stores", "*")); err != nil || len(parts) != 0 {
		t.Errorf("it has %v %v", parts, err)
	}
	// Any one of the three may be lost again, and all three killed.
	edges[0].Signal(syscall.SIGKILL)
	edges[0].Exit(t, 5*time.Second)
	goesOn("without the first")
	edges[0].Restart(t)
	awaitWhole(t, holders...)
	for _, e := range holders {
		e.Signal(syscall.SIGKILL)
	}
	for _, e := range holders {
		e.Exit(t, 5*time.Second)
	}
	w.end()
	for _, e := range holders {
		e.Restart(t)
	}
	awaitHolders(t, time.Minute, 3, holders, edges)
	if n := lost(t, acked, edges...); n > 0 {
		t.Errorf("%d of %d acknowledged writes lost", n, len(acked))
	}
	// One that was replaced may hold the store again, and one that runs be replaced.
	again := replace(t, edges[1], "r1", lost3.Status.Node)
	holders = []*edge{edges[1], lost3, edges[3]}
	awaitHolders(t, 30*time.Second, again.Generation, holders, edges)
	edges[1].CLI(t, "cluster", "leave", edges[0].Status.Node)
	issue(t, edges[3], "after.localhost")
	if out, err := edges[1].TryCLI("cluster", "leave", lost3.Status.Node); err == nil {
		t.Errorf("an edge with a part of the store left: %s", out)
	}
	if n := lost(t, acked, holders...); n > 0 {
		t.Errorf("%d of %d acknowledged writes lost", n, len(acked))
	}
}

// Somebody is killed while an edge is replaced. It is replaced or it is not, and goes
// on by itself; nothing that was acknowledged is lost.
func TestAReplacementIsKilled(t *testing.T) {
	type kill struct {
		victim int // of edges: two that stay, and the new one
		when   string
	}
	trials := []kill{{3, "taken"}}
	if oracle.Long() {
		trials = nil
		for _, i := range []int{0, 1, 3} {
			trials = append(trials, kill{i, "decided"}, kill{i, "taken"}, kill{i, "any"}, kill{i, "any"}, kill{i, "any"})
		}
	}
	total, stayed := 0, 0
	for _, trial := range trials {
		edges := binaries.StartCluster(t, 5)
		promote(t, edges[0], "r2", "r3")
		awaitHolders(t, 30*time.Second, 2, edges[:3], edges)
		acked := map[string]bool{}
		w := startWriters(t, 0, acked, edges...)
		edgetest.Eventually(t, "writes", func() bool { return w.count() > 50 })
		edges[2].Signal(syscall.SIGKILL)
		edges[2].Exit(t, 5*time.Second)
		for began, n := time.Now(), w.count(); w.count() < n+50 && time.Since(began) < 30*time.Second; time.Sleep(time.Millisecond) {
		}
		victim := edges[trial.victim]
		var wg sync.WaitGroup
		wg.Go(func() {
			out, err := edges[4].TryCLI("cluster", "replace", "r3", "r4")
			t.Logf("%+v: %v %s", trial, err, out)
		})
		watched := filepath.Join(edges[3].Dir, "cluster", "taken")
		decided := func() bool {
			text, err := os.ReadFile(filepath.Join(edges[4].Dir, "cluster", "placement.json"))
			var p cluster.Placement
			return err == nil && json.Unmarshal(text, &p) == nil && p.Generation == 3
		}
		switch trial.when {
		case "any":
			time.Sleep(time.Duration(rand.IntN(int(6 * time.Second))))
		default:
			for began := time.Now(); time.Since(began) < 30*time.Second; time.Sleep(time.Millisecond / 4) {
				if _, err := os.Stat(watched); err == nil || trial.when == "decided" && decided() {
					break
				}
			}
		}
		victim.Signal(syscall.SIGKILL)
		victim.Exit(t, 5*time.Second)
		time.Sleep(time.Second)
		victim.Restart(t)
		wg.Wait()
		for began := time.Now(); !decided() && time.Since(began) < 5*time.Second; time.Sleep(20 * time.Millisecond) {
		}
		if !decided() {
			stayed++
			awaitInStep(t, time.Minute, edges[0], edges[1], edges[3], edges[4])
			edges[4].AwaitPeers(t, 3)
			awaitWhole(t, edges[0], edges[1])
			replace(t, edges[4], "r3", "r4")
		}
		holders := []*edge{edges[0], edges[1], edges[3]}
		awaitHolders(t, time.Minute, 3, holders, []*edge{edges[0], edges[1], edges[3], edges[4]})
		for began, n := time.Now(), w.count(); w.count() < n+50; time.Sleep(time.Millisecond) {
			if time.Since(began) > time.Minute {
				t.Fatalf("%+v: no writes are taken", trial)
			}
		}
		w.end()
		edges[2].Restart(t)
		awaitHolders(t, time.Minute, 3, holders, edges)
		n := lost(t, acked, edges...)
		t.Logf("%+v: %d of %d acknowledged writes lost", trial, n, len(acked))
		if n > 0 {
			t.Errorf("%+v: %d of %d acknowledged writes lost", trial, n, len(acked))
		}
		total += len(acked)
		for _, e := range edges {
			e.Signal(syscall.SIGTERM)
		}
		for _, e := range edges {
			e.Exit(t, 20*time.Second)
		}
	}
	if oracle.Long() {
		oracle.Row{
			ID:     "B14 replaced",
			Done:   fmt.Sprintf("one of three edges that hold the store is lost and another takes its place under writes; in each of %d times one of the edges that take part is killed meanwhile", len(trials)),
			Figure: fmt.Sprintf("%d were not decided and were asked for again, all were done, 0 of %d acknowledged writes lost", stayed, total), Limit: "all done, 0 lost", OK: !t.Failed(),
		}.Verdict(t)
	}
}
