package link

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestAPacketTakesItsTimeOnTheLinkAndHalfARoundTrip(t *testing.T) {
	d := newDirection(Config{Rate: 8_000_000, RTT: 100 * time.Millisecond, Queue: 4000}, 1) // 1 byte each µs
	for i, c := range []struct {
		now, size int64
		want      int64 // 0: dropped
	}{
		{0, 1000, 51_000_000},
		{0, 1000, 52_000_000}, // waits for the first
		{500_000, 1000, 53_000_000},
		{500_000, 1000, 54_000_000}, // 3,500 of 4,000 bytes are waiting
		{500_000, 1000, 0},
		{500_000, 400, 54_400_000}, // a smaller one still fits
		{10_000_000, 1000, 61_000_000},
	} {
		got, taken := d.take(c.now, int(c.size))
		if !taken {
			got = 0
		}
		if got != c.want {
			t.Errorf("packet %d arrives at %d ns, want %d", i, got, c.want)
		}
	}
	if s := d.stats(); s.Sent != 7 || s.Overflown != 1 || s.Lost != 0 {
		t.Errorf("got %+v, want 7 sent, 1 that did not fit", s)
	}
}

func TestLossFollowsTheSeed(t *testing.T) {
	const n, loss = 100_000, 0.005
	lost := func(seed, stream uint64) (which string, count int64) {
		d := newDirection(Config{Rate: 1e12, Queue: 1 << 30, Loss: loss, Seed: seed}, stream)
		var b strings.Builder
		for i := range int64(n) {
			if _, taken := d.take(i*1000, 100); taken {
				b.WriteByte('.')
			} else {
				b.WriteByte('x')
			}
		}
		return b.String(), d.stats().Lost
	}
	first, count := lost(1, 1)
	if again, _ := lost(1, 1); again != first {
		t.Error("the same seed lost other packets")
	}
	if other, _ := lost(2, 1); other == first {
		t.Error("another seed lost the same packets")
	}
	if other, _ := lost(1, 2); other == first {
		t.Error("both directions lose the same packets")
	}
	if sigma := math.Sqrt(n * loss * (1 - loss)); math.Abs(float64(count)-n*loss) > 5*sigma {
		t.Errorf("lost %d of %d, want %v within %.0f", count, n, n*loss, 5*sigma)
	}
}

func TestSmallPacketsDoNotChangeWhichLargeOnesAreLost(t *testing.T) {
	const n = 20_000
	d := newDirection(Config{Rate: 1e12, Queue: 1 << 30, Loss: 0.005}, 1)
	now := int64(0)
	// lost sends large packets, and before each of them so many small ones.
	lost := func(between int) (large []int, small int) {
		for i := range n {
			for range between {
				now += 1000
				if _, taken := d.take(now, 52); !taken {
					small++
				}
			}
			now += 1000
			if _, taken := d.take(now, MTU); !taken {
				large = append(large, i)
			}
		}
		return large, small
	}
	d.seed(7)
	bare, _ := lost(0)
	if unseeded, _ := lost(0); slices.Equal(unseeded, bare) {
		t.Error("the same packets are lost again without a new seed")
	}
	d.seed(7)
	among, small := lost(3)
	if len(bare) == 0 || !slices.Equal(among, bare) {
		t.Errorf("of large packets %d are lost, and %d others among small ones", len(bare), len(among))
	}
	if small == 0 {
		t.Error("no small packet is lost")
	}
	d.seed(8)
	if other, _ := lost(0); slices.Equal(other, bare) {
		t.Error("another seed lost the same packets")
	}
}

func TestPacketsKeepTheirOrderOnTheWay(t *testing.T) {
	var underway transit
	var in, out int64
	for round := range 2000 { // grows, shrinks and wraps
		for range round%7 + 1 {
			underway.push([]byte{byte(in), byte(in >> 8)}, in)
			in++
		}
		for range round % 6 {
			p := underway.next()
			if p.due != out || p.size != 2 || p.data[0] != byte(out) || p.data[1] != byte(out>>8) {
				t.Fatalf("got packet %d (%d bytes), want %d", p.due, p.size, out)
			}
			underway.pop()
			out++
		}
	}
	if underway.n != int(in-out) || underway.n < 500 {
		t.Fatalf("%d packets are underway, want %d", underway.n, in-out)
	}
}

func TestConfigThatCannotBeIsRefused(t *testing.T) {
	for _, bad := range []Config{
		{}, {Rate: 100}, {Rate: 1e6, Loss: 1}, {Rate: 1e6, Loss: -0.1}, {Rate: 1e6, RTT: -1}, {Rate: 1e6, RTT: time.Minute}, {Rate: 1e6, Queue: -1},
	} {
		if l, err := New(bad); err == nil {
			_ = l.Close()
			t.Errorf("New(%+v) found nothing wrong", bad)
		}
	}
	cfg, err := Config{Rate: 200e6, RTT: 100 * time.Millisecond}.withDefaults()
	if err != nil || cfg.Queue != 2_500_000 || cfg.Congestion != "cubic" {
		t.Errorf("got %+v, %v; want a queue of one round trip, 2,500,000 bytes, and cubic", cfg, err)
	}
}
