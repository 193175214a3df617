package kv

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"wormhole/edge/cluster/store"
)

// lagInterval is the time between two comparisons of a watch with its store.
const lagInterval = time.Second

// maxElection is how long it may take until the servers have a leader again.
const maxElection = 12 * time.Second

// errLag says that the watch stands still while the store does not.
var errLag = errors.New("the watch of the store stands still")

// lag finds out that a watch of a replicated store tells nothing any more. The server
// that tells it need not be the one this edge is connected to, and nobody notices
// soon when that one is killed.
type lag struct {
	store  *Store
	stream jetstream.Stream
	seen   atomic.Uint64 // newest revision that the watch told
	found  chan error    // capacity 1

	end context.CancelFunc
	wg  sync.WaitGroup
}

func newLag(s *Store, stream jetstream.Stream) *lag {
	return &lag{store: s, stream: stream, found: make(chan error, 1), end: func() {}}
}

// start begins to compare, until stop or until something is found.
func (l *lag) start(ctx context.Context) {
	ctx, l.end = context.WithCancel(ctx)
	l.wg.Go(func() {
		if err := l.run(ctx); err != nil {
			l.found <- err
		}
	})
}

func (l *lag) stop() { l.end(); l.wg.Wait() }

func (l *lag) run(ctx context.Context) error {
	tick := time.NewTicker(lagInterval)
	defer tick.Stop()
	var silent time.Time // since when nobody answers, else zero
	var behind uint64
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		ask, cancel := context.WithTimeout(ctx, l.store.cfg.Timeout)
		info, err := l.stream.Info(ask)
		cancel()
		seen := l.seen.Load()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			// The servers elect a leader for some seconds, and then one answers.
			if silent.IsZero() {
				silent = time.Now()
			} else if time.Since(silent) > maxElection {
				return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
			}
			continue
		case behind != 0 && seen < behind:
			return errLag
		}
		silent, behind = time.Time{}, 0
		if info.State.Msgs > 0 && info.State.LastSeq > seen {
			behind = info.State.LastSeq
		}
	}
}
