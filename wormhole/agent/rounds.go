package agent

import (
	"math/rand/v2"
	"time"

	"wormhole/shared/backoff"
	"wormhole/shared/protocol"
)

// rounds is the back-off that the links of an agent share while no tunnel is open. In
// each round a link makes one attempt at most; the first that fails says when the next
// round is. So an agent that knows many edges asks no more often than one that knows
// one, and edges that come back together are not met by more agents in a second.
// Agent.mu guards it.
type rounds struct {
	wait   *backoff.Backoff // between rounds; a tunnel counts for it as long as any is open
	number int              // of the round at due, or after it
	due    time.Time
	links  int // that share it

	// The last tunnel was lost so often, and once more for the start; the first round
	// after it; and the edges that were, or are to be, tried in that one: by node, or by
	// address while the node is not known. One that is chosen later is tried at once.
	losses  int
	opening int
	opens   time.Time
	tried   map[string]bool
}

func newRounds(wait *backoff.Backoff) rounds {
	return rounds{wait: wait, number: 1, opening: 1, losses: 1, tried: map[string]bool{}}
}

// begin plans the next round.
func (r *rounds) begin(due time.Time) {
	r.number++
	r.due = due
}

// turn says how long l has to wait before it dials, 0 if it may now. The channel is
// closed at the next change, which may bring the turn forward.
func (a *Agent) turn(l *link) (time.Duration, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if len(a.nodes) == 0 && l.losses != a.rounds.losses {
		a.enter(l, now)
	}
	if l.name != "" && a.needless(l) || l.name == "" && a.nodes[l.node] != nil {
		return a.cfg.timing.duplicate, a.changed
	}
	return max(l.until.Sub(now), 0), a.changed
}

// enter has l wait for the round that is planned, or plans one if l had its try in
// that. Links do not begin it at once, so that one that gets through can spare the
// edges the others. mu must be held.
func (a *Agent) enter(l *link, now time.Time) {
	r := &a.rounds
	edge := l.node
	if edge == "" {
		edge = l.target.addr
	}
	if l.losses != r.losses && !r.tried[edge] {
		r.tried[edge] = true
		l.round, l.until = r.opening, r.opens
	} else {
		if l.round == r.number {
			r.begin(now.Add(r.wait.Next()))
		}
		l.round, l.until = r.number, r.due
	}
	l.losses = r.losses
	if r.links > 1 && l.until.After(now) {
		l.until = l.until.Add(rand.N(a.cfg.timing.spread))
	}
	l.notBefore()
}

// postpone says when l may dial again after an attempt that failed, and returns how
// long that is. reject is nil unless an edge answered: all whom it turned away were
// told a time, and none should come together.
func (a *Agent) postpone(l *link, reject *protocol.Reject) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if reject != nil && reject.RetryAfter() > 0 {
		after := reject.RetryAfter()
		l.earliest = now.Add(after + rand.N(after/4+1))
	}
	if len(a.nodes) == 0 {
		a.enter(l, now)
	} else {
		l.until = now.Add(l.wait.Next())
		l.notBefore()
	}
	return max(l.until.Sub(now), 0)
}

// notBefore keeps the time that an edge asked for.
func (l *link) notBefore() {
	if l.until.Before(l.earliest) {
		l.until = l.earliest
	}
}

// share counts the links that make attempts.
func (a *Agent) share(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.rounds.links += n
}

// bereft notes that the last tunnel ended: every link tries in a round that begins
// soon, or at once if the edge that has gone had said so. mu must be held.
func (a *Agent) bereft(told bool) {
	r := &a.rounds
	r.wait.Disconnected()
	now := time.Now()
	if told {
		r.wait = a.newBackoff() // an edge that leaves in good order may soon be back in it
		r.begin(now)
	} else {
		r.begin(now.Add(r.wait.Next()))
	}
	r.losses++
	r.opening, r.opens = r.number, r.due
	clear(r.tried)
}
