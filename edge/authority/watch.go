package authority

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"wormhole/edge/cluster/store"
)

// Run keeps keys and revocations in step with the store until ctx ends, and
// removes records that are past Retention. Trouble with the store is logged and
// outlived; Run returns nil when ctx ends.
func (a *Authority) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { a.follow(ctx, bucketKeys, a.onRing) })
	wg.Go(func() { a.follow(ctx, bucketTokens, a.onToken) })
	wg.Go(func() { a.pruneForEver(ctx) })
	wg.Wait()
	return nil
}

// follow watches a bucket, again and again if the watch ends.
func (a *Authority) follow(ctx context.Context, bucket string, apply func(store.Event)) {
	for ctx.Err() == nil {
		events, err := a.store.Watch(ctx, bucket)
		if err == nil {
			for e := range events {
				switch {
				case e.Kind == store.EventReady:
					a.setFresh(bucket)
				case e.Kind == store.EventFault && e.Entry.Key == "":
					a.setStale(bucket, e.Err)
				default:
					apply(e)
				}
			}
			err = errors.New("the watch ended")
		}
		if ctx.Err() != nil {
			return
		}
		a.setStale(bucket, err)
		select {
		case <-time.After(rewatchPause):
		case <-ctx.Done():
		}
	}
}

func (a *Authority) onRing(e store.Event) {
	if e.Entry.Key != ringKey {
		return
	}
	err := e.Err
	switch e.Kind {
	case store.EventPut:
		var r ring
		if r, err = decodeRing(e.Entry.Value); err == nil {
			var view *ringView
			if view, err = r.view(e.Entry.Revision); err == nil {
				a.adoptRing(view)
				return
			}
		}
	case store.EventDelete:
		err = fmt.Errorf("it was deleted: %w", store.ErrCorrupt)
	}
	a.logger.Error("key ring cannot be read, going on with the one that is known", "err", err)
}

func (a *Authority) onToken(e store.Event) {
	switch e.Kind {
	case store.EventPut:
		a.learn(e.Entry)
	case store.EventDelete:
		a.vanished(e.Entry.Key)
	case store.EventFault:
		a.distrust(e.Entry.Key, e.Err)
	}
}

func (a *Authority) pruneForEver(ctx context.Context) {
	tick := time.NewTicker(pruneInterval)
	defer tick.Stop()
	for {
		if n, err := a.prune(ctx); err != nil && ctx.Err() == nil {
			a.logger.Warn("expired token records not removed", "err", err)
		} else if n > 0 {
			a.logger.Info("expired token records removed", "count", n)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// prune removes the records of tokens that expired Retention ago.
func (a *Authority) prune(ctx context.Context) (removed int, err error) {
	defer a.forget()
	infos, err := a.List(ctx)
	if err != nil && !errors.Is(err, store.ErrCorrupt) {
		return 0, err
	}
	for _, t := range infos {
		if a.now().Before(t.ExpiresAt.Add(Retention)) {
			continue
		}
		if err := a.store.Delete(ctx, bucketTokens, t.ID); err != nil {
			return removed, fmt.Errorf("prune tokens: %w", err)
		}
		removed++
	}
	return removed, nil
}
