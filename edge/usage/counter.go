package usage

import (
	"math"
	"sync/atomic"
)

// Amounts are what one site used. Additions stop at the largest number.
type Amounts [fields]uint64

// What the numbers of Amounts are. The first six are requests by class of status, of
// which 0 got no answer and 1 became a WebSocket.
const (
	In          = 6 // bytes from clients
	Out         = 7 // bytes to clients
	Connections = 8 // raw TCP
	fields      = 9
)

// Requests are those of all classes.
func (a *Amounts) Requests() uint64 {
	sum := uint64(0)
	for _, n := range a[:In] {
		sum = plus(sum, n)
	}
	return sum
}

// Add adds b.
func (a *Amounts) Add(b *Amounts) {
	for i := range a {
		a[i] = plus(a[i], b[i])
	}
}

func plus(a, b uint64) uint64 {
	if a > math.MaxUint64-b {
		return math.MaxUint64
	}
	return a + b
}

// Counter is what one site used here since the last flush.
type Counter struct {
	host   string
	place  place         // of the Meter alone
	listed atomic.Uint32 // 1 while the Meter has it on its list
	n      [fields]atomic.Uint64
}

// place is the row that a site is in, in one month; the zero value is none.
type place struct{ month, row uint16 }

// NewCounter returns the counter of a site.
func NewCounter(host string) *Counter { return &Counter{host: host} }

// peek is what was counted since the last take.
func (c *Counter) peek() (a Amounts) {
	for i := range c.n {
		a[i] = c.n[i].Load()
	}
	return a
}

// take is peek, and counting begins anew.
func (c *Counter) take() (a Amounts) {
	for i := range c.n {
		if c.n[i].Load() != 0 {
			a[i] = c.n[i].Swap(0)
		}
	}
	return a
}

// Request counts one request with its status and bytes. A nil Meter counts nothing.
func (m *Meter) Request(c *Counter, status int, in, out int64) {
	if m == nil || c == nil {
		return
	}
	class := status / 100
	if class < 0 || class >= In {
		class = 0
	}
	c.n[class].Add(1)
	m.Bytes(c, in, out)
}

// Connection counts one raw TCP connection.
func (m *Meter) Connection(c *Counter) {
	if m == nil || c == nil {
		return
	}
	c.n[Connections].Add(1)
	m.Bytes(c, 0, 0)
}

// Bytes counts bytes of what goes on for longer.
func (m *Meter) Bytes(c *Counter, in, out int64) {
	if m == nil || c == nil {
		return
	}
	if in > 0 {
		c.n[In].Add(uint64(in))
	}
	if out > 0 {
		c.n[Out].Add(uint64(out))
	}
	// After the additions: whoever takes the counter off the list looks at them later.
	if c.listed.Load() == 0 && c.listed.CompareAndSwap(0, 1) {
		m.listing.Lock()
		m.list = append(m.list, c)
		m.listing.Unlock()
	}
}
