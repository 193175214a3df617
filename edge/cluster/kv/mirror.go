package kv

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"wormhole/edge/cluster/store"
)

// mirror is the copy of everything on this edge's disk: a store.Dir whose values
// begin with the revision that the network's store gave them. Writing lags behind
// memory; what a crash loses is told again by the next watch.
type mirror struct {
	dir    *store.Dir
	logger *slog.Logger
	wake   chan struct{} // capacity 1

	mu   sync.Mutex // guards todo
	todo map[mirrored]*store.Entry
}

type mirrored struct{ bucket, key string }

func openMirror(path string, logger *slog.Logger) (*mirror, error) {
	dir, err := store.OpenDir(path)
	if err != nil {
		return nil, fmt.Errorf("mirror of the store: %w", err)
	}
	return &mirror{dir: dir, logger: logger, wake: make(chan struct{}, 1), todo: map[mirrored]*store.Entry{}}, nil
}

// load gives every entry to each. Damaged ones are logged and left out: the store
// tells them again.
func (m *mirror) load(each func(bucket string, e store.Entry)) error {
	names, err := m.dir.Buckets()
	if err != nil {
		return fmt.Errorf("mirror of the store: %w", err)
	}
	for _, name := range names {
		entries, err := m.dir.List(context.Background(), name)
		if err != nil && !errors.Is(err, store.ErrCorrupt) {
			return fmt.Errorf("mirror of the store: %w", err)
		}
		if err != nil {
			m.logger.Error("entries of the mirror are damaged; the store has them", "bucket", name, "err", err)
		}
		for _, e := range entries {
			if len(e.Value) < 8 {
				continue
			}
			each(name, store.Entry{Key: e.Key, Value: e.Value[8:], Revision: binary.BigEndian.Uint64(e.Value)})
		}
	}
	return nil
}

// put and remove note what is to be written; they do not block.
func (m *mirror) put(bucket string, e store.Entry) { m.note(mirrored{bucket, e.Key}, &e) }
func (m *mirror) remove(bucket string, key string) { m.note(mirrored{bucket, key}, nil) }

func (m *mirror) note(k mirrored, e *store.Entry) {
	m.mu.Lock()
	m.todo[k] = e
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// run writes until ctx ends, and then what is left.
func (m *mirror) run(ctx context.Context) {
	for {
		select {
		case <-m.wake:
			m.flush()
		case <-ctx.Done():
			m.flush()
			return
		}
	}
}

func (m *mirror) flush() {
	m.mu.Lock()
	todo := m.todo
	m.todo = map[mirrored]*store.Entry{}
	m.mu.Unlock()
	ctx := context.Background()
	for k, e := range todo {
		if err := m.write(ctx, k, e); err != nil {
			m.logger.Error("mirror of the store not written", "bucket", k.bucket, "err", err)
		}
	}
}

func (m *mirror) write(ctx context.Context, k mirrored, e *store.Entry) error {
	if e == nil {
		return m.dir.Delete(ctx, k.bucket, k.key)
	}
	value := make([]byte, 8, 8+len(e.Value))
	binary.BigEndian.PutUint64(value, e.Revision)
	value = append(value, e.Value...)
	_, err := m.dir.Put(ctx, k.bucket, k.key, value)
	if errors.Is(err, store.ErrCorrupt) {
		if err = m.dir.Delete(ctx, k.bucket, k.key); err == nil {
			_, err = m.dir.Put(ctx, k.bucket, k.key, value)
		}
	}
	return err
}

func (m *mirror) close() error { return m.dir.Close() }
