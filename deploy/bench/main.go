// Command bench is `make bench`: this project beside nginx and HAProxy on
// loopback, with the same small app behind each. It counts the CPU seconds of all
// processes of a target per 1,000 requests (or per GB), in interleaved rounds, and
// prints medians, ranges and ratios to nginx in the same round. Rates do not
// travel between machines; these ratios do, roughly.
//
// Besides, it measures what has no nginx to compare with: memory and sizes, where the
// time goes, the tunnel over links with delay and loss, and how an edge's cost grows.
// A table says which of the project's goals were met.
//
// nginx and HAProxy are TLS reverse proxies straight to the app, with no tunnel.
// The app and the load generators are not counted.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"wormhole/deploy/rig"
)

// options are the flags.
type options struct {
	rounds   int
	duration time.Duration
	only     string
	targets  string
	add      added
	out      string
	quick    bool
	tunnels  int
	network  bool
	scale    bool
	profile  bool
	serveApp string
}

func main() {
	var opt options
	flag.IntVar(&opt.rounds, "rounds", 5, "interleaved rounds; over links at most three, which are long")
	flag.DurationVar(&opt.duration, "duration", 2*time.Second, "length of one measurement")
	flag.StringVar(&opt.only, "only", "", "comma-separated workloads, of "+strings.Join(workloadNames(), ", ")+", "+strings.Join(sectionNames, ", "))
	flag.StringVar(&opt.targets, "targets", "", "comma-separated targets, of nginx, haproxy, wormhole and those added")
	flag.Var(&opt.add, "add", "a further target as `name=command,url`; may be repeated. The command finds the app in APP_ADDR and a certificate for "+host+" in CERT_FILE (chain and key)")
	flag.StringVar(&opt.out, "out", "", "write the table to this `file` as well; \"auto\" names it after the day below deploy/bench/results")
	flag.BoolVar(&opt.quick, "quick", false, "one short round of the workloads, under two minutes")
	flag.IntVar(&opt.tunnels, "tunnels", 2000, "idle tunnels for the memory figure, where the scale section is not measured")
	flag.BoolVar(&opt.network, "network", false, "only what crosses a link with delay and loss; needs root. The same as --only network")
	flag.BoolVar(&opt.scale, "scale", false, "only how an edge's cost grows with tunnels, sites and connections. The same as --only scale")
	flag.BoolVar(&opt.profile, "profile", false, "only where edge and agent spend their time. The same as --only profile")
	flag.StringVar(&opt.serveApp, "serve-app", "", "serve the app on this `address` and nothing else (used by the benchmark itself)")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	var err error
	if opt.serveApp != "" {
		err = serveApp(ctx, opt.serveApp)
	} else {
		err = run(ctx, opt)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, opt options) (err error) {
	if opt.quick {
		opt.rounds, opt.duration, opt.tunnels = 1, 2*time.Second, 500
	}
	if opt.rounds < 1 || opt.tunnels < 1 || opt.duration < time.Second {
		return errors.New("--rounds and --tunnels must be at least 1 and --duration at least 1s")
	}
	if opt.network {
		opt.only = strings.Trim(opt.only+",network", ",")
	}
	if opt.scale {
		opt.only = strings.Trim(opt.only+",scale", ",")
	}
	if opt.profile {
		opt.only = strings.Trim(opt.only+",profile", ",")
	}
	plan, err := chosen(opt.only)
	if err != nil {
		return err
	}
	if opt.quick && opt.only == "" {
		plan.profile, plan.network, plan.scale = false, false, false
	}
	root, err := rig.Root()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "wormhole-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	s, err := openSite(ctx, root, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if len(plan.workloads) > 0 || plan.idle {
		if err := s.addTargets(ctx, opt); err != nil {
			return err
		}
	}
	report := newReport(s, opt)
	if err := measureAll(ctx, s, plan.workloads, opt, report); err != nil {
		return err
	}
	for _, section := range []struct {
		name    string
		planned bool
		measure func() error
	}{
		{"idle", plan.idle && s.tunnel != nil, func() (err error) {
			tunnels := slices.Compact([]int{min(500, opt.tunnels), opt.tunnels})
			if plan.scale {
				tunnels = nil // that section has them
			}
			report.sizes, err = footprint(ctx, s, tunnels)
			return err
		}},
		{"profile", plan.profile, func() (err error) {
			report.profile, err = measureProfile(ctx, s)
			return err
		}},
		{"network", plan.network, func() (err error) {
			report.network, err = measureNetwork(ctx, s, min(opt.rounds, 3))
			return err
		}},
		{"scale", plan.scale, func() (err error) {
			report.scale, err = measureScale(ctx, s, fullScale)
			return err
		}},
	} {
		if !section.planned {
			continue
		}
		// What failed is said in the report, beside what did not.
		if err := section.measure(); ctx.Err() != nil {
			return ctx.Err()
		} else if err != nil {
			report.faults[section.name] = err
			fmt.Fprintf(os.Stderr, "%-10s FAILED: %v\n", section.name, err)
		}
	}
	if err := publish(report, opt.out, root); err != nil {
		return err
	}
	if len(report.faults) > 0 {
		return errors.New("not everything could be measured")
	}
	return nil
}

// measureAll runs every workload against every target, round by round; a round
// starts with another target each time.
func measureAll(ctx context.Context, s *site, plan []workload, opt options, report *report) error {
	for _, w := range plan {
		for round := range opt.rounds {
			for i := range s.targets {
				t := s.targets[(i+round)%len(s.targets)]
				if report.failed(w.name, t.name) {
					continue
				}
				fmt.Fprintf(os.Stderr, "%-10s round %d  %-10s ", w.name, round+1, t.name)
				m, err := measure(ctx, t, w, opt.duration)
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if err != nil {
					fmt.Fprintln(os.Stderr, "FAILED:", err)
				} else {
					fmt.Fprintln(os.Stderr, m.String(w))
				}
				report.add(w, t.name, round, m, err)
			}
		}
	}
	return nil
}

// measurement is one workload on one target once.
type measurement struct {
	cost     float64 // CPU seconds per unit of the workload
	rate     float64 // units per second
	p50, p99 time.Duration
}

func (m measurement) String(w workload) string {
	text := fmt.Sprintf("%.4f CPU-s/%s at %.2f %s/s", m.cost, w.unit, m.rate, w.unit)
	if m.p99 > 0 {
		text += fmt.Sprintf(", p50 %.2f ms, p99 %.2f ms", milliseconds(m.p50), milliseconds(m.p99))
	}
	return text
}

func measure(ctx context.Context, t *target, w workload, d time.Duration) (measurement, error) {
	// The limit is far above what a healthy target needs, so that a stuck one ends.
	ctx, cancel := context.WithTimeout(ctx, 2*d+20*time.Second)
	defer cancel()
	if err := t.check(ctx); err != nil {
		return measurement{}, err
	}
	if err := w.warm(ctx, t); err != nil {
		return measurement{}, fmt.Errorf("warm-up: %w", err)
	}
	before, err := cpuOf(t.pids())
	if err != nil {
		return measurement{}, err
	}
	began := time.Now()
	o, err := w.run(ctx, t, d)
	if err != nil {
		return measurement{}, err
	}
	elapsed := time.Since(began)
	after, err := cpuOf(t.pids())
	if err != nil {
		return measurement{}, err
	}
	if o.units <= 0 {
		return measurement{}, errors.New("nothing was done")
	}
	return measurement{
		cost: (after - before).Seconds() / o.units,
		rate: o.units / elapsed.Seconds(),
		p50:  o.p50, p99: o.p99,
	}, nil
}

// publish prints the report, and writes it with its drawing if out names a file.
func publish(r *report, out, root string) error {
	if out == "auto" {
		out = filepath.Join(root, "deploy", "bench", "results", time.Now().Format("2006-01-02-1504")+".md")
	}
	plot, name := "", ""
	if out != "" && r.scale != nil {
		plot = strings.TrimSuffix(out, ".md") + "-scale.svg"
		name = filepath.Base(plot)
	}
	text := r.markdown(name)
	if _, err := io.WriteString(os.Stdout, text); err != nil || out == "" {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	if plot != "" {
		if err := os.WriteFile(plot, draw(scalePanels(r.scale)), 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(out, []byte(text), 0o644)
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
