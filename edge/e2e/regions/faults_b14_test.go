package regions

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	"wormhole/edge/admin"
	"wormhole/edge/authority"
	"wormhole/edge/edgetest"
	"wormhole/edge/edgetest/oracle"
)

// B14: tokens are issued at all edges as fast as they can be, while edges are killed
// at random moments, the store's host most often. What was acknowledged is there
// afterwards, at every edge.
func TestB14AcknowledgedWritesSurviveKills(t *testing.T) {
	kills, writes := 3, 150
	if oracle.Long() {
		kills, writes = 50, 1000
	}
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 14))
	t.Logf("seed %d", seed)
	edges := binaries.StartCluster(t, 3)
	var mu sync.Mutex
	acked := map[string]bool{}
	refused, hosts := 0, 0
	for range kills {
		stop := make(chan struct{})
		var wg sync.WaitGroup
		enough := make(chan struct{})
		round := 0
		for i, e := range edges {
			client, err := admin.Connect(e.Dir, "")
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() { // ends with stop
				for n := 0; ; n++ {
					select {
					case <-stop:
						return
					default:
					}
					issued, err := client.IssueToken(t.Context(), authority.IssueRequest{Hosts: []string{fmt.Sprintf("h%d.localhost", i)}})
					mu.Lock()
					if err == nil {
						acked[issued.ID] = true
						if round++; round == writes {
							close(enough)
						}
					} else {
						refused++
					}
					mu.Unlock()
					if err != nil {
						time.Sleep(5 * time.Millisecond)
					}
				}
			})
		}
		select {
		case <-enough:
		case <-time.After(2 * time.Minute):
			t.Fatal("too few writes were taken")
		}
		time.Sleep(time.Duration(random.IntN(int(50 * time.Millisecond))))
		victim := 0
		if random.IntN(10) < 3 {
			victim = 1 + random.IntN(2)
		} else {
			hosts++
		}
		edges[victim].Signal(syscall.SIGKILL)
		edges[victim].Exit(t, 5*time.Second)
		time.Sleep(time.Duration(random.IntN(int(200 * time.Millisecond)))) // others write on, or are refused
		close(stop)
		wg.Wait()
		edges[victim].Restart(t)
		for _, e := range edges {
			edgetest.Eventually(t, "the store is in step", func() bool { return e.Refresh() == nil && e.Status.Cluster.Store == "" })
		}
	}
	lost := 0
	for i, e := range edges {
		client, err := admin.Connect(e.Dir, "")
		if err != nil {
			t.Fatal(err)
		}
		list, err := client.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		have := map[string]bool{}
		for _, info := range list {
			have[info.ID] = true
		}
		for id := range acked {
			if !have[id] {
				t.Logf("edge %d does not know %s", i+1, id)
				lost++
			}
		}
	}
	oracle.Row{
		ID: "B14", Done: fmt.Sprintf("three edges write as fast as they can, %d kills -9 at random, %d of them of the store's host", kills, hosts),
		Figure: fmt.Sprintf("%d of %d acknowledged writes lost, %d refused", lost, len(acked), refused),
		Limit:  fmt.Sprintf("0 lost of %d and more", kills*writes),
		OK:     lost == 0 && len(acked) >= kills*writes,
	}.Verdict(t)
}
