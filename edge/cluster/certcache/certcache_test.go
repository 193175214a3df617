package certcache

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"wormhole/certs"
	"wormhole/edge/cluster/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const directory = "https://ca.example.com/dir"

func openDir(t *testing.T) *store.Dir {
	t.Helper()
	d, err := store.OpenDir(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// downStore fails when told to.
type downStore struct {
	store.Store
	down atomic.Bool
}

func (s *downStore) Get(ctx context.Context, bucket, key string) (store.Entry, error) {
	if s.down.Load() {
		return store.Entry{}, errors.New("down")
	}
	return s.Store.Get(ctx, bucket, key)
}

func (s *downStore) Watch(ctx context.Context, bucket string) (<-chan store.Event, error) {
	if s.down.Load() {
		return nil, errors.New("down")
	}
	return s.Store.Watch(ctx, bucket)
}

func TestEveryNameIsAKeyOfTheStore(t *testing.T) {
	c := New(openDir(t), nil, directory, slog.New(slog.DiscardHandler))
	seen := map[string]string{}
	for _, name := range []string{
		"a.example.com", "*.example.com", "host+token", "tok-_E/N", "a..b", ".a", "a.", ".", "=2a", "straße", "a b", "%00\x00", "A.example.com",
	} {
		if err := c.Put(t.Context(), "cert", name, []byte(name)); err != nil {
			t.Errorf("%q: %v", name, err)
			continue
		}
		key := encodeKey(name)
		if other, taken := seen[key]; taken {
			t.Errorf("%q and %q have one key", name, other)
		}
		seen[key] = name
		if got, err := c.Get(t.Context(), "cert", name); err != nil || string(got) != name {
			t.Errorf("%q: %q, %v", name, got, err)
		}
		if decodeKey(key) != name {
			t.Errorf("%q becomes %q", name, decodeKey(key))
		}
	}
}

func FuzzKeysRoundTrip(f *testing.F) {
	f.Add("*.example.com")
	f.Add("a..b=")
	f.Fuzz(func(t *testing.T, name string) {
		key := encodeKey(name)
		if decodeKey(key) != name {
			t.Errorf("%q became %q and then %q", name, key, decodeKey(key))
		}
		if strings.Contains(key, "..") || strings.HasPrefix(key, ".") || strings.HasSuffix(key, ".") {
			t.Errorf("%q is no key", key)
		}
	})
}

func TestCAsDoNotMix(t *testing.T) {
	d := openDir(t)
	discard := slog.New(slog.DiscardHandler)
	staging, real := New(d, nil, certs.LetsEncryptStaging, discard), New(d, nil, certs.LetsEncrypt, discard)
	if err := staging.Put(t.Context(), "cert", "a.example.com", []byte("staging")); err != nil {
		t.Fatal(err)
	}
	if _, err := real.Get(t.Context(), "cert", "a.example.com"); !errors.Is(err, certs.ErrCacheMiss) {
		t.Errorf("the staging CA's certificate is found among the trusted: %v", err)
	}
}

func TestUpdatesAreNeverLost(t *testing.T) {
	d := openDir(t)
	var wg sync.WaitGroup
	for range 4 {
		c := New(d, nil, directory, slog.New(slog.DiscardHandler)) // as of another edge
		wg.Go(func() {
			for range 25 {
				err := c.Update(t.Context(), "budget", "orders", func(old []byte) ([]byte, error) {
					n, _ := strconv.Atoi(string(old))
					return []byte(strconv.Itoa(n + 1)), nil
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	got, err := New(d, nil, directory, slog.New(slog.DiscardHandler)).Get(t.Context(), "budget", "orders")
	if err != nil || string(got) != "100" {
		t.Errorf("100 updates counted as %s, %v", got, err)
	}
}

func TestTheCopyServesWhileTheStoreIsGone(t *testing.T) {
	shared, mirror := &downStore{Store: openDir(t)}, openDir(t)
	c := New(shared, mirror, directory, slog.New(slog.DiscardHandler))
	if err := c.Put(t.Context(), "cert", "a.example.com", []byte("one")); err != nil {
		t.Fatal(err)
	}
	shared.down.Store(true)
	if got, err := c.Get(t.Context(), "cert", "a.example.com"); err != nil || string(got) != "one" {
		t.Errorf("from the copy: %q, %v", got, err)
	}
	if _, err := c.Get(t.Context(), "cert", "b.example.com"); err == nil || errors.Is(err, certs.ErrCacheMiss) {
		t.Errorf("what the copy does not have: %v, want an error that is no miss", err)
	}
	if _, err := c.Get(t.Context(), "host", "a.example.com"); err == nil || errors.Is(err, certs.ErrCacheMiss) {
		t.Errorf("a lease: %v, want an error that is no miss", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	changes, err := c.Watch(ctx, "cert")
	if err != nil {
		t.Fatal(err)
	}
	first := <-changes
	if first.Name != "a.example.com" || string(first.Value) != "one" {
		t.Errorf("the watch begins with %+v", first)
	}
	if _, open := <-changes; open {
		t.Error("the watch goes on without a store")
	}
}
