package forward

import "sync/atomic"

// totals count since the start; see Totals.
type totals struct {
	served, refused, unreachable atomic.Uint64
	toApp, fromApp               atomic.Uint64
}

// Totals are what a Forwarder has done since it was made. They only grow.
type Totals struct {
	// Streams were opened by edges, those that were refused included.
	Streams uint64
	// Refused were turned away with no byte handed to the app.
	Refused uint64
	// Unreachable are the refusals because the app did not accept a connection.
	Unreachable uint64
	// ToApp are bytes handed to the app's connections, FromApp bytes handed to the
	// edges.
	ToApp, FromApp uint64
}

// Totals says what was done so far. The figures are read one after the other.
func (f *Forwarder) Totals() Totals {
	return Totals{
		Streams:     f.totals.served.Load(),
		Refused:     f.totals.refused.Load(),
		Unreachable: f.totals.unreachable.Load(),
		ToApp:       f.totals.toApp.Load(),
		FromApp:     f.totals.fromApp.Load(),
	}
}
