package backoff

import (
	"testing"
	"testing/synctest"
	"time"
)

// highest makes every wait the ceiling itself.
func highest(b *Backoff) *Backoff {
	b.random = func(n int64) int64 { return n - 1 }
	return b
}

func TestWaitsDoubleUpToMax(t *testing.T) {
	b := highest(New(time.Second, 10*time.Second, time.Minute))
	for i, want := range []time.Duration{1, 2, 4, 8, 10, 10} {
		if got := b.Next(); got != want*time.Second {
			t.Errorf("wait %d = %v, want %v", i, got, want*time.Second)
		}
	}
}

func TestWaitsAreSpreadOverTheWholeRange(t *testing.T) {
	const max = time.Second
	var low, high int
	for range 1000 {
		b := New(max, max, 0)
		switch wait := b.Next(); {
		case wait < 0 || wait > max:
			t.Fatalf("wait = %v, want within [0, %v]", wait, max)
		case wait < max/4:
			low++
		case wait > max*3/4:
			high++
		}
	}
	if low < 150 || high < 150 {
		t.Errorf("of 1000 waits %d are below a quarter and %d above three, want about 250 each", low, high)
	}
}

func TestOnlyAConnectionThatLastedStartsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := highest(New(time.Second, time.Minute, 30*time.Second))
		b.Next()
		b.Next()
		b.Connected()
		time.Sleep(29 * time.Second)
		b.Disconnected()
		if got := b.Next(); got != 4*time.Second {
			t.Errorf("after a short connection the wait is %v, want 4s", got)
		}
		b.Connected()
		time.Sleep(30 * time.Second)
		b.Disconnected()
		if got := b.Next(); got != time.Second {
			t.Errorf("after a stable connection the wait is %v, want 1s", got)
		}
	})
}

func TestDisconnectedWithoutConnectedChangesNothing(t *testing.T) {
	b := highest(New(time.Second, time.Minute, 0))
	b.Next()
	b.Disconnected()
	if got := b.Next(); got != 2*time.Second {
		t.Errorf("wait = %v, want 2s", got)
	}
}
