package pipe

import "sync"

const (
	smallSize = 4 << 10
	largeSize = 32 << 10
)

// The buffers of all Joins while nobody uses them.
var (
	small = sync.Pool{New: func() any { b := make([]byte, smallSize); return &b }}
	large = sync.Pool{New: func() any { b := make([]byte, largeSize); return &b }}
)

// pool returns the pool that b belongs to.
func pool(b *[]byte) *sync.Pool {
	if len(*b) == largeSize {
		return &large
	}
	return &small
}

// resize returns the buffer to read into next, after n bytes came into buf: bulk
// gets a large one, and a direction that waits holds only a small one.
func resize(buf *[]byte, n int) *[]byte {
	next := pool(buf)
	switch {
	case n == len(*buf):
		next = &large
	case n <= smallSize:
		next = &small
	}
	if next == pool(buf) {
		return buf
	}
	pool(buf).Put(buf)
	return next.Get().(*[]byte)
}
