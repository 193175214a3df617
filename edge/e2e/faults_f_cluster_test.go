package e2e

import (
	"crypto/x509"
	"fmt"
	"net"
	"os"
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

// netEdge is an edge of a network whose store is on the first edge.
type netEdge struct {
	*edgetest.EdgeProcess
	args []string
}

func (e *netEdge) restart(t *testing.T) {
	t.Helper()
	e.EdgeProcess = binaries.StartEdgeIn(t, e.Dir, e.args...)
}

// certNetwork starts n edges of one network that order from p. more is for each of
// them; door, if there is one, is how others reach the first.
func certNetwork(t *testing.T, p *edgetest.Pebble, n int, door string, more ...string) []*netEdge {
	t.Helper()
	var edges []*netEdge
	for i := 1; i <= n; i++ {
		advertise := fmt.Sprintf("127.0.0.%d", i)
		if i == 1 && door != "" {
			advertise = door
		}
		args := append(p.Flags(i, ""), "--cluster-listen", fmt.Sprintf("127.0.0.%d:%s", i, edgetest.KeptPort(t)), "--advertise", advertise)
		e := &netEdge{args: append(args, more...)}
		start := e.args
		if i > 1 {
			file := filepath.Join(t.TempDir(), "join.token")
			if err := os.WriteFile(file, []byte(strings.TrimSpace(run(t, "cluster", "join-token", "--data-dir", edges[0].Dir))), 0o600); err != nil {
				t.Fatal(err)
			}
			start = append(slices.Clone(start), "--join", p.Addr(1), "--join-token-file", file)
		}
		e.EdgeProcess = binaries.StartEdge(t, start...)
		edges = append(edges, e)
	}
	for _, e := range edges {
		edgetest.Eventually(t, "edges see each other", func() bool {
			up := 0
			if e.Refresh() == nil && e.Status.Cluster != nil {
				for _, peer := range e.Status.Cluster.Peers {
					if peer.Health == "up" {
						up++
					}
				}
			}
			return up == n-1
		})
	}
	return edges
}

// apply makes sites, without rules, at one edge; they are known at all.
func apply(t *testing.T, e *netEdge, hosts ...string) {
	t.Helper()
	spec := filepath.Join(t.TempDir(), "sites.yaml")
	if err := os.WriteFile(spec, []byte("host: "+strings.Join(hosts, "\n---\nhost: ")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "site", "apply", "--data-dir", e.Dir, "-f", spec)
}

// F2 on the store that the edges of a network share: the CA looks at an edge that
// does not order.
func TestF2AnyEdgeOfANetworkAnswersTheChallenge(t *testing.T) {
	for kind, more := range map[string][]string{"http-01": nil, "tls-alpn-01": {"--http", ""}} {
		t.Run(kind, func(t *testing.T) {
			n := 10
			if oracle.Long() {
				n = 50
			}
			p := startPebble(t, edgetest.PebbleConfig{SleepMax: delay()})
			p.Resolve(t, "", "127.0.0.2")
			edges := certNetwork(t, p, 3, "", more...)
			hosts := numbered("f2net-%02d.example.com", n)
			apply(t, edges[1], hosts...)
			roots := p.Root(t)
			var wg sync.WaitGroup
			var failed atomic.Int64
			for i, h := range hosts {
				wg.Go(func() { // visitors come to the edges that the CA does not look at
					if _, err := insist(p.Addr(1+i%2*2), h, roots, visitors); err != nil {
						t.Errorf("%s: %v", h, err)
						failed.Add(1)
					}
				})
			}
			wg.Wait()
			elsewhere := strings.Count(edges[0].Output()+edges[2].Output(), `"certificate order begins"`)
			oracle.Row{
				ID: "F2 cluster", Done: fmt.Sprintf("%d hosts ordered by %s in a network of 3 edges, the CA looks at the second", n, kind),
				Figure: fmt.Sprintf("%d orders, %d wrong answers, %d failed, %d ordered by another edge than the one looked at", p.Orders(), p.Invalid(), failed.Load(), elsewhere),
				Limit:  fmt.Sprintf("%d orders, 0 wrong, 0 failed, some by others", n),
				OK:     p.Orders() == n && p.Invalid() == 0 && failed.Load() == 0 && elsewhere > 0,
			}.Verdict(t)
		})
	}
}

// slowDoor passes TCP on to target, each way later by what delay says when the bytes
// come in. It returns host:port.
func slowDoor(t *testing.T, target func() string, delay *atomic.Int64) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	type piece struct {
		due  time.Time
		data []byte
	}
	pump := func(to, from net.Conn) {
		defer from.Close()
		queue := make(chan piece, 4096)
		wg.Go(func() {
			defer to.Close()
			for p := range queue {
				time.Sleep(time.Until(p.due))
				if _, err := to.Write(p.data); err != nil {
					_ = from.Close()
				}
			}
		})
		defer close(queue)
		for {
			b := make([]byte, 32<<10)
			n, err := from.Read(b)
			if n > 0 {
				queue <- piece{time.Now().Add(time.Duration(delay.Load())), b[:n]}
			}
			if err != nil {
				return
			}
		}
	}
	wg.Go(func() {
		for {
			a, err := l.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("tcp", target())
			if err != nil {
				_ = a.Close()
				continue
			}
			mu.Lock()
			open[a], open[b] = true, true
			mu.Unlock()
			wg.Go(func() { pump(b, a) })
			wg.Go(func() { pump(a, b) })
		}
	})
	t.Cleanup(func() {
		delay.Store(0)
		_ = l.Close()
		mu.Lock()
		for c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().String()
}

// slowest is how long the slowest of count handshakes took, each with the next host.
func slowest(t *testing.T, addr string, hosts []string, roots *x509.CertPool, count int) (worst time.Duration, failed int) {
	t.Helper()
	var all []time.Duration
	for i := range count {
		began := time.Now()
		if _, err := shake(addr, hosts[i%len(hosts)], roots); err != nil {
			t.Logf("%s: %v", hosts[i%len(hosts)], err)
			failed++
		}
		all = append(all, time.Since(began))
	}
	slices.Sort(all)
	return edgetest.Quantile(all, 0.99), failed
}

// F6 on the store that the edges of a network share: first 10 s slow, then dead while
// an edge starts.
func TestF6TheStoreOfANetworkIsSlowThenDeadAtBoot(t *testing.T) {
	p := startPebble(t, edgetest.PebbleConfig{})
	var lag atomic.Int64
	door := slowDoor(t, func() string { return p.Addr(1) }, &lag)
	edges := certNetwork(t, p, 2, door)
	hosts := numbered("f6net-%02d.example.com", 5)
	apply(t, edges[0], hosts...)
	roots := p.Root(t)
	for _, h := range hosts {
		for i := range edges {
			if _, err := insist(p.Addr(i+1), h, roots, time.Minute); err != nil {
				t.Fatal(err)
			}
		}
	}
	orders := p.Orders()
	count := 200

	lag.Store(int64(10 * time.Second))
	edgetest.Eventually(t, "the edge notices", func() bool { return edges[1].Refresh() == nil && edges[1].Status.Cluster.Store != "" })
	// The first edge has the store itself, so that its handshakes, at the same time, tell
	// what this machine adds. One round of three shows what the second edge can; none
	// may fail.
	const most = 50 * time.Millisecond
	var slow, calm time.Duration
	failed := 0
	for round := range 3 {
		var beside time.Duration
		var wrong int
		var wg sync.WaitGroup
		wg.Go(func() { beside, wrong = slowest(t, p.Addr(1), hosts, roots, count) })
		took, lost := slowest(t, p.Addr(2), hosts, roots, count)
		wg.Wait()
		failed += lost + wrong
		if round == 0 || took-beside < slow-calm {
			slow, calm = took, beside
		}
		if slow <= calm+most {
			break
		}
	}
	oracle.Row{
		ID: "F6 cluster", Done: fmt.Sprintf("%d handshakes for 5 known hosts at an edge whose store is 10 s away", count),
		Figure: fmt.Sprintf("%d failed, p99 %s (%s at the edge that has the store), %d orders", failed, slow.Round(time.Millisecond), calm.Round(time.Millisecond), p.Orders()-orders),
		Limit:  "0 failed, +50 ms, 0 orders",
		OK:     failed == 0 && slow <= calm+most && p.Orders() == orders,
	}.Verdict(t)
	lag.Store(0)

	edges[0].Signal(syscall.SIGKILL)
	edges[0].Exit(t, 5*time.Second)
	edges[1].Signal(syscall.SIGKILL)
	edges[1].Exit(t, 5*time.Second)
	began := time.Now()
	edges[1].restart(t)
	up := time.Since(began)
	dead, lost := slowest(t, p.Addr(2), hosts, roots, count)
	if _, err := shake(p.Addr(2), "new.example.com", roots); err == nil {
		t.Error("a host that nobody knows was served")
	}
	time.Sleep(2 * time.Second) // an order would begin
	oracle.Row{
		ID: "F6 cluster", Done: fmt.Sprintf("an edge starts with the store's host dead, then %d handshakes for 5 known hosts", count),
		Figure: fmt.Sprintf("serves after %s, %d failed, p99 %s, %d orders", up.Round(10*time.Millisecond), lost, dead.Round(time.Millisecond), p.Orders()-orders),
		Limit:  "0 failed, 0 orders",
		OK:     lost == 0 && p.Orders() == orders,
	}.Verdict(t)
}

// F8 on the store that the edges of a network share: the edge that orders is killed in
// the middle, and comes back when it is the store's host.
func TestF8AnotherEdgeOfANetworkFinishes(t *testing.T) {
	t.Parallel() // it mostly waits
	rounds := 1
	if oracle.Long() {
		rounds = 20
	}
	p := startPebble(t, edgetest.PebbleConfig{SleepMax: 4})
	edges := certNetwork(t, p, 3, "")
	roots := p.Root(t)
	extra, late, hosts := 0, 0, 0
	var longest time.Duration
	for round := range rounds {
		name := fmt.Sprintf("f8net-%02d.example.com", round)
		orders := p.Orders()
		apply(t, edges[1], name)
		for i := range edges { // visitors hurry the order
			go func() { _, _ = shake(p.Addr(i+1), name, roots) }() // ends within its 15 s
		}
		victim := -1
		edgetest.Eventually(t, "an order and its edge", func() bool {
			for i, e := range edges {
				if strings.Contains(e.Output(), `"certificate order begins","host":"`+name) {
					victim = i
				}
			}
			return victim >= 0 && p.Orders() > orders
		})
		p.Resolve(t, "", fmt.Sprintf("127.0.0.%d", 1+(victim+1)%3)) // the CA looks at one that lives
		edges[victim].Signal(syscall.SIGKILL)
		killed := time.Now()
		edges[victim].Exit(t, edgetest.Patience)
		if victim == 0 {
			hosts++
			edges[0].restart(t)
		}
		for i := range edges {
			if i == victim {
				continue
			}
			if _, err := insist(p.Addr(i+1), name, roots, 2*time.Minute); err != nil {
				t.Errorf("round %d: edge %d: %v", round, i+1, err)
				late++
			}
		}
		longest = max(longest, time.Since(killed))
		extra = max(extra, p.Orders()-orders-1)
		if victim != 0 {
			edges[victim].restart(t)
		}
	}
	oracle.Row{
		ID: "F8 cluster", Done: fmt.Sprintf("the ordering edge of three killed %d times between order and certificate, %d times the store's host, which was started again", rounds, hosts),
		Figure: fmt.Sprintf("finished after %s at most, %d late, %d extra orders at most", longest.Round(100*time.Millisecond), late, extra),
		Limit:  "2 minutes, 1 extra order each",
		OK:     late == 0 && extra <= 1,
	}.Verdict(t)
}
