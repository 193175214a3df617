// Command simulate reckons what a network of edges costs, and how routes spread and
// storms of agents calm down in it, at sizes that no test can start: see
// docs/scaling.md, which holds its output. It uses the costs that benchmarks of the
// real code measured (costs.go) and the real times, rates and back-off.
package main

import (
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"time"

	"wormhole/edge/agents"
	"wormhole/edge/cluster/bus"
)

func main() {
	seed := flag.Uint64("seed", 1, "of chance: the same seed gives the same tables")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "simulate: takes no arguments; see --help")
		os.Exit(2)
	}
	report(os.Stdout, *seed)
}

var sizes = []struct {
	edges int
	sites float64
}{{3, 1e5}, {20, 1e5}, {20, 1e6}, {200, 1e6}, {2000, 1e6}, {2000, 1e7}}

func report(w io.Writer, seed uint64) {
	p := func(format string, args ...any) { fmt.Fprintf(w, format, args...) }
	p("### At rest\n\n")
	p("| edges | sites | each edge | routes | all memory | peers | digests/s | CPU | inbound | a newcomer hears | and works |\n|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, s := range sizes {
		line := func(what string, x standing) {
			p("| %d | %s | %s | %s | %s | %d | %.0f | %.1f %% | %.1f Mbit/s | %s | %.1f s |\n", s.edges, count(s.sites), what,
				size(x.rows), size(x.memory), x.peers, x.digests, 100*x.busy, x.inbound*8/1e6, size(x.joinSize), x.joining.Seconds())
		}
		line("full mesh", stand(s.edges, s.sites, 2))
		if s.edges > cellSize {
			line("two levels", standInCell(s.edges, s.sites))
			line("a gateway", standAtGateway(s.edges, s.sites))
		}
	}
	p("\n### Routes that change\n\n")
	p("| edges | mesh | each edge changes | waits for more | CPU | lost | p50 | p99 | last | not known at the end |\n|---|---|---|---|---|---|---|---|---|---|\n")
	for i, c := range changes() {
		s := c.run(rand.New(rand.NewPCG(seed, uint64(i))))
		p("| %d | %s | %.0f rows/s | %s | %.0f %% | %d | %s | %s | %s | %d |\n", c.of, c.mesh, c.rate, short(c.gather), 100*s.busy, s.lost,
			short(s.quantile(.5)), short(s.quantile(.99)), short(s.quantile(1)), s.unheard)
	}
	p("\n### All agents come back at once\n\n")
	p("| agents of an edge | away | half back | 99 %% back | all back | largest second | turned away, each |\n|---|---|---|---|---|---|---|\n")
	for i, n := range []int{300, 1500, 5000, 10_000, 20_000} {
		s := storm{agents: n, away: 30 * time.Second, rate: agents.HellosPerSecond}
		c := s.run(rand.New(rand.NewPCG(seed, 1000+uint64(i))))
		p("| %d | %s | %s | %s | %s | %.1f %% | %.1f |\n", n, short(s.away), short(c.half), short(c.most), short(c.all), 100*c.peak, float64(c.busy)/float64(n))
	}
}

// change is one line of the second table.
type change struct {
	spreading
	of   int // edges of the whole network
	mesh string
}

func changes() []change {
	base := spreading{lasts: 10 * time.Second, lost: 1e-4, near: time.Millisecond, receivers: 5, rows: 1000}
	var out []change
	add := func(of, edges int, mesh string, rate float64, gather time.Duration) {
		c := base
		c.edges, c.rate, c.gather = edges, rate, gather
		switch all := rate * float64(edges); { // where more happens, less time shows it
		case all > 1e5:
			c.receivers, c.lasts = 1, time.Second
		case all > 1e4:
			c.receivers, c.lasts = 2, 2*time.Second
		}
		out = append(out, change{c, of, mesh})
	}
	storm := float64(agents.HellosPerSecond)
	for _, n := range []int{3, 20, 200, 2000} {
		add(n, n, "full", 1, bus.GatherFor(n-1))
		add(n, n, "full", storm, bus.GatherFor(n-1))
		if n <= cellSize {
			continue
		}
		add(n, n, "full, no longer wait", storm, bus.GatherFor(0))
		add(n, cellSize, "one region of two levels", storm, bus.GatherFor(cellSize-1))
		// Each gateway tells the others a third of what is new or gone in its region.
		among := gateways * cells(n)
		add(n, among, "its gateways", storm*cellSize/gateways, bus.GatherFor(among-1))
	}
	return out
}

func count(v float64) string {
	if v >= 1e6 {
		return fmt.Sprintf("%.0f million", v/1e6)
	}
	return fmt.Sprintf("%.0f,000", v/1e3)
}

func size(bytes float64) string {
	if bytes >= 1<<30 {
		return fmt.Sprintf("%.1f GiB", bytes/(1<<30))
	}
	return fmt.Sprintf("%.1f MiB", bytes/(1<<20))
}

func short(d time.Duration) string {
	switch {
	case d >= 10*time.Second:
		return fmt.Sprintf("%.0f s", d.Seconds())
	case d >= time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return fmt.Sprintf("%d ms", d.Round(time.Millisecond).Milliseconds())
}
