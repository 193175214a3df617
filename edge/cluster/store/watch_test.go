package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// next returns the next event, which has to come within the promised second.
func next(t *testing.T, events <-chan Event) Event {
	t.Helper()
	select {
	case e, ok := <-events:
		if !ok {
			t.Fatal("the watch ended")
		}
		return e
	case <-time.After(time.Second):
		t.Fatal("no event within a second")
	}
	panic("unreachable")
}

func wantEvent(t *testing.T, events <-chan Event, kind EventKind, key, value string) Event {
	t.Helper()
	e := next(t, events)
	if e.Kind != kind || e.Entry.Key != key || string(e.Entry.Value) != value {
		t.Fatalf("event is %d %q=%q (%v), want %d %q=%q", e.Kind, e.Entry.Key, e.Entry.Value, e.Err, kind, key, value)
	}
	return e
}

func watch(t *testing.T, d *Dir) <-chan Event {
	t.Helper()
	events, err := d.Watch(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	return events
}

func TestWatchGivesThePresentThenChanges(t *testing.T) {
	d, ctx := newDir(t), t.Context()
	must(t)(d.Put(ctx, "b", "one", []byte("1")))
	must(t)(d.Put(ctx, "b", "two", []byte("2")))
	for name, writer := range map[string]*Dir{"this process": d, "another process": openDir(t, d.Path())} {
		t.Run(name, func(t *testing.T) {
			events := watch(t, d)
			wantEvent(t, events, EventPut, "one", "1")
			wantEvent(t, events, EventPut, "two", "2")
			wantEvent(t, events, EventReady, "", "")

			must(t)(writer.Put(ctx, "b", "three", []byte("3")))
			wantEvent(t, events, EventPut, "three", "3")
			revision := must(t)(writer.Put(ctx, "b", "three", []byte("4")))
			if e := wantEvent(t, events, EventPut, "three", "4"); e.Entry.Revision != revision {
				t.Fatalf("revision %d, want %d", e.Entry.Revision, revision)
			}
			if err := writer.Delete(ctx, "b", "three"); err != nil {
				t.Fatal(err)
			}
			wantEvent(t, events, EventDelete, "three", "")
		})
	}
}

func TestWatchOfABucketThatIsNotThereYet(t *testing.T) {
	d := newDir(t)
	events := watch(t, d)
	wantEvent(t, events, EventReady, "", "")
	must(t)(openDir(t, d.Path()).Put(t.Context(), "b", "k", []byte("v")))
	wantEvent(t, events, EventPut, "k", "v")
}

func TestASlowReceiverMissesNoLatestValue(t *testing.T) {
	d, ctx := newDir(t), t.Context()
	events := watch(t, d)
	wantEvent(t, events, EventReady, "", "")
	var last uint64
	for range 20 { // quickly, so that files change within one tick of the file system's clock
		last = must(t)(d.Put(ctx, "b", "k", []byte("v")))
	}
	for {
		if e := next(t, events); e.Entry.Revision == last {
			return
		}
	}
}

func TestWatchTellsDamageAndRepair(t *testing.T) {
	d, ctx := newDir(t), t.Context()
	must(t)(d.Put(ctx, "b", "k", []byte("v")))
	events := watch(t, d)
	wantEvent(t, events, EventPut, "k", "v")
	wantEvent(t, events, EventReady, "", "")

	path := filepath.Join(d.Path(), "b", "k")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, whole[:len(whole)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if e := wantEvent(t, events, EventFault, "k", ""); !errors.Is(e.Err, ErrCorrupt) {
		t.Fatalf("fault is %v", e.Err)
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	wantEvent(t, events, EventPut, "k", "v")
}

func TestALostBucketIsAFaultAndNotDeletions(t *testing.T) {
	d, ctx := newDir(t), t.Context()
	must(t)(d.Put(ctx, "b", "k", []byte("v")))
	events := watch(t, d)
	wantEvent(t, events, EventPut, "k", "v")
	wantEvent(t, events, EventReady, "", "")
	away := filepath.Join(t.TempDir(), "away")
	if err := os.Rename(filepath.Join(d.Path(), "b"), away); err != nil {
		t.Fatal(err)
	}
	if e := wantEvent(t, events, EventFault, "", ""); e.Err == nil {
		t.Fatal("a fault without a reason")
	}
	if err := os.Rename(away, filepath.Join(d.Path(), "b")); err != nil {
		t.Fatal(err)
	}
	wantEvent(t, events, EventReady, "", "")
}

func TestWatchEndsWithItsContextAndWithTheStore(t *testing.T) {
	d := newDir(t)
	ended := func(events <-chan Event) {
		t.Helper()
		for {
			select {
			case _, ok := <-events:
				if !ok {
					return
				}
			case <-time.After(time.Second):
				t.Fatal("the watch goes on")
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	events, err := d.Watch(ctx, "b")
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	ended(events)

	events = watch(t, d) // nobody receives: Close must not wait for that
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	ended(events)
}

func BenchmarkPut(b *testing.B) {
	d := newDir(b)
	b.ReportAllocs()
	for b.Loop() {
		must(b)(d.Put(b.Context(), "b", "k", []byte("v")))
	}
}

func BenchmarkGet(b *testing.B) {
	d := newDir(b)
	must(b)(d.Put(b.Context(), "b", "k", []byte("v")))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.Get(b.Context(), "b", "k"); err != nil {
			b.Fatal(err)
		}
	}
}
