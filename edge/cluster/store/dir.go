package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// The store's own files. Keys cannot begin with a dot.
const (
	markerFile  = ".store" // in the store's directory: its format
	madePrefix  = ".made-" // in the store's directory, before a bucket's name: the bucket was made
	lockFile    = ".lock"  // in a bucket: held while writing
	floorFile   = ".floor" // in a bucket: no revision at or below it is given again
	tempPattern = ".new-*" // in a bucket: not yet renamed
	tempPrefix  = ".new-"  // what tempPattern makes
	marker      = "wormhole-store/1\n"
	damagedJump = 1 << 32 // more revisions than any key ever had
)

// Dir is a Store in a directory of a local file system: a directory for each
// bucket and a file for each key, with the rights 0700 and 0600. It may be opened
// by several processes at once.
type Dir struct {
	path string
	done chan struct{}  // closed by Close
	wg   sync.WaitGroup // watches

	mu      sync.Mutex // guards below
	closed  bool
	buckets map[string]*bucket
}

var _ Store = (*Dir)(nil)

// bucket is what this process knows of a bucket.
type bucket struct {
	name, path string
	turn       chan struct{} // holds one token: the right to take the file lock
	swept      bool          // guarded by turn: leftovers of dead writers are gone

	mu       sync.Mutex // guards watchers
	watchers map[*watcher]struct{}
}

// OpenDir opens the store in the directory path and makes it if it does not
// exist. A directory that holds something else, or that every user of the machine
// may enter, is refused. An existing store on a read-only file system opens and
// can be read.
func OpenDir(path string) (*Dir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if err := makeDir(path); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	// The group is left alone: orchestrators give volumes to one of theirs.
	if info.Mode().Perm()&0o007 != 0 {
		return nil, fmt.Errorf("open store: %s holds private keys and is open to everybody (mode %04o): chmod 0700 it",
			path, info.Mode().Perm())
	}
	d := &Dir{path: path, done: make(chan struct{}), buckets: make(map[string]*bucket)}
	err = d.checkMarker()
	if errors.Is(err, fs.ErrNotExist) {
		err = d.initialise()
	}
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	return d, nil
}

// Path is the absolute path of the store's directory.
func (d *Dir) Path() string { return d.path }

// Buckets are the names of the buckets that were made, in order.
func (d *Dir) Buckets() ([]string, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, fmt.Errorf("list buckets: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && bucketForm.MatchString(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Close ends all watches and waits for them. It may be called more than once.
// Operations that began before it finish.
func (d *Dir) Close() error {
	d.mu.Lock()
	if !d.closed {
		d.closed = true
		close(d.done)
	}
	d.mu.Unlock()
	d.wg.Wait()
	return nil
}

// checkMarker returns nil if the directory is a store of this format,
// fs.ErrNotExist if it has no marker.
func (d *Dir) checkMarker() error {
	path := filepath.Join(d.path, markerFile)
	got, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if string(got) != marker {
		return &CorruptError{Path: path, Why: "it does not name a format that this version knows"}
	}
	return nil
}

// initialise makes an empty directory a store. Two processes may do so at once.
func (d *Dir) initialise() error {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), tempPrefix) && e.Name() != markerFile {
			return &CorruptError{Path: d.path, Why: fmt.Sprintf("it is not empty and has no %s file, so it is not a store or has lost a part", markerFile)}
		}
	}
	return writeFile(d.path, markerFile, []byte(marker))
}

// absent tells "there is no such entry" from "it is not there any more": a
// directory that was unmounted or removed must not look empty.
func (d *Dir) absent(b *bucket) error {
	err := d.checkMarker()
	if errors.Is(err, fs.ErrNotExist) {
		return &CorruptError{Path: d.path, Why: "the store's directory is gone or empty"}
	}
	if err != nil {
		return err
	}
	_, err = os.Stat(b.path)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	switch _, err = os.Stat(b.made()); {
	case err == nil:
		return &CorruptError{Bucket: b.name, Path: b.path, Why: "the directory is gone"}
	case errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return err
}

// Get implements Store.
func (d *Dir) Get(ctx context.Context, bucket, key string) (Entry, error) {
	b, err := d.begin(ctx, bucket, key)
	if err != nil {
		return Entry{}, fmt.Errorf("read %s/%s: %w", bucket, key, err)
	}
	e, err := d.read(b, key)
	if err != nil {
		return Entry{}, fmt.Errorf("read %s/%s: %w", bucket, key, err)
	}
	return e, nil
}

// Put implements Store. A damaged entry is not overwritten but ErrCorrupt.
func (d *Dir) Put(ctx context.Context, bucket, key string, value []byte) (uint64, error) {
	return d.write(ctx, bucket, key, value, func(Entry, bool) error { return nil })
}

// Create implements Store.
func (d *Dir) Create(ctx context.Context, bucket, key string, value []byte) (uint64, error) {
	return d.write(ctx, bucket, key, value, func(_ Entry, exists bool) error {
		if exists {
			return ErrExists
		}
		return nil
	})
}

// Update implements Store.
func (d *Dir) Update(ctx context.Context, bucket, key string, value []byte, revision uint64) (uint64, error) {
	return d.write(ctx, bucket, key, value, func(current Entry, exists bool) error {
		switch {
		case !exists:
			return ErrNotFound
		case current.Revision != revision:
			return ErrConflict
		}
		return nil
	})
}

// Delete implements Store.
func (d *Dir) Delete(ctx context.Context, bucket, key string) error {
	fail := func(err error) error { return fmt.Errorf("delete %s/%s: %w", bucket, key, err) }
	b, err := d.begin(ctx, bucket, key)
	if err != nil {
		return fail(err)
	}
	if _, err := d.read(b, key); errors.Is(err, ErrNotFound) {
		return nil
	}
	unlock, err := b.lock(ctx)
	if err != nil {
		return fail(err)
	}
	defer unlock()

	e, err := d.read(b, key)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil
	case errors.Is(err, ErrCorrupt):
		if e.Revision, err = d.highest(b); err != nil {
			return fail(err)
		}
		e.Revision += damagedJump
	case err != nil:
		return fail(err)
	}
	// The floor comes first: dying in between wastes a revision, never gives one twice.
	floor, err := b.floor()
	if err != nil {
		return fail(err)
	}
	if e.Revision > floor {
		if err := writeFile(b.path, floorFile, encodeEntry(Entry{Key: floorFile, Revision: e.Revision})); err != nil {
			return fail(err)
		}
	}
	if err := os.Remove(filepath.Join(b.path, fileOfKey(key))); err != nil {
		return fail(err)
	}
	b.nudge()
	if err := syncDir(b.path); err != nil {
		return fail(err)
	}
	return nil
}

// List implements Store.
func (d *Dir) List(ctx context.Context, bucket string) ([]Entry, error) {
	fail := func(err error) error { return fmt.Errorf("list %s: %w", bucket, err) }
	b, err := d.begin(ctx, bucket, "x")
	if err != nil {
		return nil, fail(err)
	}
	names, err := d.files(b)
	if err != nil {
		return nil, fail(err)
	}
	var entries []Entry
	var damage []error
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return nil, fail(err)
		}
		e, _, err := readEntryFile(b.name, "", filepath.Join(b.path, name))
		switch {
		case errors.Is(err, fs.ErrNotExist): // deleted since
		case errors.Is(err, ErrCorrupt):
			damage = append(damage, err)
		case err != nil:
			return nil, fail(err)
		default:
			entries = append(entries, e)
		}
	}
	slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.Key, b.Key) })
	if len(damage) > 0 {
		return entries, fail(errors.Join(damage...))
	}
	return entries, nil
}

// begin checks what every operation needs and returns the bucket.
func (d *Dir) begin(ctx context.Context, name, key string) (*bucket, error) {
	if err := validateKey(name, key); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, ErrClosed
	}
	b, ok := d.buckets[name]
	if !ok {
		b = &bucket{
			name: name, path: filepath.Join(d.path, name),
			turn: make(chan struct{}, 1), watchers: make(map[*watcher]struct{}),
		}
		d.buckets[name] = b
	}
	return b, nil
}

// read needs no lock: a rename shows the whole old file or the whole new one.
func (d *Dir) read(b *bucket, key string) (Entry, error) {
	e, _, err := readEntryFile(b.name, key, filepath.Join(b.path, fileOfKey(key)))
	if errors.Is(err, fs.ErrNotExist) {
		if err := d.absent(b); err != nil {
			return Entry{}, err
		}
		return Entry{}, ErrNotFound
	}
	return e, err
}

// files are the names of a bucket's entry files.
func (d *Dir) files(b *bucket) ([]string, error) {
	entries, err := os.ReadDir(b.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, d.absent(b)
	}
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// write replaces a value under the bucket's lock if allow agrees to what it finds.
func (d *Dir) write(ctx context.Context, bucket, key string, value []byte, allow func(current Entry, exists bool) error) (uint64, error) {
	fail := func(err error) (uint64, error) { return 0, fmt.Errorf("write %s/%s: %w", bucket, key, err) }
	if len(value) > MaxValue {
		return fail(fmt.Errorf("a value of %d bytes is larger than %d: %w", len(value), MaxValue, ErrInvalid))
	}
	b, err := d.begin(ctx, bucket, key)
	if err != nil {
		return fail(err)
	}
	if err := d.absent(b); err != nil {
		return fail(err)
	}
	unlock, err := b.lock(ctx)
	if err != nil {
		return fail(err)
	}
	defer unlock()

	current, err := d.read(b, key)
	exists := err == nil
	if err != nil && !errors.Is(err, ErrNotFound) {
		return fail(err)
	}
	if err := allow(current, exists); err != nil {
		return fail(err)
	}
	last := current.Revision
	if !exists {
		if last, err = b.floor(); err != nil {
			return fail(err)
		}
	}
	next := Entry{Key: key, Value: value, Revision: last + 1}
	err = writeFile(b.path, fileOfKey(key), encodeEntry(next))
	b.nudge()
	if err != nil {
		return fail(err)
	}
	return next.Revision, nil
}

// made is the file that says that the bucket was made once.
func (b *bucket) made() string {
	return filepath.Join(filepath.Dir(b.path), madePrefix+b.name)
}

// highest is the highest readable revision in a bucket.
func (d *Dir) highest(b *bucket) (uint64, error) {
	names, err := d.files(b)
	if err != nil {
		return 0, err
	}
	top, err := b.floor()
	if err != nil {
		return 0, err
	}
	for _, name := range names {
		if e, _, err := readEntryFile(b.name, "", filepath.Join(b.path, name)); err == nil {
			top = max(top, e.Revision)
		}
	}
	return top, nil
}

// floor is the highest revision of any deleted key. A key that is made anew goes
// on from there, so that its revisions never repeat.
func (b *bucket) floor() (uint64, error) {
	e, _, err := readEntryFile(b.name, floorFile, filepath.Join(b.path, floorFile))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	return e.Revision, err
}
