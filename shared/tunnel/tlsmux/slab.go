package tlsmux

import "sync"

// slabChunks is how many large chunks are one piece of memory to the runtime, which
// keeps a record of every piece it ever had, and for each size it rounds to.
const slabChunks = 8

// slab is the memory of some large chunks. Its owner's lock guards it.
type slab struct {
	prev, next *slab  // in slabs.open
	free       *chunk // those that nobody holds
	held       int    // the number of the others
	chunks     [slabChunks]chunk
}

func newSlab() *slab {
	s := new(slab)
	memory := make([]byte, slabChunks*largeChunk)
	for i := range s.chunks {
		c := &s.chunks[i]
		c.buf = memory[i*largeChunk : (i+1)*largeChunk : (i+1)*largeChunk]
		c.slab, c.next, s.free = s, s.free, c
	}
	return s
}

// slabs lends large chunks. A chunk comes from a slab that is in use already, if one
// has any left, so that few slabs hold what many streams hold. It may be used
// concurrently.
type slabs struct {
	mu    sync.Mutex
	open  *slab     // the first of those that have both free and held chunks
	empty sync.Pool // of *slab; the collector takes what stays there
}

var largeChunks slabs

func (a *slabs) take() *chunk {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.open
	if s == nil {
		var ok bool
		if s, ok = a.empty.Get().(*slab); !ok {
			s = newSlab()
		}
		a.link(s)
	}
	c := s.free
	s.free, c.next = c.next, nil
	if s.held++; s.held == slabChunks {
		a.unlink(s)
	}
	return c
}

// give takes a chunk back.
func (a *slabs) give(c *chunk) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := c.slab
	if s.held == slabChunks {
		a.link(s)
	}
	c.next, s.free = s.free, c
	if s.held--; s.held == 0 {
		a.unlink(s)
		a.empty.Put(s)
	}
}

func (a *slabs) link(s *slab) {
	s.next = a.open
	if s.next != nil {
		s.next.prev = s
	}
	a.open = s
}

func (a *slabs) unlink(s *slab) {
	if s.next != nil {
		s.next.prev = s.prev
	}
	if s.prev != nil {
		s.prev.next = s.next
	} else {
		a.open = s.next
	}
	s.prev, s.next = nil, nil
}
