package balance

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// seeded is a source of randomness that repeats.
func seeded(seed uint64) func() uint64 {
	var mu sync.Mutex
	r := rand.New(rand.NewPCG(seed, seed))
	return func() uint64 {
		mu.Lock()
		defer mu.Unlock()
		return r.Uint64()
	}
}

func newPool(n int) (*Pool, []*Backend) {
	p := NewPool(seeded(1))
	var list []*Backend
	for i := range n {
		b := NewBackend(Info{ID: fmt.Sprint(i)}, nil)
		p.Add(b)
		list = append(list, b)
	}
	return p, list
}

// shares picks n times, releasing at once, and counts.
func shares(p *Pool, n int, tried ...*Backend) map[*Backend]int {
	got := map[*Backend]int{}
	for range n {
		b := p.Pick(tried...)
		got[b]++
		if b != nil {
			b.Release()
		}
	}
	return got
}

func TestEqualBackendsShareEqually(t *testing.T) {
	for _, n := range []int{2, 3, 10} {
		p, list := newPool(n)
		got := shares(p, 10_000)
		for _, b := range list {
			if want := 10_000 / n; got[b] < want*8/10 || got[b] > want*12/10 {
				t.Errorf("%d backends: one got %d of 10000", n, got[b])
			}
		}
	}
}

func TestLoadedBackendGetsLess(t *testing.T) {
	p, list := newPool(2)
	for range 10 {
		list[0].load.Add(1)
	}
	for range 10 {
		if b := p.Pick(); b != list[1] {
			t.Fatal("picked the loaded one of two")
		}
	}
	if got := p.Pick(); got == nil || list[0].InFlight()+list[1].InFlight() != 21 {
		t.Errorf("in flight %d and %d, want 21 in all", list[0].InFlight(), list[1].InFlight())
	}
}

func TestTwoPicksAreDistinctWhenTheFirstWasTried(t *testing.T) {
	for n := 2; n < 20; n++ {
		p, _ := newPool(n)
		for range 200 {
			a := p.Pick()
			b := p.Pick(a)
			if b == nil || a == b {
				t.Fatalf("%d backends: picked %v after %v", n, b, a)
			}
			a.Release()
			b.Release()
		}
	}
}

func TestUnfitBackendsArePickedOnlyWhenAllAre(t *testing.T) {
	for name, c := range map[string]struct {
		spoil  func(*Backend)
		anyway bool // picked when there is no other
	}{
		"suspect":   {func(b *Backend) { b.SetSuspect(true) }, true},
		"ejected":   {func(b *Backend) { b.Report(Unreachable) }, true},
		"not ready": {func(b *Backend) { b.SetReady(false) }, false},
		"draining":  {func(b *Backend) { b.Drain() }, false},
	} {
		t.Run(name, func(t *testing.T) {
			p, list := newPool(5)
			for i, b := range list {
				c.spoil(b)
				if left := len(list) - 1 - i; left > 0 {
					got := shares(p, 500)
					for _, bad := range list[:i+1] {
						if got[bad] > 0 {
							t.Fatalf("picked an unfit one with %d fit ones left", left)
						}
					}
				}
			}
			if got := p.Pick(); (got != nil) != c.anyway {
				t.Errorf("all unfit: picked %v, want one: %v", got, c.anyway)
			} else if got != nil {
				got.Release()
			}
			if got := p.Unready(); got != (name == "not ready") {
				t.Errorf("all unfit: Unready is %t", got)
			}
		})
	}
}

func TestLoadIsNeverNegativeAndDrainedIsNeverPicked(t *testing.T) {
	p := NewPool(nil)
	var list []*Backend
	for i := range 8 {
		b := NewBackend(Info{ID: fmt.Sprint(i)}, nil)
		p.Add(b)
		list = append(list, b)
	}
	var drained [8]atomic.Bool
	index := map[*Backend]int{}
	for i, b := range list {
		index[b] = i
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 20_000 {
				var before [8]bool
				for i := range drained {
					before[i] = drained[i].Load()
				}
				b := p.Pick()
				if b == nil {
					continue
				}
				if before[index[b]] {
					t.Error("picked a backend whose Drain had returned")
				}
				if b.InFlight() < 1 {
					t.Errorf("load %d while in flight", b.InFlight())
				}
				b.Release()
			}
		})
	}
	for i, b := range list[:7] {
		b.Drain()
		drained[i].Store(true)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		if err := b.WaitIdle(ctx); err != nil {
			t.Errorf("WaitIdle: %v", err)
		}
		cancel()
	}
	wg.Wait()
	for _, b := range list {
		if b.InFlight() != 0 {
			t.Errorf("load %d at the end, want 0", b.InFlight())
		}
	}
}

func TestRemoveTakesOutOnceAndTwiceDoesNoHarm(t *testing.T) {
	p, list := newPool(1)
	other := NewBackend(Info{}, nil)
	remove := p.Add(other)
	remove()
	remove()
	if got := p.Backends(); len(got) != 1 || got[0] != list[0] {
		t.Errorf("left %v", got)
	}
}

func TestEjectedBackendComesBackSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, list := newPool(2)
		bad := list[0]
		for _, out := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second} {
			bad.Report(Unreachable)
			bad.Report(Unreachable) // of the same outage: does not count
			time.Sleep(out - time.Millisecond)
			if shares(p, 500)[bad] > 0 {
				t.Fatalf("picked before %v were over", out)
			}
			time.Sleep(2 * time.Millisecond)
			early := shares(p, 4000)[bad]
			time.Sleep(slowStartTime / 2)
			middle := shares(p, 4000)[bad]
			time.Sleep(slowStartTime)
			late := shares(p, 4000)[bad]
			if early == 0 || early > 700 || middle <= early || middle >= late || late < 1600 {
				t.Fatalf("got %d, %d, %d of 4000 requests; want a growing share", early, middle, late)
			}
		}
		bad.Report(Served) // at a full share: the past is forgotten
		bad.Report(Unreachable)
		time.Sleep(time.Second + time.Millisecond)
		if bad.Ejected() {
			t.Error("out for more than 1 s after it had served well")
		}
	})
}

func TestOnlyBrokenInARowEjects(t *testing.T) {
	b := NewBackend(Info{}, nil)
	for range 10 {
		b.Report(Broken)
		b.Report(Broken)
		b.Report(Served)
	}
	if b.Ejected() {
		t.Error("ejected although it served in between")
	}
	b.Report(Broken)
	b.Report(Broken)
	b.Report(Broken)
	if !b.Ejected() {
		t.Error("not ejected after three in a row")
	}
}

func TestWaitIsReleasedBy(t *testing.T) {
	for name, c := range map[string]struct{ before, release func(*Pool, *Backend) }{
		"a registration": {func(*Pool, *Backend) {}, func(p *Pool, b *Backend) { p.Add(b) }},
		"readiness": {
			func(p *Pool, b *Backend) { b.SetReady(false); p.Add(b) },
			func(_ *Pool, b *Backend) { b.SetReady(true) },
		},
		"trust": {
			func(p *Pool, b *Backend) { b.SetSuspect(true); p.Add(b) },
			func(_ *Pool, b *Backend) { b.SetSuspect(false) },
		},
		"the end of an ejection": {
			func(p *Pool, b *Backend) { b.Report(Unreachable); p.Add(b) },
			func(*Pool, *Backend) {},
		},
		"nothing, if one is there": {func(p *Pool, b *Backend) { p.Add(b) }, func(*Pool, *Backend) {}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var p Pool
				b := NewBackend(Info{}, nil)
				c.before(&p, b)
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				done := make(chan error, 1)
				go func() { done <- p.Wait(ctx) }()
				synctest.Wait()
				c.release(&p, b)
				if err := <-done; err != nil {
					t.Errorf("got %v", err)
				}
			})
		})
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	var p Pool
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want canceled", err)
	}
}

func TestBudgetIsAFifthOfWhatIsActive(t *testing.T) {
	var b Budget
	take := func() (n int) {
		for b.Take() {
			n++
		}
		for range n {
			b.Give()
		}
		return n
	}
	for active, want := range map[int]int{0: 3, 10: 3, 15: 3, 20: 4, 100: 20, 1000: 200} {
		for range active {
			b.Enter()
		}
		if got := take(); got != want {
			t.Errorf("%d active: %d retries, want %d", active, got, want)
		}
		for range active {
			b.Leave()
		}
	}
}

func TestSlotsAreLimited(t *testing.T) {
	var s Slots
	for i, want := range []bool{true, true, false} {
		if got := s.Take(2); got != want {
			t.Errorf("place %d of two: %v", i+1, got)
		}
	}
	s.Give()
	if !s.Take(2) || s.Taken() != 2 {
		t.Error("a place given back is not free")
	}
}

func BenchmarkPick(b *testing.B) {
	for _, n := range []int{1, 2, 10, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p := NewPool(nil)
			for range n {
				p.Add(NewBackend(Info{}, nil))
			}
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					p.Pick().Release()
				}
			})
		})
	}
	b.Run("half unfit of 1000", func(b *testing.B) {
		p := NewPool(nil)
		for i := range 1000 {
			x := NewBackend(Info{}, nil)
			x.SetSuspect(i%2 == 0)
			p.Add(x)
		}
		b.ReportAllocs()
		for b.Loop() {
			p.Pick().Release()
		}
	})
}

func TestPickAllocatesNothing(t *testing.T) {
	p, list := newPool(10)
	tried := []*Backend{list[3]}
	if n := testing.AllocsPerRun(1000, func() { p.Pick(tried...).Release() }); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}
