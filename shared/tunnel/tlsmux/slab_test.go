package tlsmux

import (
	"math/rand/v2"
	"sync"
	"testing"
)

// Chunks of one slab do not overlap, and nobody gets one that another holds.
func TestLargeChunksAreLentToOneAtATime(t *testing.T) {
	var lent slabs
	var workers sync.WaitGroup
	for worker := range 8 {
		workers.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(worker)))
			var held []*chunk
			for range 2000 {
				if len(held) < 40 && random.IntN(2) == 0 {
					c := lent.take()
					if len(c.buf) != largeChunk || cap(c.buf) != largeChunk || c.next != nil {
						t.Errorf("a chunk of %d bytes, %d reachable", len(c.buf), cap(c.buf))
					}
					c.buf[0], c.buf[largeChunk-1] = byte(worker), byte(worker)
					held = append(held, c)
				} else if len(held) > 0 {
					i := random.IntN(len(held))
					c := held[i]
					held[i] = held[len(held)-1]
					held = held[:len(held)-1]
					if c.buf[0] != byte(worker) || c.buf[largeChunk-1] != byte(worker) {
						t.Error("somebody else wrote to a chunk that was held")
					}
					lent.give(c)
				}
			}
			for _, c := range held {
				lent.give(c)
			}
		})
	}
	workers.Wait()
	if lent.open != nil {
		t.Errorf("a slab is listed with %d chunks held, though all were given back", lent.open.held)
	}
}

// What a few hold does not keep much more alive: free chunks of slabs in use go first.
func TestSlabsInUseAreFilledFirst(t *testing.T) {
	var lent slabs
	var all []*chunk
	for range 10 * slabChunks {
		all = append(all, lent.take())
	}
	seen := map[*slab]bool{}
	for i, c := range all {
		if i%2 == 0 {
			lent.give(c)
		} else {
			seen[c.slab] = true
		}
	}
	for range 5 * slabChunks {
		if c := lent.take(); !seen[c.slab] {
			t.Fatal("a new slab was begun while others had free chunks")
		}
	}
	if lent.open != nil {
		t.Error("a slab is listed as having free chunks, and has none")
	}
}
