package cores

import (
	"context"
	"runtime"
	"testing"
	"time"
)

func TestOneProcessorIsLeftAfterAWhileOfCalm(t *testing.T) {
	var s state
	for passed := time.Duration(0); passed < calm-often; passed += often {
		if changed, _ := s.look(often/10, often, true); changed {
			t.Fatalf("narrow after %s of calm", passed)
		}
	}
	if changed, _ := s.look(often/2, often, false); changed {
		t.Error("narrow although it is busy")
	}
	if changed, _ := s.look(0, calm-often, false); changed {
		t.Error("what was before the busy time counts")
	}
	changed, next := s.look(0, often, false)
	if !changed || !s.narrow {
		t.Error("not narrow after a while of calm")
	}
	if next != seldom {
		t.Errorf("idle, and looked at after %s", next)
	}
}

func TestAllProcessorsAreUsedAtOnceWhenOneIsBusy(t *testing.T) {
	s := state{narrow: true, quiet: calm}
	if changed, next := s.look(often*3/10, often, false); changed || next != often {
		t.Errorf("three tenths of a processor: changed %v, looked at after %s", changed, next)
	}
	if changed, _ := s.look(often*8/10, often, false); !changed || s.narrow {
		t.Error("narrow although a processor is busy")
	}
	if changed, _ := s.look(0, often, false); changed {
		t.Error("narrow again at once")
	}
}

func TestWhoIsKeptFromItsProcessorByOthersGetsMore(t *testing.T) {
	s := state{narrow: true, quiet: calm}
	for range 3 { // now and then something waits for a moment
		for range crowd - 1 {
			if changed, _ := s.look(often/50, often, true); changed {
				t.Fatal("not narrow soon")
			}
		}
		s.look(often/50, often, false)
	}
	for range crowd - 1 {
		s.look(often/50, often, true)
	}
	if changed, _ := s.look(often/50, often, true); !changed || s.narrow {
		t.Error("narrow although goroutines wait")
	}
	if changed, _ := s.look(0, often, false); changed {
		t.Error("narrow again at once")
	}
}

func TestTheProcessIsNarrowWhileIdleAndWideAfterwards(t *testing.T) {
	if _, known := used(); !known {
		t.Skip("the use of processors is not known here")
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4))
	await := func(want int) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); runtime.GOMAXPROCS(0) != want; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d processors are in use, want %d", runtime.GOMAXPROCS(0), want)
			}
		}
	}
	t.Setenv("GOMAXPROCS", "4")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		Run(ctx)
	}()
	await(1)
	busy, stop := context.WithCancel(ctx)
	go func() {
		for busy.Err() == nil {
		}
	}()
	await(4)
	stop()
	await(1)
	cancel()
	<-ended
	if got := runtime.GOMAXPROCS(0); got != 4 {
		t.Errorf("%d processors are in use afterwards, want 4", got)
	}
}
