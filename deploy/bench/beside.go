package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// besidePlan is how small requests beside bulk are measured. One stream of 0.5 MB/s
// leaves the machine idle, so that several links carry one each at once. The ratio of a
// pair that loses the same packets varied by 2 to 3 % on a quiet machine, by 11 % on
// one that was short of memory for TCP: sixteen tell it to 1 and to 3 %.
type besidePlan struct {
	links, pairs int           // pairs of each link
	warm, length time.Duration // of each measurement
}

const (
	// lossWarm is how long a connection profits over lossLink from the slow start that
	// it began with, some seconds longer than slow start itself: a plain one is fresh in
	// each measurement and the tunnel's is not, and what each goes on with is compared.
	lossWarm = 6 * time.Second
	lossTime = 15 * time.Second
)

// besideResult is small requests beside bulk over lossLink.
type besideResult struct {
	mu            sync.Mutex      // guards what follows
	plain, tunnel []float64       // bytes a second, pair by pair
	p50, p99      []time.Duration // beside bulk
	alone50       []time.Duration // the same without bulk, of each link
	alone99       []time.Duration
	sockets       int      // the tunnel's TCP connections beside bulk, the most seen
	controls      []string // and their congestion controls
}

// measure measures on all networks at once. Both of a pair lose the same packets, and
// every second pair begins with the tunnel.
func (r *besideResult) measure(ctx context.Context, networks []*network, plan besidePlan) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	faults := make([]error, len(networks))
	var running sync.WaitGroup
	for i, n := range networks {
		running.Go(func() {
			fault := r.alone(ctx, n, plan)
			for k := 0; k < plan.pairs && fault == nil; k++ {
				fault = r.pair(ctx, n, plan, i, k)
			}
			if faults[i] = fault; fault != nil {
				stop() // the others need not go on
			}
		})
	}
	running.Wait()
	return errors.Join(faults...)
}

// alone measures small requests without bulk.
func (r *besideResult) alone(ctx context.Context, n *network, plan besidePlan) error {
	latencies, err := n.small(ctx, plan.length/2)
	if err != nil {
		return fmt.Errorf("small requests alone: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.alone50 = append(r.alone50, latencies[len(latencies)/2])
	r.alone99 = append(r.alone99, latencies[len(latencies)*99/100])
	return nil
}

// pair measures one plain connection, and the tunnel with small requests beside bulk:
// the k-th time on link i.
func (r *besideResult) pair(ctx context.Context, n *network, plan besidePlan, i, k int) error {
	var plain, tunnel float64
	var latencies []time.Duration
	// The losses begin again when measuring does: what slow start sent before differs.
	warm := func(ctx context.Context) error {
		err := pause(ctx, plan.warm)
		n.link.Reseed(uint64(1 + i*plan.pairs + k))
		return err
	}
	halves := []func() error{
		func() error {
			err := beside(ctx, n.plainly, func(ctx context.Context, m *meter) (err error) {
				if err = warm(ctx); err == nil {
					plain, err = m.rate(ctx, 0, plan.length)
				}
				return err
			})
			if err != nil {
				return fmt.Errorf("plain connection: %w", err)
			}
			return nil
		},
		func() error {
			err := beside(ctx, n.throughTunnel, func(ctx context.Context, m *meter) (err error) {
				if err = warm(ctx); err == nil {
					tunnel, latencies, err = r.smallBeside(ctx, n, m, plan.length)
				}
				return err
			})
			if err != nil {
				return fmt.Errorf("small beside bulk: %w", err)
			}
			return nil
		},
	}
	if (i+k)%2 == 1 {
		halves[0], halves[1] = halves[1], halves[0]
	}
	for _, half := range halves {
		if err := half(); err != nil {
			return err
		}
	}
	p50, p99 := latencies[len(latencies)/2], latencies[len(latencies)*99/100]
	r.mu.Lock()
	defer r.mu.Unlock()
	r.plain, r.tunnel = append(r.plain, plain), append(r.tunnel, tunnel)
	r.p50, r.p99 = append(r.p50, p50), append(r.p99, p99)
	fmt.Fprintf(os.Stderr, "loss       link %d pair %d  plain %.3f MB/s; tunnel %.3f MB/s beside small p50 %.1f ms, p99 %.1f ms\n",
		i+1, k+1, plain/1e6, tunnel/1e6, milliseconds(p50), milliseconds(p99))
	return nil
}

// smallBeside is how fast the bulk that m counts goes through the tunnel while small
// requests do, and how long those take.
func (r *besideResult) smallBeside(ctx context.Context, n *network, m *meter, d time.Duration) (rate float64, latencies []time.Duration, err error) {
	before, began := m.n.Load(), time.Now()
	if latencies, err = n.small(ctx, d); err != nil {
		return 0, nil, err
	}
	rate = float64(m.n.Load()-before) / time.Since(began).Seconds()
	sockets, controls, err := n.sockets(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	if sockets > r.sockets {
		r.sockets, r.controls = sockets, controls
	}
	return rate, latencies, err
}

// bulk compares the tunnel's bulk with that of a plain connection.
func (r *besideResult) bulk() comparison { return compare(r.tunnel, r.plain) }
