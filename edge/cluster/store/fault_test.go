package store

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Fault B13: at whatever byte a file is cut, and whichever byte is changed, the
// answer is ErrCorrupt and never "not found" or another value.
func TestDamageIsNeverTakenForAbsence(t *testing.T) {
	d, ctx := newDir(t), t.Context()
	must(t)(d.Put(ctx, "b", "k", []byte("the value")))
	must(t)(d.Put(ctx, "b", "other", []byte("x")))
	path := filepath.Join(d.Path(), "b", "k")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	damage := func(name string, content []byte) {
		t.Helper()
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if e, err := d.Get(ctx, "b", "k"); !errors.Is(err, ErrCorrupt) || errors.Is(err, ErrNotFound) {
			t.Fatalf("%s: Get = %q, %v", name, e.Value, err)
		}
	}
	for n := range whole {
		damage("truncated", whole[:n])
		changed := bytes.Clone(whole)
		changed[n] ^= 0x10
		damage("changed", changed)
	}
	damage("longer", append(bytes.Clone(whole), 'x'))
	damage("huge", make([]byte, maxEntryFile+1))

	list, err := d.List(ctx, "b")
	var corrupt *CorruptError
	if !errors.As(err, &corrupt) || corrupt.Key != "k" || corrupt.Bucket != "b" || len(list) != 1 || list[0].Key != "other" {
		t.Fatalf("List = %v, %v; want the other entry and the damage of k", list, err)
	}
	for name, op := range map[string]func() (uint64, error){
		"Put":    func() (uint64, error) { return d.Put(ctx, "b", "k", nil) },
		"Create": func() (uint64, error) { return d.Create(ctx, "b", "k", nil) },
		"Update": func() (uint64, error) { return d.Update(ctx, "b", "k", nil, 1) },
	} {
		if _, err := op(); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s over a damaged entry: %v", name, err)
		}
	}
	// Deleting is the repair, and no revision comes twice after it.
	if err := d.Delete(ctx, "b", "k"); err != nil {
		t.Fatal(err)
	}
	if revision := must(t)(d.Create(ctx, "b", "k", nil)); revision <= damagedJump {
		t.Fatalf("revision %d may have been given before", revision)
	}
}

func TestAFileUnderAnotherKeysNameIsDamage(t *testing.T) {
	d, ctx := newDir(t), t.Context()
	must(t)(d.Put(ctx, "b", "one", []byte("1")))
	dir := filepath.Join(d.Path(), "b")
	if err := os.Rename(filepath.Join(dir, "one"), filepath.Join(dir, "two")); err != nil {
		t.Fatal(err)
	}
	_, err := d.Get(ctx, "b", "two")
	wantErr(t, err, ErrCorrupt)
}

func TestAStoreThatVanishesIsNotEmpty(t *testing.T) {
	d, ctx := newDir(t), t.Context()
	must(t)(d.Put(ctx, "b", "k", nil))
	if err := os.RemoveAll(d.Path()); err != nil {
		t.Fatal(err)
	}
	_, err := d.Get(ctx, "b", "k")
	wantErr(t, err, ErrCorrupt)
	_, err = d.List(ctx, "b")
	wantErr(t, err, ErrCorrupt)
	_, err = d.Create(ctx, "b", "k", nil)
	wantErr(t, err, ErrCorrupt)
}

func TestABucketThatVanishesIsNotEmpty(t *testing.T) {
	d, ctx := newDir(t), t.Context()
	must(t)(d.Put(ctx, "b", "k", nil))
	if err := os.RemoveAll(filepath.Join(d.Path(), "b")); err != nil {
		t.Fatal(err)
	}
	for name, d := range map[string]*Dir{"the same": d, "the next": openDir(t, d.Path())} {
		_, err := d.Get(ctx, "b", "k")
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s process: Get: %v", name, err)
		}
		if _, err := d.List(ctx, "b"); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s process: List: %v", name, err)
		}
		if _, err := d.Create(ctx, "b", "k", nil); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s process: Create: %v", name, err)
		}
		if _, err := d.Get(ctx, "other", "k"); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s process: Get of a bucket that never was: %v", name, err)
		}
	}
}

func TestLeftoversOfDeadWritersAreNoEntriesAndAreRemoved(t *testing.T) {
	d, ctx := newDir(t), t.Context()
	must(t)(d.Put(ctx, "b", "k", nil))
	left := filepath.Join(d.Path(), "b", tempPrefix+"123")
	if err := os.WriteFile(left, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	next := openDir(t, d.Path())
	if list, err := next.List(ctx, "b"); err != nil || len(list) != 1 {
		t.Fatalf("List = %v, %v", list, err)
	}
	must(t)(next.Put(ctx, "b", "k", nil))
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the leftover is still there: %v", err)
	}
}

// withFileLimit runs f while no file of this process can grow past n bytes: like a
// full disk, at a byte of our choice.
func withFileLimit(t *testing.T, n uint64, f func()) {
	t.Helper()
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: n, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
			t.Error(err)
		}
	}()
	f()
}

// Fault B13: a disk that takes no more refuses writes clearly, harms nothing that
// is there, and leaves no half-written files behind.
func TestAFullDiskRefusesWritesAndKeepsReading(t *testing.T) {
	d, ctx := newDir(t), t.Context()
	revision := must(t)(d.Put(ctx, "b", "k", []byte("kept")))
	withFileLimit(t, 4096, func() {
		_, err := d.Put(ctx, "b", "k", make([]byte, 100_000))
		if !errors.Is(err, syscall.EFBIG) || !strings.Contains(err.Error(), "write b/k") {
			t.Errorf("got %v, want the system's error and what was written", err)
		}
		e, err := d.Get(ctx, "b", "k")
		if err != nil || string(e.Value) != "kept" || e.Revision != revision {
			t.Errorf("Get = %+v, %v", e, err)
		}
	})
	left, err := filepath.Glob(filepath.Join(d.Path(), "b", tempPattern))
	if err != nil || len(left) != 0 {
		t.Fatalf("left behind: %v, %v", left, err)
	}
	must(t)(d.Update(ctx, "b", "k", []byte("again"), revision))
}

func TestWritesFailClearlyWhereNothingMayBeWritten(t *testing.T) {
	d, ctx := newDir(t), t.Context()
	must(t)(d.Put(ctx, "b", "k", []byte("kept")))
	// A lock file that is a directory cannot be opened for writing, by root neither;
	// a read-only file system fails at the same place.
	lock := filepath.Join(d.Path(), "b", lockFile)
	if err := errors.Join(os.Remove(lock), os.Mkdir(lock, 0o700)); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Put(ctx, "b", "k", nil); !errors.Is(err, syscall.EISDIR) {
		t.Errorf("Put: %v", err)
	}
	if err := d.Delete(ctx, "b", "k"); !errors.Is(err, syscall.EISDIR) {
		t.Errorf("Delete: %v", err)
	}
	if e, err := d.Get(ctx, "b", "k"); err != nil || string(e.Value) != "kept" {
		t.Fatalf("Get = %q, %v", e.Value, err)
	}
	if _, err := openDir(t, d.Path()).List(ctx, "b"); err != nil {
		t.Fatal(err)
	}
}

func FuzzDecodeEntry(f *testing.F) {
	f.Add(encodeEntry(Entry{Key: "k", Value: []byte("v"), Revision: 7}))
	f.Add([]byte(entryMagic + " 1 1 1 x\nk\nv"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := decodeEntry(b)
		if err == nil && !bytes.Equal(encodeEntry(e), b) {
			t.Fatalf("%q is read as %+v, which is written otherwise", b, e)
		}
	})
}

func TestCancelledContextDoesNothing(t *testing.T) {
	d := newDir(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := d.Put(ctx, "b", "k", nil)
	wantErr(t, err, context.Canceled)
	_, err = d.Get(t.Context(), "b", "k")
	wantErr(t, err, ErrNotFound)
}

// A write that began before the store was taken away, by an unmount or a rename, must
// not leave an empty store in its place.
func TestAStoreThatWasTakenAwayIsNotMadeAnew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store")
	d, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	b, err := d.begin(t.Context(), "bucket", "key")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	if unlock, err := b.lock(t.Context()); err == nil {
		unlock()
		t.Error("the bucket of a store that is gone can be written to")
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the store was made anew")
	}
}
