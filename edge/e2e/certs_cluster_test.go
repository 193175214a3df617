package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"wormhole/edge/edgetest"
)

// F1 and F2 on a network of edges with the store that they share: an agent is at
// one edge, visitors come to all, and the CA looks at another.
func TestF1EdgesOfANetworkShareOrdersAndChallenges(t *testing.T) {
	const hosts = 15
	p := startPebble(t, edgetest.PebbleConfig{})
	p.Resolve(t, "", "127.0.0.2")
	var edges []*edgetest.EdgeProcess
	for i := 1; i <= 3; i++ {
		args := p.Flags(i, "")
		args = append(args, "--cluster-listen", fmt.Sprintf("127.0.0.%d:%s", i, edgetest.KeptPort(t)), "--advertise", fmt.Sprintf("127.0.0.%d", i))
		if i > 1 {
			file := filepath.Join(t.TempDir(), "join.token")
			if err := os.WriteFile(file, []byte(strings.TrimSpace(run(t, "cluster", "join-token", "--data-dir", edges[0].Dir))), 0o600); err != nil {
				t.Fatal(err)
			}
			args = append(args, "--join", p.Addr(1), "--join-token-file", file)
		}
		edges = append(edges, binaries.StartEdge(t, args...))
	}
	names := numbered("net-%02d.example.com", hosts)
	issue := []string{"token", "issue", "--data-dir", edges[0].Dir}
	for _, n := range names {
		issue = append(issue, "--host", n)
	}
	copyOf(t, edges[0], strings.TrimSpace(run(t, issue...)), "statler")
	edges[0].AwaitReady(t, 1)
	roots := p.Root(t)
	began := time.Now()
	var mu sync.Mutex
	serials := map[string][]string{}
	var wg sync.WaitGroup
	for _, n := range names {
		for i := range edges {
			wg.Go(func() {
				leaf, err := insist(p.Addr(i+1), n, roots, visitors)
				if err != nil {
					t.Errorf("%s on edge %d: %v", n, i+1, err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				if s := leaf.SerialNumber.String(); !slices.Contains(serials[n], s) {
					serials[n] = append(serials[n], s)
				}
			})
		}
	}
	wg.Wait()
	t.Logf("%d hosts on three edges after %s, %d orders, %d wrong answers", hosts, time.Since(began).Round(time.Millisecond), p.Orders(), p.Invalid())
	if p.Orders() != hosts || p.Invalid() != 0 {
		t.Errorf("%d orders and %d wrong answers for %d hosts", p.Orders(), p.Invalid(), hosts)
	}
	for n, s := range serials {
		if len(s) != 1 {
			t.Errorf("%s has %d certificates", n, len(s))
		}
	}
}
