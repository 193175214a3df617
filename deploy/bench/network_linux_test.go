package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"wormhole/deploy/link"
	"wormhole/deploy/rig"
)

// TestMain lets the test's own program be the app, as the benchmark's is.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "--serve-app" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		if err := serveApp(ctx, os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func TestTheTunnelCrossesALink(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("network namespaces need root")
		}
		t.Skip("network namespaces need root")
	}
	root, err := rig.Root()
	if err != nil {
		t.Fatal(err)
	}
	s := &site{root: root, dir: t.TempDir()}
	if s.binaries, err = rig.FindBinaries(t.Context(), root, s.dir); err != nil {
		t.Fatal(err)
	}
	const roundTrip = 30 * time.Millisecond
	n, err := openNetwork(t.Context(), s, link.Config{RTT: roundTrip, Rate: 40e6}, "cubic")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := n.close(); err != nil {
			t.Error(err)
		}
	}()
	latencies, err := n.small(t.Context(), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	// The client is beside the edge, the app beyond the link.
	if fastest := latencies[0]; fastest < roundTrip {
		t.Errorf("a request took %v, less than a round trip: it did not cross the link", fastest)
	}
	before, _ := n.link.Stats()
	rate, err := steadyRate(t.Context(), n.throughTunnel, longWarm, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	_, sent := n.link.Stats()
	t.Logf("small requests: %v to %v; bulk: %.1f MB/s", latencies[0], latencies[len(latencies)-1], rate/1e6)
	// More than fits cannot be, but what had been queued arrives at once after a pause.
	if rate < 40e6/8/50 || float64(sent.Bytes) < rate {
		t.Errorf("bulk moves %.2f MB/s, and the link says %+v", rate/1e6, sent)
	}
	if before.Lost != 0 {
		t.Errorf("%d packets were lost on a link without loss", before.Lost)
	}
	// A connection is opened beside bulk, so that small requests do not wait for it.
	err = beside(t.Context(), n.throughTunnel, func(ctx context.Context, _ *meter) error {
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		for {
			if count, _, err := n.sockets(ctx); err != nil || count >= 2 {
				return err
			}
			if err := pause(ctx, 100*time.Millisecond); err != nil {
				return fmt.Errorf("no further connection beside bulk: %w", err)
			}
		}
	})
	if err != nil {
		t.Error(err)
	}
	var together besideResult
	plan := besidePlan{links: 1, pairs: 2, warm: 200 * time.Millisecond, length: 500 * time.Millisecond}
	if err := together.measure(t.Context(), []*network{n}, plan); err != nil {
		t.Fatal(err)
	}
	if c := together.bulk(); c.pairs != 2 || c.ratio <= 0 || len(together.p99) != 2 || together.p99[0] < roundTrip || together.alone50[0] < roundTrip {
		t.Errorf("two pairs beside bulk are %+v, %v, %v alone", c, together.p99, together.alone50)
	}
	count, controls, err := n.sockets(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	known := []string{"cubic", "bbr", "reno"}
	if count < 1 || len(controls) < 1 || slices.ContainsFunc(controls, func(c string) bool { return !slices.Contains(known, c) }) {
		t.Errorf("the tunnel has %d connections with %q", count, strings.Join(controls, " "))
	}
}
