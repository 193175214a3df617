package kv

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"wormhole/edge/cluster/store"
)

// watcher follows one bucket for one caller of Watch. Changes are merged by key, so
// that a slow receiver holds up nobody and misses intermediate values only.
type watcher struct {
	wake chan struct{} // capacity 1

	mu      sync.Mutex // guards below
	changes map[string]store.Event
	order   []string // of changes
	ready   bool     // EventReady is due
	fault   error    // EventFault is due
}

// Watch implements store.Store. The state comes from memory at once; while the
// store cannot be reached, an EventFault says so.
func (s *Store) Watch(ctx context.Context, name string) (<-chan store.Event, error) {
	if err := store.CheckKey(name, "x"); err != nil {
		return nil, fmt.Errorf("watch %s: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, fmt.Errorf("watch %s: %w", name, store.ErrClosed)
	}
	w := &watcher{wake: make(chan struct{}, 1), changes: map[string]store.Event{}}
	b := s.bucket(name)
	for _, e := range b.entries {
		w.change(store.Event{Kind: store.EventPut, Entry: e})
	}
	w.ready = true
	if !s.synced {
		w.fault = s.fault
	}
	w.nudge()
	b.watchers[w] = struct{}{}
	out := make(chan store.Event)
	s.wg.Go(func() { // Close waits for it; it ends with ctx too
		defer close(out)
		defer func() {
			s.mu.Lock()
			delete(b.watchers, w)
			s.mu.Unlock()
		}()
		w.run(ctx, s.done, out)
	})
	return out, nil
}

func (w *watcher) change(e store.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.changes[e.Entry.Key]; !ok {
		w.order = append(w.order, e.Entry.Key)
	}
	w.changes[e.Entry.Key] = e
	w.nudge()
}

// state tells that the store is in step (nil) or cannot be read.
func (w *watcher) state(fault error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fault = fault
	w.ready = fault == nil
	w.nudge()
}

func (w *watcher) nudge() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *watcher) run(ctx context.Context, done <-chan struct{}, out chan<- store.Event) {
	for {
		e, ok := w.next()
		if !ok {
			select {
			case <-w.wake:
				continue
			case <-ctx.Done():
			case <-done:
			}
			return
		}
		select {
		case out <- e:
		case <-ctx.Done():
			return
		case <-done:
			return
		}
	}
}

func (w *watcher) next() (store.Event, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.order) > 0 {
		key := w.order[0]
		w.order = w.order[1:]
		e := w.changes[key]
		delete(w.changes, key)
		e.Entry.Value = slices.Clone(e.Entry.Value) // it belongs to the receiver
		return e, true
	}
	w.order = nil
	switch {
	case w.ready:
		w.ready = false
		return store.Event{Kind: store.EventReady}, true
	case w.fault != nil:
		err := w.fault
		w.fault = nil
		return store.Event{Kind: store.EventFault, Err: err}, true
	}
	return store.Event{}, false
}
