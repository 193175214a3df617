package memory

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"
)

func TestRoomIsWhatHasToBeScanned(t *testing.T) {
	for _, test := range []struct {
		name          string
		usual         int
		live, scanned uint64
		room          uint64
		want          int
	}{
		{"nothing known", 100, 0, 0, 0, 100},
		{"a small heap", 100, 4 << 20, 2 << 20, 0, 100},
		{"a large one of pointers", 100, 400 << 20, 400 << 20, 0, 100},
		{"a large one of buffers", 100, 200 << 20, 20 << 20, 0, 10},
		{"half of each", 100, 200 << 20, 100 << 20, 0, 50},
		{"the least room", 100, 64 << 20, 1 << 20, 0, 25},
		{"GOGC is less", 30, 200 << 20, 100 << 20, 0, 30},
		{"a small one with room", 100, 8 << 20, 2 << 20, 16 << 20, 200},
		{"a large one with room", 100, 400 << 20, 400 << 20, 16 << 20, 100},
		{"buffers with room", 100, 200 << 20, 20 << 20, 16 << 20, 10},
		{"the least percentage", 100, 1 << 40, 1 << 20, 0, minPercent},
	} {
		if got := percent(test.usual, test.room, test.live, test.scanned); got != test.want {
			t.Errorf("%s: %d, want %d", test.name, got, test.want)
		}
	}
}

// gogc is what is set now.
func gogc() uint64 {
	s := [...]metrics.Sample{{Name: "/gc/gogc:percent"}}
	metrics.Read(s[:])
	return s[0].Value.Uint64()
}

func TestTheCollectorComesOftenerWhileBuffersFillTheHeap(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	usual := gogc()
	done := pace(ctx, 0)
	await := func(what string, as func() bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !as(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: GOGC is %d", what, gogc())
			}
			runtime.GC()
		}
	}
	buffers := make([][]byte, 256)
	for i := range buffers {
		buffers[i] = make([]byte, 1<<20)
	}
	await("with 256 MiB of buffers", func() bool { return gogc() < 20 })
	runtime.KeepAlive(buffers)
	buffers = nil
	await("without", func() bool { return gogc() == usual })
	done()
	if got := gogc(); got != usual {
		t.Errorf("GOGC is %d afterwards, want %d", got, usual)
	}
}

func TestACollectorThatIsOffStaysSo(t *testing.T) {
	usual := debug.SetGCPercent(-1)
	defer debug.SetGCPercent(usual)
	pace(t.Context(), 16<<20)()
	if got := debug.SetGCPercent(-1); got != -1 {
		t.Errorf("GOGC is %d, want it off", got)
	}
}
