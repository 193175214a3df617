package main

import (
	"math/rand/v2"
	"slices"
	"time"

	"wormhole/edge/cluster/bus"
)

// spreading is a mesh in which rows change.
type spreading struct {
	edges  int
	rate   float64       // rows that change in a second, at each edge
	gather time.Duration // that a change waits for others
	lasts  time.Duration // how long is looked at
	lost   float64       // of messages, at random
	near   time.Duration // between edges of one region, one way; far are up to 150 ms
	rows   int           // of each edge, in a snapshot

	receivers int // that are looked at
	pending   int // messages that a receiver keeps; 0: bus.MaxPending
	cost      func(rows int) time.Duration
	quiet     bool // no digests: for tests
}

// spread is what came out.
type spread struct {
	lags    []time.Duration // from change to known, sorted
	busy    float64         // of a processor, at a receiver
	lost    int             // messages: by chance, or because too many were pending
	unheard int             // changes that were not known at the end
}

func (s *spread) quantile(q float64) time.Duration {
	if len(s.lags) == 0 {
		return 0
	}
	return s.lags[min(len(s.lags)-1, int(q*float64(len(s.lags))))]
}

// event is a message that arrives.
type event struct {
	at      time.Duration
	from    int32
	rows    int32
	changed time.Duration // of its first row; less than 0: a digest
	step    time.Duration // between its rows
}

func takeIn(rows int) time.Duration {
	return receiveMessage + carryMessage + time.Duration(rows)*receiveRow
}

// run looks at some receivers, each hearing all others. A receiver takes in one
// message after another, as the bus does.
func (c spreading) run(random *rand.Rand) *spread {
	out := &spread{}
	if c.pending == 0 {
		c.pending = bus.MaxPending
	}
	if c.cost == nil {
		c.cost = takeIn
	}
	var worked time.Duration
	for range c.receivers {
		worked += c.receive(random, out)
	}
	slices.Sort(out.lags)
	out.busy = worked.Seconds() / c.lasts.Seconds() / float64(c.receivers)
	return out
}

// receive is one receiver; worked is what all that came would have cost.
func (c spreading) receive(random *rand.Rand, out *spread) (worked time.Duration) {
	var events []event
	far := make([]time.Duration, c.edges)
	_, digestCost := digest(c.edges)
	for from := range int32(c.edges - 1) {
		delay := c.near
		if int(from) >= cellSize-1 {
			delay += time.Duration(random.Int64N(int64(150 * time.Millisecond)))
		}
		far[from] = delay
		if !c.quiet {
			for at := time.Duration(random.Int64N(int64(bus.DigestInterval))); at < c.lasts; at += bus.DigestInterval {
				events = append(events, event{at: at + delay, from: from, changed: -1})
			}
		}
		if c.rate <= 0 {
			continue
		}
		every := time.Duration(float64(time.Second) / c.rate)
		at := time.Duration(random.ExpFloat64() * float64(every))
		for at < c.lasts {
			// The first change starts the wait; all that come within it go along.
			first, rows := at, int32(1)
			for at += time.Duration(random.ExpFloat64() * float64(every)); at < first+c.gather; at += time.Duration(random.ExpFloat64() * float64(every)) {
				rows++
			}
			step := time.Duration(0)
			if rows > 1 {
				step = c.gather / time.Duration(rows)
			}
			sent := first + c.gather + sendMessage + time.Duration(rows)*sendRow
			events = append(events, event{at: sent + delay, from: from, rows: rows, changed: first, step: step})
		}
	}
	slices.SortFunc(events, func(a, b event) int { return int(a.at - b.at) })

	free := time.Duration(0)           // when the receiver has taken in all that came
	var done []time.Duration           // when each of those pending is taken in
	missing := make(map[int32][]event) // by sender: changes whose message was lost
	note := func(e event, known time.Duration) {
		for i := range e.rows {
			out.lags = append(out.lags, known-e.changed-time.Duration(i)*e.step)
		}
	}
	for _, e := range events {
		cost := digestCost
		if e.changed >= 0 {
			cost = c.cost(int(e.rows))
		}
		worked += cost
		for len(done) > 0 && done[0] <= e.at {
			done = done[1:]
		}
		if len(done) >= c.pending || c.lost > 0 && random.Float64() < c.lost {
			out.lost++
			if e.changed >= 0 {
				missing[e.from] = append(missing[e.from], e)
			}
			continue
		}
		free = max(free, e.at) + cost
		if gap := missing[e.from]; len(gap) > 0 {
			// Whatever comes next from there shows the gap: ask, and take in a snapshot.
			messages := 1 + c.rows/bus.MaxRowsInMessage
			again := time.Duration(messages)*(receiveMessage+carryMessage) + time.Duration(c.rows)*receiveRow
			worked += again
			free += again // it delays what is behind it
			for _, old := range gap {
				note(old, free+2*far[e.from])
			}
			delete(missing, e.from)
		}
		if e.changed >= 0 {
			note(e, free)
		}
		done = append(done, free)
	}
	for _, gap := range missing {
		for _, e := range gap {
			out.unheard += int(e.rows)
		}
	}
	return worked
}
