package store

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func openDir(t testing.TB, path string) *Dir {
	t.Helper()
	d, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func newDir(t testing.TB) *Dir { return openDir(t, filepath.Join(t.TempDir(), "store")) }

// must returns the revision of a write that has to succeed.
func must(t testing.TB) func(uint64, error) uint64 {
	return func(revision uint64, err error) uint64 {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return revision
	}
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error is %v, want %v", err, want)
	}
}

func TestValuesComeBackAsWritten(t *testing.T) {
	d, ctx := newDir(t), t.Context()
	values := map[string][]byte{
		"a":                                []byte("plain"),
		"A":                                []byte("not the same as a"),
		"empty":                            {},
		"acme/Account.KEY=1":               []byte("a\nb\x00c"),
		strings.Repeat("Long/", 100) + "x": bytes.Repeat([]byte{0xff}, MaxValue),
	}
	for k, v := range values {
		must(t)(d.Put(ctx, "b", k, v))
	}
	again := openDir(t, d.Path())
	for k, v := range values {
		e, err := again.Get(ctx, "b", k)
		if err != nil || e.Key != k || !bytes.Equal(e.Value, v) {
			t.Errorf("Get(%.20q) = %.20q, %d bytes, %v; want %d bytes", k, e.Key, len(e.Value), err, len(v))
		}
	}
	list, err := again.List(ctx, "b")
	if err != nil || len(list) != len(values) {
		t.Fatalf("List gives %d entries, %v; want %d", len(list), err, len(values))
	}
	for i := 1; i < len(list); i++ {
		if list[i-1].Key >= list[i].Key {
			t.Fatalf("%q is listed before %q", list[i-1].Key, list[i].Key)
		}
	}
}

func TestAbsentIsNotFound(t *testing.T) {
	d, ctx := newDir(t), t.Context()
	_, err := d.Get(ctx, "b", "k")
	wantErr(t, err, ErrNotFound)
	_, err = d.Update(ctx, "b", "k", nil, 1)
	wantErr(t, err, ErrNotFound)
	if err := d.Delete(ctx, "b", "k"); err != nil {
		t.Fatal(err)
	}
	if list, err := d.List(ctx, "b"); err != nil || len(list) != 0 {
		t.Fatalf("List = %v, %v", list, err)
	}
}

func TestCompareAndSet(t *testing.T) {
	d, ctx := newDir(t), t.Context()
	first := must(t)(d.Create(ctx, "b", "k", []byte("1")))
	_, err := d.Create(ctx, "b", "k", []byte("x"))
	wantErr(t, err, ErrExists)
	second := must(t)(d.Update(ctx, "b", "k", []byte("2"), first))
	_, err = d.Update(ctx, "b", "k", []byte("x"), first)
	wantErr(t, err, ErrConflict)
	if e, err := d.Get(ctx, "b", "k"); err != nil || string(e.Value) != "2" || e.Revision != second {
		t.Fatalf("Get = %+v, %v; want value 2 at revision %d", e, err, second)
	}
}

func TestRevisionsGrowOverDeletion(t *testing.T) {
	d, ctx := newDir(t), t.Context()
	last := must(t)(d.Create(ctx, "b", "k", nil))
	for range 3 {
		last = must(t)(d.Put(ctx, "b", "k", nil))
	}
	for range 3 {
		if err := d.Delete(ctx, "b", "k"); err != nil {
			t.Fatal(err)
		}
		again := must(t)(d.Create(ctx, "b", "k", nil))
		if again <= last {
			t.Fatalf("revision %d follows %d", again, last)
		}
		_, err := d.Update(ctx, "b", "k", nil, last)
		wantErr(t, err, ErrConflict)
		last = again
	}
}

func TestNamesThatAreNoKeysAreRefused(t *testing.T) {
	d, ctx := newDir(t), t.Context()
	for _, bucket := range []string{"", ".", "..", "../x", "a/b", "A", ".b", "-a", strings.Repeat("a", 64), "a\x00"} {
		if _, err := d.Put(ctx, bucket, "k", nil); !errors.Is(err, ErrInvalid) {
			t.Errorf("bucket %q: %v", bucket, err)
		}
		if _, err := d.Watch(ctx, bucket); !errors.Is(err, ErrInvalid) {
			t.Errorf("watch of bucket %q: %v", bucket, err)
		}
	}
	for _, key := range []string{"", ".", "..", ".floor", ".lock", "../../etc/passwd", "a..b", "a.", "a b", "a\x00", "a\n", "ä", "a*", strings.Repeat("a", MaxKey+1)} {
		if _, err := d.Put(ctx, "b", key, nil); !errors.Is(err, ErrInvalid) {
			t.Errorf("key %.20q: %v", key, err)
		}
		if _, err := d.Get(ctx, "b", key); !errors.Is(err, ErrInvalid) {
			t.Errorf("get of key %.20q: %v", key, err)
		}
	}
	_, err := d.Put(ctx, "b", "k", make([]byte, MaxValue+1))
	wantErr(t, err, ErrInvalid)
}

func TestOnlyTheOwnerCanReadTheFiles(t *testing.T) {
	d, ctx := newDir(t), t.Context()
	must(t)(d.Put(ctx, "keys", "k", []byte("secret")))
	if err := d.Delete(ctx, "keys", "nothing"); err != nil {
		t.Fatal(err)
	}
	err := filepath.Walk(d.Path(), func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		want := os.FileMode(0o600)
		if info.IsDir() {
			want = 0o700
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o, want %o", path, got, want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestOpenRefusesWhatIsNoStore(t *testing.T) {
	other := t.TempDir()
	if err := os.Chmod(other, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(other, "letter.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := OpenDir(other)
	wantErr(t, err, ErrCorrupt)

	open := filepath.Join(t.TempDir(), "open")
	if err := errors.Join(os.Mkdir(open, 0o755), os.Chmod(open, 0o755)); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDir(open); err == nil || !strings.Contains(err.Error(), "0755") {
		t.Fatalf("a store that everybody may read was opened: %v", err)
	}

	future := newDir(t)
	if err := os.WriteFile(filepath.Join(future.Path(), markerFile), []byte("wormhole-store/2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = OpenDir(future.Path())
	wantErr(t, err, ErrCorrupt)
}

func TestGoroutinesDoNotLoseUpdates(t *testing.T) {
	d, ctx := newDir(t), t.Context()
	const workers, each = 4, 10
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			if err := increment(ctx, d, each); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := counter(t, d); got != workers*each {
		t.Fatalf("counted %d, want %d", got, workers*each)
	}
}

func TestWaitingForTheLockEndsWithTheContext(t *testing.T) {
	d := newDir(t)
	must(t)(d.Put(t.Context(), "b", "k", nil))
	holder := openDir(t, d.Path())
	b, err := holder.begin(t.Context(), "b", "k")
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := b.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() {
		_, err := d.Put(ctx, "b", "k", nil)
		result <- err
	}()
	if _, err := d.Get(t.Context(), "b", "k"); err != nil {
		t.Errorf("reading waits for writers: %v", err)
	}
	cancel()
	wantErr(t, <-result, context.Canceled)
	unlock()
	must(t)(d.Put(t.Context(), "b", "k", nil))
}

func TestClosedStoreRefuses(t *testing.T) {
	d := newDir(t)
	for range 2 {
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	_, err := d.Put(t.Context(), "b", "k", nil)
	wantErr(t, err, ErrClosed)
	_, err = d.Watch(t.Context(), "b")
	wantErr(t, err, ErrClosed)
}
