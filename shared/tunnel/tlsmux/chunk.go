package tlsmux

import "sync"

// What is received lies in chunks of three sizes until it is read: a short message
// does not keep a large one, and no bytes move when more come, as they would in
// a buffer that grows.
const (
	smallChunk  = 1 << 10
	middleChunk = 4 << 10
	largeChunk  = 16 << 10
)

// chunk holds bytes of one stream, buf[r:w] of them not read yet.
type chunk struct {
	next *chunk
	r, w int
	buf  []byte
	slab *slab // of a large one
}

// The chunks that hold nothing, of the smaller sizes.
var (
	smallChunks  = chunks(smallChunk)
	middleChunks = chunks(middleChunk)
)

func chunks(size int) *sync.Pool {
	return &sync.Pool{New: func() any { return &chunk{buf: make([]byte, size)} }}
}

// takeChunk returns an empty chunk for n bytes, or for the first of them.
func takeChunk(n int) *chunk {
	switch {
	case n <= smallChunk:
		return smallChunks.Get().(*chunk)
	case n <= middleChunk:
		return middleChunks.Get().(*chunk)
	}
	return largeChunks.take()
}

// free gives a chunk back, whose bytes nobody looks at any more.
func (c *chunk) free() {
	c.next, c.r, c.w = nil, 0, 0
	switch len(c.buf) {
	case smallChunk:
		smallChunks.Put(c)
	case middleChunk:
		middleChunks.Put(c)
	default:
		largeChunks.give(c)
	}
}

// room returns where the next of n more bytes may go in this chunk, nil if nearly
// full: a few bytes at its end are not worth a read of their own.
func (c *chunk) room(n int) []byte {
	left := c.buf[c.w:]
	if len(left) < min(n, len(c.buf)/8) {
		return nil
	}
	return left[:min(n, len(left))]
}
