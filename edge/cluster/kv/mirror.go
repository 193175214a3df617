package kv

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"wormhole/edge/cluster/store"
)

// mirror is the copy of everything on this edge's disk: a store.Dir whose values
// begin with the revision that the network's store gave them. Writing lags behind
// memory; what a crash loses is told again by the next watch.
type mirror struct {
	dir    *store.Dir
	logger *slog.Logger
	wake   chan struct{} // capacity 1

	last    time.Duration // for what is left to write at the end
	failing bool          // of run alone

	mu   sync.Mutex // guards todo
	todo map[mirrored]*store.Entry
}

type mirrored struct{ bucket, key string }

func openMirror(path string, logger *slog.Logger) (*mirror, error) {
	dir, err := store.OpenDir(path)
	if err != nil {
		return nil, fmt.Errorf("mirror of the store: %w", err)
	}
	return &mirror{dir: dir, logger: logger, wake: make(chan struct{}, 1), todo: map[mirrored]*store.Entry{}, last: lastWrites}, nil
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

// Mirror reads the copy of an edge that does not run, for a backup.
type Mirror struct{ dir *store.Dir }

// OpenMirror opens the copy in path, which must exist.
func OpenMirror(path string) (*Mirror, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, err
	}
	dir, err := store.OpenDir(path)
	return &Mirror{dir}, err
}

// Buckets are those of the network's store.
func (m *Mirror) Buckets() ([]string, error) { return m.dir.Buckets() }

// List returns the entries of a bucket as the network's store had them.
func (m *Mirror) List(ctx context.Context, bucket string) ([]store.Entry, error) {
	entries, err := m.dir.List(ctx, bucket)
	out := entries[:0]
	for _, e := range entries {
		if len(e.Value) >= 8 {
			out = append(out, store.Entry{Key: e.Key, Value: e.Value[8:], Revision: binary.BigEndian.Uint64(e.Value)})
		}
	}
	return out, err
}

// Close ends reading.
func (m *Mirror) Close() error { return m.dir.Close() }

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

// retryInterval is the wait before what could not be written is tried again.
const retryInterval = time.Second

// lastWrites bounds writing when the edge ends: a store that was moved a moment ago is
// written anew, which may take minutes, and nobody should wait for what is told again.
const lastWrites = 2 * time.Second

// run writes until ctx ends, and then what is left, as far as time allows.
func (m *mirror) run(ctx context.Context) {
	var again <-chan time.Time
	for {
		select {
		case <-m.wake:
		case <-again:
		case <-ctx.Done():
			ending, cancel := context.WithTimeout(context.Background(), m.last)
			defer cancel()
			m.flush(ending)
			return
		}
		if again = nil; !m.flush(ctx) {
			again = time.After(retryInterval)
		}
	}
}

// flush writes what is noted until ctx ends. What fails, or is left, is noted again,
// unless there is news of it.
func (m *mirror) flush(ctx context.Context) (all bool) {
	m.mu.Lock()
	todo := m.todo
	m.todo = map[mirrored]*store.Entry{}
	m.mu.Unlock()
	var fault error
	left := 0
	for k, e := range todo {
		err := ctx.Err()
		if err == nil {
			err = m.write(context.WithoutCancel(ctx), k, e)
		} else {
			left++
		}
		if err == nil {
			continue
		}
		if ctx.Err() == nil {
			fault = err
		}
		m.mu.Lock()
		if _, newer := m.todo[k]; !newer {
			m.todo[k] = e
		}
		m.mu.Unlock()
	}
	switch {
	case left > 0: // run flushes once more, or it was the last time
		m.logger.Debug("mirror of the store not written to the end", "left", left)
		return false
	case fault != nil && !m.failing:
		m.logger.Error("mirror of the store not written, trying again", "err", fault)
	case fault == nil && m.failing:
		m.logger.Info("mirror of the store is written again")
	}
	m.failing = fault != nil
	return !m.failing
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
