package forward

import "sync"

const (
	smallSize = 4 << 10  // a waiting direction holds this much
	largeSize = 64 << 10 // a busy one this much
)

// pools hands out buffers for copying. Its zero value is ready to use.
type pools struct {
	small, large sync.Pool
}

// buffer is what one direction of a stream reads into. It is small while there is
// little to read, so that a kept stream that waits for its next request holds
// little memory, and large while reads fill it.
type buffer struct {
	pools *pools
	small *[smallSize]byte
	large *[largeSize]byte
}

// space is where the next read goes.
func (b *buffer) space() []byte {
	if b.large != nil {
		return b.large[:]
	}
	if b.small == nil {
		b.small, _ = b.pools.small.Get().(*[smallSize]byte)
		if b.small == nil {
			b.small = new([smallSize]byte)
		}
	}
	return b.small[:]
}

// filled adapts to a read of n bytes, whose bytes must have been used.
func (b *buffer) filled(n int) {
	switch {
	case b.large == nil && n == smallSize:
		b.large, _ = b.pools.large.Get().(*[largeSize]byte)
		if b.large == nil {
			b.large = new([largeSize]byte)
		}
	case b.large != nil && n < smallSize:
		b.pools.large.Put(b.large)
		b.large = nil
	}
}

// free gives everything back.
func (b *buffer) free() {
	if b.small != nil {
		b.pools.small.Put(b.small)
	}
	if b.large != nil {
		b.pools.large.Put(b.large)
	}
	b.small, b.large = nil, nil
}
