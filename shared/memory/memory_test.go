package memory

import (
	"context"
	"runtime"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestWhatABurstLeftBehindIsReturned(t *testing.T) {
	const burst = 64 << 20
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { Run(ctx, 0) })
	defer running.Wait()
	defer stop()

	junk := make([][]byte, burst>>20)
	for i := range junk {
		junk[i] = make([]byte, 1<<20)
	}
	// The collector came by itself and found all of it in use.
	runtime.KeepAlive(junk)
	junk = nil
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	held := stats.HeapSys - stats.HeapReleased
	for deadline := time.Now().Add(20 * time.Second); ; runtime.Gosched() {
		runtime.ReadMemStats(&stats)
		if now := stats.HeapSys - stats.HeapReleased; now+burst/2 < held {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the heap still holds %d of %d bytes", stats.HeapSys-stats.HeapReleased, held)
		}
	}
}

func TestAHeapThatGrowsIsLeftToTheCollector(t *testing.T) {
	for _, test := range []struct {
		name          string
		before, after heap
		idle          bool
	}{
		{"nothing allocated", heap{allocated: 100 << 20}, heap{objects: 30 << 20, goal: 40 << 20, allocated: 100 << 20}, true},
		{"a little", heap{allocated: 100 << 20}, heap{objects: 30 << 20, goal: 40 << 20, allocated: 100<<20 + 64<<10}, true},
		{"the goal is near", heap{allocated: 100 << 20}, heap{objects: 30 << 20, goal: 40 << 20, allocated: 102 << 20}, false},
		{"the goal is passed", heap{allocated: 100 << 20}, heap{objects: 41 << 20, goal: 40 << 20, allocated: 100 << 20}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := test.after.idle(&test.before, time.Second); got != test.idle {
				t.Errorf("idle = %v, want %v", got, test.idle)
			}
		})
	}
}

// Many who wait hold memory that the collector finds in use. When they go away later,
// nothing is allocated and nothing is known to be free.
func TestTheEndOfManyGoroutinesIsWorthTheVisit(t *testing.T) {
	full := heap{objects: 100 << 20, live: 100 << 20, visits: 7}
	for _, test := range []struct {
		before, now uint64
		want        bool
	}{
		{3000, 3000, false},
		{3000, 2300, false},
		{3000, 2200, true},
		{130, 40, false},
		{130, 30, true},
		{0, 3000, false},
		{40, 3000, false},
	} {
		after, h := full, full
		after.goroutines, h.goroutines = test.before, test.now
		if got := h.wasteful(&after); got != test.want {
			t.Errorf("from %d goroutines to %d: wasteful = %v, want %v", test.before, test.now, got, test.want)
		}
	}
}

func TestASmallHeapIsNotWorthTheVisit(t *testing.T) {
	for _, test := range []struct {
		name string
		h    heap
		want bool
	}{
		{"nothing to gain", heap{objects: 10 << 20, live: 10 << 20}, false},
		{"little to gain", heap{objects: 5 << 20, live: 4 << 20}, false},
		{"little of much", heap{objects: 105 << 20, live: 100 << 20}, false},
		{"dead objects", heap{objects: 20 << 20, live: 4 << 20}, true},
		{"free memory", heap{objects: 4 << 20, live: 4 << 20, free: 8 << 20}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := test.h.wasteful(&heap{objects: test.h.objects, visits: test.h.visits}); got != test.want {
				t.Errorf("wasteful = %v, want %v", got, test.want)
			}
		})
	}
}
