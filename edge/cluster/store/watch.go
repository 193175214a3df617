package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

const (
	// pollInterval is how often a watch looks for writes of other processes. Those
	// of this process wake it at once.
	pollInterval = 250 * time.Millisecond
	// settled is the age from which a file's time of change tells versions apart:
	// file systems count it in ticks of up to two seconds.
	settled = 3 * time.Second
	// fullInterval is how often all files are compared, whatever the directory's
	// time of change says. It finds files that were damaged in place.
	fullInterval = 10 * time.Second
)

// watcher follows one bucket for one caller of Watch. All fields but nudge belong
// to its goroutine.
type watcher struct {
	dir    *Dir
	bucket *bucket
	nudge  chan struct{} // capacity 1
	out    chan Event

	seen    map[string]seenFile // by file name: what the receiver knows
	ready   bool
	faulty  bool      // the bucket as a whole could not be read
	dirTime time.Time // the directory's time of change at the last scan
	scanned time.Time // when the last scan began
	full    time.Time // when all files were last compared
}

// seenFile is a version of a file that the receiver knows.
type seenFile struct {
	key      string
	revision uint64
	damaged  bool
	info     os.FileInfo // nil if it could not be opened
	read     time.Time
}

// Watch implements Store.
func (d *Dir) Watch(ctx context.Context, name string) (<-chan Event, error) {
	b, err := d.begin(ctx, name, "x")
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", name, err)
	}
	w := &watcher{
		dir: d, bucket: b, nudge: make(chan struct{}, 1), out: make(chan Event),
		seen: make(map[string]seenFile),
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, fmt.Errorf("watch %s: %w", name, ErrClosed)
	}
	b.mu.Lock()
	b.watchers[w] = struct{}{}
	b.mu.Unlock()
	d.wg.Go(func() { w.run(ctx) }) // Close waits for it; it ends with ctx too
	return w.out, nil
}

// nudge wakes the watches of this process.
func (b *bucket) nudge() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for w := range b.watchers {
		select {
		case w.nudge <- struct{}{}:
		default: // one is pending and will see this change too
		}
	}
}

func (w *watcher) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer close(w.out)
	defer func() {
		w.bucket.mu.Lock()
		delete(w.bucket.watchers, w)
		w.bucket.mu.Unlock()
	}()
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	for woken := true; ; {
		if !w.look(ctx, woken) {
			return
		}
		select {
		case <-w.nudge:
			woken = true
		case <-poll.C:
			woken = false
		case <-ctx.Done():
			return
		case <-w.dir.done:
			return
		}
	}
}

// send returns false when the watch is over.
func (w *watcher) send(ctx context.Context, e Event) bool {
	select {
	case w.out <- e:
		return true
	case <-ctx.Done():
	case <-w.dir.done:
	}
	return false
}

// look compares the bucket with what the receiver knows and sends the difference.
func (w *watcher) look(ctx context.Context, woken bool) bool {
	now := time.Now()
	full := now.Sub(w.full) >= fullInterval || now.Before(w.full)
	var dirTime time.Time
	info, err := os.Stat(w.bucket.path)
	switch {
	case err == nil:
		dirTime = info.ModTime()
	case !errors.Is(err, fs.ErrNotExist):
		return w.fault(ctx, err)
	case len(w.seen) > 0:
		// Nobody removes a bucket; losing it is damage, not a thousand deletions.
		// (Of a bucket that was lost before the watch began, absent tells.)
		return w.fault(ctx, &CorruptError{Bucket: w.bucket.name, Path: w.bucket.path, Why: "the directory is gone"})
	}
	quiet := dirTime.Equal(w.dirTime) && w.scanned.Sub(dirTime) > settled
	if w.ready && !w.faulty && !woken && !full && quiet {
		return true
	}
	names, err := w.dir.files(w.bucket)
	if err != nil {
		return w.fault(ctx, err)
	}
	if !w.deleted(ctx, names) {
		return false
	}
	for _, name := range names {
		if !w.file(ctx, name) {
			return false
		}
	}
	w.dirTime, w.scanned = dirTime, now
	if full {
		w.full = now
	}
	if !w.ready || w.faulty {
		w.ready, w.faulty = true, false
		return w.send(ctx, Event{Kind: EventReady})
	}
	return true
}

// fault tells once that the bucket cannot be read.
func (w *watcher) fault(ctx context.Context, err error) bool {
	if w.faulty {
		return true
	}
	w.faulty = true
	return w.send(ctx, Event{Kind: EventFault, Err: fmt.Errorf("watch %s: %w", w.bucket.name, err)})
}

// deleted tells which known files are not among names any more.
func (w *watcher) deleted(ctx context.Context, names []string) bool {
	if len(w.seen) == 0 {
		return true
	}
	present := make(map[string]struct{}, len(names))
	for _, name := range names {
		present[name] = struct{}{}
	}
	var gone []string
	for name := range w.seen {
		if _, ok := present[name]; !ok {
			gone = append(gone, name)
		}
	}
	slices.Sort(gone)
	for _, name := range gone {
		key := w.seen[name].key
		delete(w.seen, name)
		if !w.send(ctx, Event{Kind: EventDelete, Entry: Entry{Key: key}}) {
			return false
		}
	}
	return true
}

// file tells what became of one file.
func (w *watcher) file(ctx context.Context, name string) bool {
	path := filepath.Join(w.bucket.path, name)
	old, known := w.seen[name]
	if known && old.info != nil && old.read.Sub(old.info.ModTime()) > settled {
		info, err := os.Lstat(path)
		if err == nil && os.SameFile(info, old.info) && info.Size() == old.info.Size() && info.ModTime().Equal(old.info.ModTime()) {
			return true
		}
	}
	now := time.Now()
	e, info, err := readEntryFile(w.bucket.name, "", path)
	if errors.Is(err, fs.ErrNotExist) {
		return true // the next look sees the deletion
	}
	if err != nil {
		return w.unreadable(ctx, name, info, err)
	}
	w.seen[name] = seenFile{key: e.Key, revision: e.Revision, info: info, read: now}
	if known && !old.damaged && old.revision == e.Revision {
		return true
	}
	return w.send(ctx, Event{Kind: EventPut, Entry: e})
}

// unreadable tells once that an entry is damaged. The receiver keeps the value it
// knows.
func (w *watcher) unreadable(ctx context.Context, name string, info os.FileInfo, err error) bool {
	old := w.seen[name]
	key := old.key
	if key == "" {
		key = keyOfFile(name)
	}
	w.seen[name] = seenFile{key: key, revision: old.revision, damaged: true, info: info, read: time.Now()}
	if old.damaged {
		return true
	}
	return w.send(ctx, Event{Kind: EventFault, Entry: Entry{Key: key}, Err: err})
}
