package kv

import (
	"errors"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"wormhole/edge/cluster/store"
)

// line is a connection that may fall silent: the other end hears, and its answers do
// not arrive.
type line struct {
	net.Conn
	mu     sync.Mutex
	silent bool
	gone   chan struct{}
	once   sync.Once
}

func (l *line) Read(p []byte) (int, error) {
	n, err := l.Conn.Read(p)
	l.mu.Lock()
	silent := l.silent
	l.mu.Unlock()
	if silent {
		<-l.gone
		return 0, net.ErrClosed
	}
	return n, err
}

func (l *line) Close() error {
	l.once.Do(func() { close(l.gone) })
	return l.Conn.Close()
}

// lines dials and keeps the latest.
type lines struct {
	*host
	mu   sync.Mutex
	last *line
}

func (d *lines) dial() (net.Conn, error) {
	conn, err := d.host.dial()
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.last = &line{Conn: conn, gone: make(chan struct{})}
	return d.last, nil
}

// hush has the present connection fall silent and returns what cuts it.
func (d *lines) hush() (cut func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.last
	l.mu.Lock()
	defer l.mu.Unlock()
	l.silent = true
	return func() { _ = l.Close() }
}

// openCut opens two stores on one server, the first through lines.
func openCut(t *testing.T) (s, other *Store, d *lines) {
	d = &lines{host: &host{s: startServer(t, t.TempDir())}}
	s = openWith(t, Config{Dial: d.dial, Mirror: filepath.Join(t.TempDir(), "m"), Timeout: 10 * time.Second, Connecting: 10 * time.Second})
	other = openStore(t, d.host, filepath.Join(t.TempDir(), "m"))
	awaitFresh(t, s)
	awaitFresh(t, other)
	return s, other, d
}

func has(t *testing.T, s *Store, key, value string) (e store.Entry) {
	t.Helper()
	eventually(t, key+" is "+value, func() (found bool) {
		var err error
		e, err = s.Get(t.Context(), "tokens", key)
		return err == nil && string(e.Value) == value
	})
	return e
}

// What was written although its answer was lost is written, once.
func TestAWriteWhoseAnswerIsLostIsKnown(t *testing.T) {
	s, other, d := openCut(t)
	cut := d.hush()
	type result struct {
		revision uint64
		err      error
	}
	got := make(chan result, 1)
	go func() { // ends with the write
		revision, err := s.Create(t.Context(), "tokens", "a", []byte("one"))
		got <- result{revision, err}
	}()
	e := has(t, other, "a", "one")
	cut()
	if r := <-got; r.err != nil || r.revision != e.Revision {
		t.Fatalf("created at %d, %v; it is there at %d", r.revision, r.err, e.Revision)
	}

	eventually(t, "the store is connected again", func() bool { _, fault := s.Health(); return fault == nil })
	cut = d.hush()
	go func() { // ends with the write
		revision, err := s.Update(t.Context(), "tokens", "a", []byte("two"), e.Revision)
		got <- result{revision, err}
	}()
	e = has(t, other, "a", "two")
	// Somebody else goes on from there: nothing says then that this write happened.
	if _, err := other.Update(t.Context(), "tokens", "a", []byte("three"), e.Revision); err != nil {
		t.Fatal(err)
	}
	cut()
	if r := <-got; !errors.Is(r.err, store.ErrUnavailable) || errors.Is(r.err, store.ErrConflict) {
		t.Fatalf("an update that happened and was changed: %v", r.err)
	}
	has(t, s, "a", "three")
}

// A write waits for a store whose edge starts again.
func TestAWriteWaitsForTheNextConnection(t *testing.T) {
	dir := t.TempDir()
	server := startServer(t, dir)
	h := &host{s: server}
	s := openWith(t, Config{Dial: h.dial, Mirror: filepath.Join(t.TempDir(), "m"), Timeout: 10 * time.Second, Connecting: 20 * time.Second})
	awaitFresh(t, s)
	h.set(nil)
	_ = server.Close()
	eventually(t, "the loss is noticed", func() bool { _, fault := s.Health(); return fault != nil })
	got := make(chan error, 1)
	go func() { // ends with the write
		_, err := s.Put(t.Context(), "tokens", "a", []byte("one"))
		got <- err
	}()
	select {
	case err := <-got:
		t.Fatalf("the write did not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	h.set(startServer(t, dir))
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	has(t, s, "a", "one")
}
