package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"wormhole/deploy/rig"
)

// scalePlan says how many of each there are, and how long an edge is watched.
type scalePlan struct {
	tunnels, sites, clients []int
	// agents is how many agents run as programs of their own; memory may allow fewer.
	agents int
	// calm is how long an edge is left alone before its CPU is watched for idle.
	calm, idle time.Duration
}

// fullScale has the numbers of the project's goals. An edge and this process may
// each have 20,000 descriptors.
var fullScale = scalePlan{
	tunnels: []int{500, 1000, 2000, 5000},
	sites:   []int{1000, 10_000, 100_000},
	clients: []int{1000, 3000, 9000},
	agents:  500,
	calm:    4 * time.Second, idle: 5 * time.Second,
}

// realAgentKiB is the memory that an agent's program may need.
const realAgentKiB = 16 << 10

// scalePoint is one edge with n of something and nothing to do.
type scalePoint struct {
	n       int
	memory  float64       // resident KiB
	idle    float64       // CPU seconds a second
	took    time.Duration // until all n were there
	another time.Duration // to apply one more; only of sites
}

// scaleCurve is how an edge's cost grows with the number of one thing. bare is the
// edge without any.
type scaleCurve struct {
	name   string
	bare   scalePoint
	points []scalePoint
}

// each is the memory of one, in KiB.
func (c scaleCurve) each(p scalePoint) float64 { return (p.memory - c.bare.memory) / float64(p.n) }

// observe waits until the edge is quiet and measures it.
func (plan scalePlan) observe(ctx context.Context, edge *rig.Edge, n int, took time.Duration) (p scalePoint, err error) {
	if err := pause(ctx, plan.calm); err != nil {
		return p, err
	}
	pids := []int{edge.Process().PID()}
	before, err := cpuOf(pids)
	if err != nil {
		return p, err
	}
	if err := pause(ctx, plan.idle); err != nil {
		return p, err
	}
	after, err := cpuOf(pids)
	if err != nil {
		return p, err
	}
	kib, err := residentKiB(pids[0])
	return scalePoint{n: n, memory: float64(kib), idle: (after - before).Seconds() / plan.idle.Seconds(), took: took}, err
}

// measureScale measures all curves, each on an edge of its own. It returns those that
// could be measured also with an error.
func measureScale(ctx context.Context, s *site, plan scalePlan) (curves []scaleCurve, err error) {
	var faults []error
	for _, c := range []struct {
		name    string
		measure func(context.Context, *scaleCurve, string, scalePlan) error
	}{
		{"idle tunnels, agents in one process", s.scaleTunnels},
		{"idle tunnels, each agent a process", s.scaleAgents},
		{"sites with rules", s.scaleSites},
		{"idle client connections (HTTP/1.1, TLS)", s.scaleClients},
	} {
		curve := scaleCurve{name: c.name}
		dir, err := os.MkdirTemp(s.dir, "scale-")
		if err != nil {
			return nil, err
		}
		if err := c.measure(ctx, &curve, dir, plan); err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", c.name, err))
		}
		if len(curve.points) > 0 {
			curves = append(curves, curve)
		}
	}
	return curves, errors.Join(faults...)
}

func (c *scaleCurve) add(p scalePoint) {
	c.points = append(c.points, p)
	fmt.Fprintf(os.Stderr, "scale      %d %s: %.1f MiB, %.2f KiB each, %.1f %% of a core idle, after %.1f s\n",
		p.n, c.name, p.memory/1024, c.each(p), 100*p.idle, p.took.Seconds())
}

func (s *site) scaleTunnels(ctx context.Context, curve *scaleCurve, dir string, plan scalePlan) error {
	return s.withEdge(ctx, curve, dir, plan, func(edge *rig.Edge) error {
		c := newCrowd(ctx, edge)
		defer c.close()
		for _, n := range plan.tunnels {
			began := time.Now()
			if err := c.grow(n); err != nil {
				return err
			}
			p, err := plan.observe(ctx, edge, n, time.Since(began))
			if err != nil {
				return err
			}
			curve.add(p)
		}
		return nil
	})
}

// scaleAgents starts as many agents as programs as memory allows, to see that those
// in one process cost the edge the same.
func (s *site) scaleAgents(ctx context.Context, curve *scaleCurve, dir string, plan scalePlan) error {
	free, err := availableKiB()
	if err != nil {
		return err
	}
	n := min(plan.agents, free/2/realAgentKiB)
	if n < 1 {
		return fmt.Errorf("only %d MiB of memory are free", free/1024)
	}
	return s.withEdge(ctx, curve, dir, plan, func(edge *rig.Edge) (err error) {
		token, err := edge.Token(ctx, host)
		if err != nil {
			return err
		}
		agents := make([]*rig.Process, n)
		defer func() {
			err = errors.Join(err, inParallel(n, func(i int) error {
				if agents[i] == nil {
					return nil
				}
				return agents[i].Stop(30 * time.Second)
			}))
		}()
		began := time.Now()
		for i := range agents {
			agents[i], err = edge.StartAgent(fmt.Sprint("agent ", i), token, host, filepath.Join(dir, fmt.Sprint("agent-", i, ".log")),
				[]string{"WORMHOLE_ENDPOINT=" + s.appAddr, "WORMHOLE_TRANSPORT=tls", fmt.Sprint("WORMHOLE_NAME=real-", i)})
			if err != nil {
				return err
			}
		}
		if err := edge.AwaitTunnels(ctx, n); err != nil {
			return err
		}
		p, err := plan.observe(ctx, edge, n, time.Since(began))
		if err != nil {
			return err
		}
		curve.add(p)
		return nil
	})
}

// scaleSites starts edges with that many sites in their configuration.
func (s *site) scaleSites(ctx context.Context, curve *scaleCurve, dir string, plan scalePlan) error {
	for _, n := range append([]int{0}, plan.sites...) {
		own := filepath.Join(dir, strconv.Itoa(n))
		if err := os.MkdirAll(own, 0o700); err != nil {
			return err
		}
		config := filepath.Join(own, "edge.yaml")
		if err := os.WriteFile(config, siteConfig(n), 0o600); err != nil {
			return err
		}
		began := time.Now()
		// Reading 100,000 sites takes a busy machine more than a minute.
		starting, started := context.WithTimeout(ctx, 4*time.Minute)
		edge, err := rig.StartEdge(starting, s.binaries, own, "--config", config)
		started()
		if err != nil {
			return err
		}
		p, err := plan.observe(ctx, edge, n, time.Since(began))
		if err == nil {
			began = time.Now()
			err = edge.ApplySites(ctx, "host: one-more.example.com\nbackend_header: X-Backend\n")
			p.another = time.Since(began)
		}
		if err := errors.Join(err, edge.Stop()); err != nil {
			return err
		}
		if n == 0 {
			curve.bare = p
		} else {
			curve.add(p)
		}
	}
	return nil
}

func siteConfig(n int) []byte {
	if n == 0 {
		return []byte("sites: []\n")
	}
	var b strings.Builder
	b.WriteString("sites:\n")
	for i := range n {
		fmt.Fprintf(&b, "  - host: shop-%d.example.com\n    backend_header: X-Backend\n    rate_limit: {requests_per_second: 100}\n", i)
	}
	return []byte(b.String())
}

func (s *site) scaleClients(ctx context.Context, curve *scaleCurve, dir string, plan scalePlan) error {
	return s.withEdge(ctx, curve, dir, plan, func(edge *rig.Edge) (err error) {
		token, err := edge.Token(ctx, host)
		if err != nil {
			return err
		}
		agent, err := edge.StartAgent("agent", token, host, filepath.Join(dir, "agent.log"), []string{"WORMHOLE_ENDPOINT=" + s.appAddr})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, agent.Stop(15*time.Second)) }()
		t := &target{addr: edge.Addr, roots: edge.Roots(), processes: []*rig.Process{agent}}
		if err := s.awaitTarget(ctx, t); err != nil {
			return err
		}
		if curve.bare, err = plan.observe(ctx, edge, 0, 0); err != nil { // with an agent, but no client
			return err
		}
		c := &clients{target: t}
		defer c.close()
		for _, n := range plan.clients {
			began := time.Now()
			if err := c.grow(ctx, n); err != nil {
				return err
			}
			p, err := plan.observe(ctx, edge, n, time.Since(began))
			if err != nil {
				return err
			}
			curve.add(p)
		}
		return nil
	})
}

// withEdge starts a fresh edge, measures it bare, and stops it after f.
func (s *site) withEdge(ctx context.Context, curve *scaleCurve, dir string, plan scalePlan, f func(*rig.Edge) error) (err error) {
	edge, err := rig.StartEdge(ctx, s.binaries, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, edge.Stop()) }()
	if curve.bare, err = plan.observe(ctx, edge, 0, 0); err != nil {
		return err
	}
	return f(edge)
}

// availableKiB is the memory that programs may still take.
func availableKiB() (int, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			return strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")))
		}
	}
	return 0, errors.New("no MemAvailable in /proc/meminfo")
}

// scaleMarkdown is the table of all curves.
func scaleMarkdown(curves []scaleCurve, plot string) string {
	var b strings.Builder
	b.WriteString("\n## Scale on one edge\n\n| what | number | resident MiB | KiB each | idle, % of a core | s until all were there |\n|---|---:|---:|---:|---:|---:|\n")
	for _, c := range curves {
		title := c.name
		for _, p := range append([]scalePoint{c.bare}, c.points...) {
			each := "-"
			if p.n > 0 {
				each = fmt.Sprintf("%.2f", c.each(p))
			}
			fmt.Fprintf(&b, "| %s | %s | %.1f | %s | %.1f | %.1f |\n", title, thousands(p.n), p.memory/1024, each, 100*p.idle, p.took.Seconds())
			title = ""
		}
	}
	b.WriteString("\nEach kind on an edge of its own. Tunnels and connections that are there already are not counted in the time for more.\n")
	for _, c := range curves {
		for _, p := range c.points {
			if p.another > 0 {
				fmt.Fprintf(&b, "With %s sites, one more is applied in %.0f ms, command and all.\n", thousands(p.n), milliseconds(p.another))
			}
		}
	}
	if plot != "" {
		fmt.Fprintf(&b, "\n![how memory and idle CPU grow](%s)\n", plot)
	}
	return b.String()
}

// thousands writes 100000 as 100,000.
func thousands(n int) string {
	text := strconv.Itoa(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}
