package kv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"wormhole/edge/cluster/store"
)

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, name, key string, value []byte) (uint64, error) {
	return s.write(ctx, name, key, value, func(ctx context.Context, kv jetstream.KeyValue, k string) (uint64, error) {
		return kv.Put(ctx, k, value)
	})
}

// Create implements store.Store.
func (s *Store) Create(ctx context.Context, name, key string, value []byte) (uint64, error) {
	return s.write(ctx, name, key, value, func(ctx context.Context, kv jetstream.KeyValue, k string) (uint64, error) {
		revision, err := kv.Create(ctx, k, value)
		if errors.Is(err, jetstream.ErrKeyExists) {
			return 0, store.ErrExists
		}
		return revision, err
	})
}

// Update implements store.Store.
func (s *Store) Update(ctx context.Context, name, key string, value []byte, revision uint64) (uint64, error) {
	return s.write(ctx, name, key, value, func(ctx context.Context, kv jetstream.KeyValue, k string) (uint64, error) {
		next, err := kv.Update(ctx, k, value, revision)
		if wrongRevision(err) {
			if _, err := kv.Get(ctx, k); errors.Is(err, jetstream.ErrKeyNotFound) {
				return 0, store.ErrNotFound
			}
			return 0, store.ErrConflict
		}
		return next, err
	})
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, name, key string) error {
	fail := func(err error) error { return fmt.Errorf("delete %s/%s: %w", name, key, err) }
	if err := store.CheckKey(name, key); err != nil {
		return fail(err)
	}
	remote, live, err := s.awaited(ctx)
	if err != nil {
		return fail(err)
	}
	ctx, cancel := s.bounded(ctx, live)
	defer cancel()
	if _, err := remote.Get(ctx, name+"."+key); errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil
	}
	if err := remote.Delete(ctx, name+"."+key); err != nil {
		return fail(fmt.Errorf("%w: %w", store.ErrUnavailable, err))
	}
	s.mu.Lock()
	b := s.bucket(name)
	s.drop(name, b, key, b.entries[key].Revision)
	s.mu.Unlock()
	return nil
}

func wrongRevision(err error) bool {
	var api *jetstream.APIError
	return errors.Is(err, jetstream.ErrKeyExists) ||
		errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence
}

func (s *Store) write(ctx context.Context, name, key string, value []byte,
	do func(context.Context, jetstream.KeyValue, string) (uint64, error),
) (uint64, error) {
	fail := func(err error) (uint64, error) { return 0, fmt.Errorf("write %s/%s: %w", name, key, err) }
	if err := store.CheckKey(name, key); err != nil {
		return fail(err)
	}
	if len(value) > store.MaxValue {
		return fail(fmt.Errorf("a value of %d bytes is larger than %d: %w", len(value), store.MaxValue, store.ErrInvalid))
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	revision, err := s.try(ctx, name, key, do)
	if errors.Is(err, errCut) && ctx.Err() == nil { // it may have been taken, or not
		var again error
		revision, again = s.try(ctx, name, key, do)
		switch {
		case again == nil:
			err = nil
		case refused(again) && ctx.Err() == nil: // by what the first try wrote?
			if e, known := s.current(ctx, name, key); known && bytes.Equal(e.Value(), value) {
				revision, err = e.Revision(), nil
			}
		}
	}
	if err != nil {
		return fail(err)
	}
	e := store.Entry{Key: key, Value: slices.Clone(value), Revision: revision}
	s.learn(name, e)
	if s.cfg.Pushed != nil {
		s.cfg.Pushed(name, e)
	}
	return revision, nil
}

// errCut says that the connection went while the store was asked.
var errCut = errors.New("the connection to it was lost")

// try asks for one write, once.
func (s *Store) try(ctx context.Context, name, key string,
	do func(context.Context, jetstream.KeyValue, string) (uint64, error),
) (uint64, error) {
	remote, live, err := s.awaited(ctx)
	if err != nil {
		return 0, err
	}
	bounded, cancel := s.bounded(ctx, live)
	defer cancel()
	revision, err := do(bounded, remote, name+"."+key)
	switch {
	case err == nil, refused(err):
		return revision, err
	case s.cut(live):
		return 0, fmt.Errorf("%w: %w: %w", store.ErrUnavailable, errCut, err)
	}
	return 0, fmt.Errorf("%w: %w", store.ErrUnavailable, err)
}

// awaited is remote, with some patience for a store that is between two connections:
// its edge starts again, another one leads, or it moves.
func (s *Store) awaited(ctx context.Context) (jetstream.KeyValue, context.Context, error) {
	for end := time.After(s.cfg.Connecting); ; {
		s.mu.Lock()
		came, hopeless := s.came, s.closed || errors.Is(s.fault, store.ErrCorrupt)
		s.mu.Unlock()
		remote, live, err := s.remote()
		if err == nil || hopeless {
			return remote, live, err
		}
		select {
		case <-came:
		case <-s.done:
		case <-end:
			return nil, nil, err
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("%w: %w", err, ctx.Err())
		}
	}
}

// cut reports whether the connection that live is of is gone. The client notices that
// before Run does.
func (s *Store) cut(live context.Context) bool {
	if live.Err() == nil && !s.conn.IsConnected() {
		select {
		case <-live.Done():
		case <-time.After(s.cfg.Connecting):
		}
	}
	return live.Err() != nil
}

// refused reports whether the store answered that a write was not taken.
func refused(err error) bool {
	return errors.Is(err, store.ErrExists) || errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrNotFound)
}

// current is what the store itself has now.
func (s *Store) current(ctx context.Context, name, key string) (e jetstream.KeyValueEntry, known bool) {
	remote, live, err := s.remote()
	if err != nil {
		return nil, false
	}
	ctx, cancel := s.bounded(ctx, live)
	defer cancel()
	e, err = remote.Get(ctx, name+"."+key)
	return e, err == nil
}
