// Command bench is `make bench`: this project beside nginx and HAProxy on
// loopback, with the same small app behind each. It counts the CPU seconds of all
// processes of a target per 1,000 requests (or per GB), in interleaved rounds, and
// prints medians, ranges and ratios to nginx in the same round. Rates do not
// travel between machines; these ratios do, roughly.
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
	serveApp string
}

func main() {
	var opt options
	flag.IntVar(&opt.rounds, "rounds", 3, "interleaved rounds")
	flag.DurationVar(&opt.duration, "duration", 5*time.Second, "length of one measurement")
	flag.StringVar(&opt.only, "only", "", "comma-separated workloads, of "+strings.Join(workloadNames(), ", ")+", idle")
	flag.StringVar(&opt.targets, "targets", "", "comma-separated targets, of nginx, haproxy, wormhole and those added")
	flag.Var(&opt.add, "add", "a further target as `name=command,url`; may be repeated. The command finds the app in APP_ADDR and a certificate for "+host+" in CERT_FILE (chain and key)")
	flag.StringVar(&opt.out, "out", "", "write the table to this `file` as well; \"auto\" names it after the day below deploy/bench/results")
	flag.BoolVar(&opt.quick, "quick", false, "one short round, about a minute")
	flag.IntVar(&opt.tunnels, "tunnels", 500, "idle tunnels for the memory figure")
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
		opt.rounds, opt.duration = 1, 2*time.Second
	}
	if opt.rounds < 1 || opt.duration < time.Second {
		return errors.New("--rounds must be at least 1 and --duration at least 1s")
	}
	plan, err := chosen(opt.only)
	if err != nil {
		return err
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
	if err := s.addTargets(ctx, opt); err != nil {
		return err
	}
	report := newReport(s, opt)
	if len(plan) > 0 {
		if err := measureAll(ctx, s, plan, opt, report); err != nil {
			return err
		}
	}
	if s.tunnel != nil && (opt.only == "" || slices.Contains(strings.Split(opt.only, ","), "idle")) {
		report.footprint, err = footprint(ctx, s, opt.tunnels)
		if err != nil {
			return err
		}
	}
	return publish(report, opt.out, root)
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

func publish(r *report, out, root string) error {
	text := r.markdown()
	if _, err := io.WriteString(os.Stdout, text); err != nil {
		return err
	}
	switch out {
	case "":
		return nil
	case "auto":
		out = filepath.Join(root, "deploy", "bench", "results", time.Now().Format("2006-01-02-1504")+".md")
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	return os.WriteFile(out, []byte(text), 0o644)
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
