package bus

import "time"

// What others reckon with; deploy/simulate does.
const (
	// DigestInterval is the time between two digests of an edge.
	DigestInterval = digestInterval
	// MaxPending is how many messages an edge keeps that it has not looked at yet.
	MaxPending = 1 << 16
	// MaxRowsInMessage is the most rows of one message.
	MaxRowsInMessage = maxChunk
)

// GatherFor is how long a change waits for others to go with it in a mesh with that
// many other edges: 5 ms up to 20, then in proportion, so that what an edge has to
// take in when all of them change at once does not grow with their number. With 200
// edges that let in agents as fast as they may, 5 ms would ask for more than a
// processor (docs/scaling.md).
func GatherFor(others int) time.Duration {
	return gather * time.Duration(max(1, others/20))
}
