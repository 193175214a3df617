package kv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"wormhole/edge/cluster/store"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// Of the embedded server: one for the life of the process.
		goleak.IgnoreTopFunction("github.com/nats-io/nats-server/v2/server.(*Server).startGWReplyMapExpiration.func1"),
		goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server/ats.Register.func1"),
		goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server/ats.init.0.func1"))
}

var quiet = slog.New(slog.DiscardHandler)

func startServer(t testing.TB, dir string) *Server {
	t.Helper()
	s, err := StartServer(dir, 0, quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// host is where stores dial; it may change and be nobody.
type host struct {
	mu sync.Mutex
	s  *Server
}

func (h *host) set(s *Server) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.s = s
}

func (h *host) dial() (net.Conn, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.s == nil {
		return nil, errors.New("nobody there")
	}
	here, there := net.Pipe()
	go h.s.Serve(context.Background(), there)
	return here, nil
}

func openStore(t testing.TB, h *host, mirror string) *Store {
	t.Helper()
	return openWith(t, Config{Dial: h.dial, Mirror: mirror, Timeout: 2 * time.Second})
}

func openWith(t testing.TB, cfg Config) *Store {
	t.Helper()
	s, err := Open(cfg, quiet)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Run(ctx) })
	var once sync.Once
	stop := func() { once.Do(func() { cancel(); wg.Wait(); _ = s.Close() }) }
	t.Cleanup(stop)
	return s
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func awaitFresh(t testing.TB, s *Store) {
	t.Helper()
	eventually(t, "store in step", func() bool { _, fault := s.Health(); return fault == nil })
}

func TestCompareAndSet(t *testing.T) {
	h := &host{s: startServer(t, t.TempDir())}
	s, ctx := openStore(t, h, filepath.Join(t.TempDir(), "m")), t.Context()
	awaitFresh(t, s)
	if _, err := s.Get(ctx, "b", "k"); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("Get of nothing: %v", err)
	}
	first, err := s.Create(ctx, "b", "k", []byte("1"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(ctx, "b", "k", nil); !errors.Is(err, store.ErrExists) {
		t.Fatalf("Create of what exists: %v", err)
	}
	second, err := s.Update(ctx, "b", "k", []byte("2"), first)
	if err != nil || second <= first {
		t.Fatalf("Update = %d after %d, %v", second, first, err)
	}
	if _, err := s.Update(ctx, "b", "k", nil, first); !errors.Is(err, store.ErrConflict) {
		t.Fatalf("Update of the past: %v", err)
	}
	if err := s.Delete(ctx, "b", "k"); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(ctx, "b", "never.there"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Update(ctx, "b", "k", nil, second); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("Update of what is gone: %v", err)
	}
	again, err := s.Create(ctx, "b", "k", bytes.Repeat([]byte{0xff}, store.MaxValue))
	if err != nil || again <= second {
		t.Fatalf("Create = %d after %d, %v", again, second, err)
	}
	if _, err := s.Put(ctx, "b", "../x", nil); !errors.Is(err, store.ErrInvalid) {
		t.Fatalf("a bad key: %v", err)
	}
}

func TestWritesOfOneReachAllOthersAndTheirDisks(t *testing.T) {
	h := &host{s: startServer(t, t.TempDir())}
	mirror := filepath.Join(t.TempDir(), "m")
	a, b := openStore(t, h, filepath.Join(t.TempDir(), "m")), openStore(t, h, mirror)
	awaitFresh(t, a)
	awaitFresh(t, b)
	events, err := b.Watch(t.Context(), "sites")
	if err != nil {
		t.Fatal(err)
	}
	if e := <-events; e.Kind != store.EventReady {
		t.Fatalf("first event %+v", e)
	}
	began := time.Now()
	revision, err := a.Put(t.Context(), "sites", "app.example.com", []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	if e := <-events; e.Kind != store.EventPut || string(e.Entry.Value) != "x" || e.Entry.Revision != revision {
		t.Fatalf("event %+v, want the value at %d", e, revision)
	}
	t.Logf("write to event at another: %s", time.Since(began))
	eventually(t, "the mirror has it", func() bool {
		m, err := openMirror(mirror, quiet)
		if err != nil {
			t.Fatal(err)
		}
		defer m.close() // read only
		found := false
		_ = m.load(func(name string, e store.Entry) { found = found || name == "sites" && string(e.Value) == "x" })
		return found
	})
}

// Faults B5 and B13: with the store gone, what is known is served, also after a
// restart, and writes are refused; when it is back, all is well again.
func TestB5AStoreThatIsGoneIsServedFromTheMirror(t *testing.T) {
	dir := t.TempDir()
	server := startServer(t, dir)
	h := &host{s: server}
	mirror := filepath.Join(t.TempDir(), "m")
	s, err := Open(Config{Dial: h.dial, Mirror: mirror, Timeout: time.Second, Connecting: 50 * time.Millisecond}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	awaitFresh(t, s)
	for i := range 50 {
		if _, err := s.Put(ctx, "sites", fmt.Sprintf("s%d", i), []byte("v")); err != nil {
			t.Fatal(err)
		}
	}
	h.set(nil)
	_ = server.Close()
	eventually(t, "the loss is noticed", func() bool { _, fault := s.Health(); return fault != nil })
	if _, err := s.Get(ctx, "sites", "s7"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(ctx, "sites", "unknown"); !errors.Is(err, store.ErrUnavailable) {
		t.Fatalf("what is not known is not absent: %v", err)
	}
	began := time.Now()
	if _, err := s.Put(ctx, "sites", "new", nil); !errors.Is(err, store.ErrUnavailable) {
		t.Fatalf("a write: %v", err)
	}
	if took := time.Since(began); took < 50*time.Millisecond || took > 500*time.Millisecond {
		t.Errorf("the write was refused after %s", took)
	}
	cancel()
	<-ran
	_ = s.Close()

	again := openStore(t, h, mirror)
	list, err := again.List(t.Context(), "sites")
	if err != nil || len(list) != 50 {
		t.Fatalf("after a restart %d entries, %v", len(list), err)
	}
	h.set(startServer(t, dir))
	awaitFresh(t, again)
	if _, err := again.Put(t.Context(), "sites", "new", nil); err != nil {
		t.Fatal(err)
	}
	if e, err := again.Get(t.Context(), "sites", "s7"); err != nil || string(e.Value) != "v" {
		t.Fatalf("after the store's restart %v, %v", e, err)
	}
}

// Fault B13: a store that lost its data is not an empty store.
func TestB13AnEmptiedStoreIsNotBelieved(t *testing.T) {
	dir := t.TempDir()
	server := startServer(t, dir)
	h := &host{s: server}
	s := openStore(t, h, filepath.Join(t.TempDir(), "m"))
	awaitFresh(t, s)
	for i := range 20 {
		if _, err := s.Put(t.Context(), "sites", fmt.Sprintf("s%d", i), nil); err != nil {
			t.Fatal(err)
		}
	}
	h.set(nil)
	_ = server.Close()
	if err := os.RemoveAll(filepath.Join(dir, "jetstream")); err != nil {
		t.Fatal(err)
	}
	if again, err := StartServer(dir, 0, quiet); err == nil {
		_ = again.Close()
		t.Fatal("the server made a new store where one was lost")
	}
	h.set(startServer(t, t.TempDir())) // somebody replaces it by an empty one
	eventually(t, "the damage is noticed", func() bool { _, fault := s.Health(); return errors.Is(fault, store.ErrCorrupt) })
	if list, err := s.List(t.Context(), "sites"); err != nil || len(list) != 20 {
		t.Fatalf("%d entries are left, %v", len(list), err)
	}
}

func BenchmarkWrite(b *testing.B) {
	h := &host{s: startServer(b, b.TempDir())}
	s := openStore(b, h, filepath.Join(b.TempDir(), "m"))
	awaitFresh(b, s)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, err := s.Put(b.Context(), "b", "k", []byte("value")); err != nil {
			b.Fatal(err)
		}
	}
}
