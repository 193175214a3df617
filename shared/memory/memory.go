// Package memory gives back to the system what a burst of work has left behind.
//
// The garbage collector comes when the heap has doubled since its last visit. After
// a burst nothing grows any more, so it comes minutes later, and what the burst
// used stays resident until then. A process that carries tunnels is idle most of
// its life and often shares a small machine with the app: it should not look as
// large as its busiest second.
package memory

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// period is how often the heap is looked at.
	period = time.Second
	// minWaste is how much has to be gained, in bytes; below it a visit of the
	// collector costs more than it brings.
	minWaste = 2 << 20
	// minGone is how many goroutines have to end before it is worth to look what they
	// held. Work that waits, for slow clients say, is in use when the collector comes
	// and allocates nothing when it ends, so that nothing else tells of its end.
	minGone = 100
	// patience is how soon the collector must not be expected by itself.
	patience = 10 * time.Second
)

// Run watches the heap of this process and has it collected and returned to the
// system when it holds much that is not in use and little is being allocated, at
// most every ten seconds. Under load it only paces the collector: that may come less
// often than GOGC says while the heap is so small that room bytes, if any, are more than
// GOGC allows to be allocated between two visits. It returns when ctx ends; one call for
// each process is enough.
func Run(ctx context.Context, room uint64) {
	tick := time.NewTicker(period)
	defer tick.Stop()
	defer pace(ctx, room)()
	var before, after heap // at the last look, and after the last collection
	before.read()
	var last time.Time
	again := false // the last collection brought much, so that what ended since may bring more
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			var h heap
			h.read()
			if now.Sub(last) >= patience && h.idle(&before, period) && (again || h.wasteful(&after)) {
				// Pools keep what they hold for one more collection, and stacks shrink by half
				// with each.
				runtime.GC()
				debug.FreeOSMemory()
				last = now
				held := h.objects + h.free
				h.read()
				after = h
				again = held > h.objects+h.free+minWaste
			}
			before = h
		}
	}
}

// heap is how the heap is used at one moment, in bytes.
type heap struct {
	objects   uint64 // in objects, dead ones that were not swept among them
	live      uint64 // found in use by the collector's last visit
	goal      uint64 // of objects, for its next visit
	free      uint64 // in no object, but held
	visits    uint64 // of the collector, by itself, since the start of the process
	allocated uint64 // since the start of the process

	goroutines uint64
}

func (h *heap) read() {
	samples := [...]metrics.Sample{
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/gc/heap/live:bytes"},
		{Name: "/gc/heap/goal:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
		{Name: "/gc/heap/allocs:bytes"},
		{Name: "/gc/cycles/automatic:gc-cycles"},
		{Name: "/sched/goroutines:goroutines"},
	}
	metrics.Read(samples[:])
	for i, into := range []*uint64{&h.objects, &h.live, &h.goal, &h.free, &h.allocated, &h.visits, &h.goroutines} {
		*into = samples[i].Value.Uint64()
	}
}

// wasteful reports whether much could be given back. after is how the heap was after
// the last time that it was.
func (h *heap) wasteful(after *heap) bool {
	if h.visits != after.visits && h.objects > after.objects+minWaste {
		return true // what the collector found in use may have been let go since
	}
	if h.goroutines+max(minGone, after.goroutines/4) <= after.goroutines {
		return true // and so may what these had in use
	}
	waste := h.free
	if h.objects > h.live {
		waste += h.objects - h.live
	}
	return waste >= max(minWaste, h.live/4)
}

// idle reports whether so little was allocated since before that the collector will
// not come by itself for a while.
func (h *heap) idle(before *heap, elapsed time.Duration) bool {
	if h.objects >= h.goal {
		return false
	}
	soon := (h.allocated - before.allocated) * uint64(patience/elapsed)
	return h.goal-h.objects > soon
}
