// Package cores has a process that has little to do use one processor for it.
//
// Whenever a goroutine becomes ready while a processor of Go's scheduler has nothing
// to run, a thread is woken to look for work there. With a request now and then the
// goroutine has been run by the thread that made it ready before the other is awake:
// that one searches, finds nothing and sleeps again, several times for each request,
// which costs more than the request.
package cores

import (
	"context"
	"os"
	"runtime"
	"runtime/metrics"
	"time"
)

const (
	// often is how often the use is looked at, and seldom while there is next to none:
	// then the first moments of a burst are served by one processor.
	often  = 100 * time.Millisecond
	seldom = 500 * time.Millisecond
	// All processors are used again when one was busy for more than much of the time
	// since the last look, or when goroutines waited for it at as many looks on end as
	// crowd: then other processes may leave it little. One is left when little was used
	// at every look for calm.
	much   = 0.4
	little = 0.25
	none   = 0.01
	calm   = 2 * time.Second
	crowd  = 10
)

// Run adapts how many processors this process uses, up to as many as it may when Run
// is called. It returns when ctx ends, with all of them in use; one call for each
// process is enough.
func Run(ctx context.Context) {
	before, known := used()
	if !known || runtime.GOMAXPROCS(0) == 1 {
		return
	}
	widen := runtime.SetDefaultGOMAXPROCS
	if os.Getenv("GOMAXPROCS") != "" {
		all := runtime.GOMAXPROCS(0)
		widen = func() { runtime.GOMAXPROCS(all) }
	}
	defer widen()
	s := state{narrow: true}
	runtime.GOMAXPROCS(1)
	wake := time.NewTimer(often)
	defer wake.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-wake.C:
		}
		now := time.Now()
		after, _ := used()
		changed, next := s.look(after-before, now.Sub(last), waiting())
		switch {
		case changed && s.narrow:
			runtime.GOMAXPROCS(1)
		case changed:
			widen()
		}
		before, last = after, now
		wake.Reset(next)
	}
}

// state is whether one processor is used, and why.
type state struct {
	narrow  bool
	quiet   time.Duration // for how long little was used
	crowded int           // looks on end at which something waited
}

// look judges by the processor time that was used in the time that passed, and by
// whether something waits for a processor now. It returns whether narrow has changed,
// and when to look again.
func (s *state) look(used, passed time.Duration, waits bool) (changed bool, next time.Duration) {
	share := float64(used) / float64(max(passed, 1))
	if s.crowded++; !waits {
		s.crowded = 0
	}
	if s.quiet += passed; share > little || s.crowded >= crowd {
		s.quiet = 0
	}
	was := s.narrow
	switch {
	case s.narrow && (share > much || s.crowded >= crowd):
		s.narrow = false
	case !s.narrow && s.quiet >= calm:
		s.narrow = true
	}
	next = often
	if s.narrow && share < none && !waits {
		next = seldom
	}
	return s.narrow != was, next
}

// waiting reports whether goroutines wait for a processor.
func waiting() bool {
	sample := [...]metrics.Sample{{Name: "/sched/goroutines/runnable:goroutines"}}
	metrics.Read(sample[:])
	return sample[0].Value.Kind() == metrics.KindUint64 && sample[0].Value.Uint64() > 0
}
