package tlsmux

import (
	"io"
	"sync/atomic"
	"testing"
	"time"
)

// The kernel is given 10 ms of what a connection sends, within bounds.
func TestTheKernelHoldsLittleThatIsUnsent(t *testing.T) {
	var now int64
	var heard atomic.Int64
	o := newOutbox(io.Discard, func() int64 { return now }, &heard, nil)
	var told []int
	o.hold = func(bytes int) { told = append(told, bytes) }
	send := func(rate int, d time.Duration) { // bytes a second
		const step = time.Millisecond
		for ; d > 0; d -= step {
			now += int64(step)
			o.measure(int(float64(rate)*step.Seconds()), now)
		}
	}
	for _, c := range []struct {
		rate int
		want []int
	}{
		{400_000, nil},
		{25_000_000, []int{256 << 10}},
		{24_000_000, nil},
		{2_000_000_000, []int{maxUnsent}},
		{5_000_000, []int{64 << 10}},
		{1000, []int{outboxLimit}},
	} {
		told = nil
		send(c.rate, time.Second)
		// A measurement may span the change from one rate to the next.
		if last := len(told) - 1; (last < 0) != (c.want == nil) || last >= 0 && told[last] != c.want[0] || last > 1 {
			t.Errorf("at %d B/s it was told %v, want %v", c.rate, told, c.want)
		}
	}
}
