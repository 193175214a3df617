package memory

import (
	"context"
	"math"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

const (
	// minRoom is how much may be allocated between two visits of the collector at
	// least, in bytes, however little there is to scan.
	minRoom = 16 << 20
	// minPercent is the least growth of the heap between two visits.
	minPercent = 10
)

// pace has the collector come when the heap has grown by what it has to look through,
// and not by as much as it holds. Most of a large heap here is buffers, which cost the
// collector nothing: with 250 MiB of them, 250 MiB of small dead objects would gather
// before its next visit, and the runtime's records of them are never given back. It
// never comes more seldom than GOGC says, or after room bytes if that is more; see Run.
// pace looks after each visit, until ctx ends or done is called, which restores what
// was set before.
func pace(ctx context.Context, room uint64) (done func()) {
	set := [...]metrics.Sample{{Name: "/gc/gogc:percent"}}
	metrics.Read(set[:])
	usual := set[0].Value.Uint64()
	if usual < minPercent || usual > math.MaxInt32 { // wanted so, or off
		return func() {}
	}
	if usual < 100 { // somebody wants a small heap
		room = 0
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	visits := make(chan struct{}, 1)
	go func() {
		defer close(ended)
		defer debug.SetGCPercent(int(usual))
		for now := int(usual); ; {
			select {
			case <-ctx.Done():
				return
			case <-visits:
			}
			samples := [...]metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/total:bytes"}}
			metrics.Read(samples[:])
			if next := percent(int(usual), room, samples[0].Value.Uint64(), samples[1].Value.Uint64()); next != now {
				debug.SetGCPercent(next)
				now = next
			}
		}
	}()
	onVisit(ctx, visits)
	return func() {
		cancel()
		<-ended
	}
}

// onVisit sends after each visit of the collector, until ctx ends. A visit that comes
// before the last was noticed is not told of.
func onVisit(ctx context.Context, visits chan<- struct{}) {
	// The collector finds this object dead each time.
	runtime.AddCleanup(&struct{ ctx context.Context }{ctx}, func(ctx context.Context) {
		if ctx.Err() != nil {
			return
		}
		select {
		case visits <- struct{}{}:
		default:
		}
		onVisit(ctx, visits)
	}, ctx)
}

// percent is by how much the heap may grow until the next visit, of which live bytes
// are in use and scanned were looked through. It is a multiple of five, so that it
// seldom changes.
func percent(usual int, room, live, scanned uint64) int {
	if live == 0 {
		return usual
	}
	part := func(n uint64) float64 { return math.Ceil(float64(n)/float64(live)*20) * 5 }
	return int(min(max(part(max(scanned, minRoom, room)), minPercent), max(float64(usual), part(room))))
}
