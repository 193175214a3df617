package link

import (
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// Stats counts the packets of one direction since the link began.
type Stats struct {
	Sent      int64 // all that entered the link
	Overflown int64 // did not fit into the queue
	Lost      int64 // by chance
	Delivered int64
	Bytes     int64 // of those delivered, IP headers included
	Refused   int64 // the receiving device did not take them
	// Late is how many were delivered more than 2 ms after they should have been, and
	// Latest by how much the worst was late. They say how far the machine kept up.
	Late   int64
	Latest time.Duration
}

// fullSize is from where a packet is one of bulk: chance has a sequence of its own for
// those, so that which of them are lost does not depend on what else crosses the link.
const fullSize = MTU / 2

// tooLate is what Stats.Late counts.
const tooLate = 2 * time.Millisecond

// direction is one way across the link: which packets it takes, and when each
// arrives. The thread that carries owns it; counters may be read by anybody.
type direction struct {
	perByte float64 // nanoseconds the link is busy with each
	delay   int64   // nanoseconds
	queue   int64   // nanoseconds that what waits may keep the link busy
	loss    float64
	stream  uint64
	chance  atomic.Pointer[chances] // replaced by seed, which anybody may call
	free    int64                   // when all that was taken has been sent

	sent, overflown, lost, delivered, bytes, refused, late, latest atomic.Int64
}

// chances are the two sequences that losses are drawn from. The thread that carries
// owns them.
type chances struct{ small, full *rand.Rand }

func newDirection(cfg Config, stream uint64) *direction {
	perByte := 8e9 / float64(cfg.Rate)
	d := &direction{
		perByte: perByte,
		delay:   int64(cfg.RTT / 2),
		queue:   int64(float64(cfg.Queue) * perByte),
		loss:    cfg.Loss,
		stream:  stream,
	}
	d.seed(cfg.Seed)
	return d
}

// seed begins both sequences of losses.
func (d *direction) seed(seed uint64) {
	d.chance.Store(&chances{small: rand.New(rand.NewPCG(seed, d.stream)), full: rand.New(rand.NewPCG(^seed, d.stream))})
}

// isLost draws whether a packet is lost.
func (d *direction) isLost(size int) bool {
	c := d.chance.Load()
	if size >= fullSize {
		return c.full.Float64() < d.loss
	}
	return c.small.Float64() < d.loss
}

// take says when a packet of size bytes that enters at now arrives, in nanoseconds
// of the same clock; false if it never does.
func (d *direction) take(now int64, size int) (arrives int64, taken bool) {
	d.sent.Add(1)
	busy := max(d.free, now)
	needs := int64(float64(size) * d.perByte)
	if busy+needs-now > d.queue {
		d.overflown.Add(1)
		return 0, false
	}
	d.free = busy + needs
	if d.loss > 0 && d.isLost(size) {
		d.lost.Add(1) // on its way: it has used the link
		return 0, false
	}
	return d.free + d.delay, true
}

// arrived counts a packet that was handed over at now.
func (d *direction) arrived(now, due int64, size int, accepted bool) {
	if !accepted {
		d.refused.Add(1)
		return
	}
	d.delivered.Add(1)
	d.bytes.Add(int64(size))
	late := now - due
	if late > int64(tooLate) {
		d.late.Add(1)
	}
	if late > d.latest.Load() {
		d.latest.Store(late)
	}
}

func (d *direction) stats() Stats {
	return Stats{
		Sent: d.sent.Load(), Overflown: d.overflown.Load(), Lost: d.lost.Load(), Delivered: d.delivered.Load(),
		Bytes: d.bytes.Load(), Refused: d.refused.Load(), Late: d.late.Load(), Latest: time.Duration(d.latest.Load()),
	}
}

// transit holds the packets on their way, in order. The zero value is empty.
type transit struct {
	ring  []packet // a power of two long
	first int
	n     int
}

type packet struct {
	due  int64
	data [MTU]byte
	size int
}

// next is the packet to arrive first; nil if there is none.
func (t *transit) next() *packet {
	if t.n == 0 {
		return nil
	}
	return &t.ring[t.first]
}

func (t *transit) pop() {
	t.first = (t.first + 1) & (len(t.ring) - 1)
	t.n--
}

func (t *transit) push(data []byte, due int64) {
	if t.n == len(t.ring) {
		larger := make([]packet, max(256, 2*len(t.ring)))
		for i := range t.n {
			larger[i] = t.ring[(t.first+i)&(len(t.ring)-1)]
		}
		t.ring, t.first = larger, 0
	}
	p := &t.ring[(t.first+t.n)&(len(t.ring)-1)]
	p.due, p.size = due, copy(p.data[:], data)
	t.n++
}
