package upstream

import "sync"

// Sizes of the buffers an exchange borrows, in bytes.
const (
	smallBuffer = 4 << 10
	largeBuffer = 64 << 10
)

// Buffers lends buffers to exchanges; an idle stream holds none. One value may
// serve any number of pools. The zero value is ready.
type Buffers struct {
	small, large sync.Pool
}

func (b *Buffers) borrowSmall() *[]byte { return borrow(&b.small, smallBuffer) }
func (b *Buffers) borrowLarge() *[]byte { return borrow(&b.large, largeBuffer) }

// giveBack takes a buffer of either size; one that was grown is left to the
// garbage collector.
func (b *Buffers) giveBack(buf *[]byte) {
	switch cap(*buf) {
	case smallBuffer:
		b.small.Put(buf)
	case largeBuffer:
		b.large.Put(buf)
	}
}

func borrow(p *sync.Pool, size int) *[]byte {
	if buf, ok := p.Get().(*[]byte); ok {
		*buf = (*buf)[:size]
		return buf
	}
	buf := make([]byte, size)
	return &buf
}
