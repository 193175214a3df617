package agent

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	"wormhole/shared/backoff"
	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
)

// link keeps a tunnel to one address.
type link struct {
	agent  *Agent
	name   string // the configured name, empty for an edge that others told of
	node   string // where it leads, empty while not known
	target target
	spread time.Duration // the first attempt is made within it

	failed   chan<- struct{} // told after an attempt that failed; may be nil
	failures int             // attempts in a row that did not reach an edge
	viaQUIC  bool            // TCP did not get through last time

	wait     *backoff.Backoff // between attempts while another link's tunnel is open
	until    time.Time        // no attempt before
	earliest time.Time        // the edge asked for none before
	round    int              // the last one of Agent.rounds that it entered
	losses   int              // of Agent.rounds, when it did
}

// target is where a link dials.
type target struct {
	addr   string // host:port to connect to; an IP address unless a proxy resolves it
	server string // the name that the edge's certificate must have
}

// keep dials until dialCtx ends or the agent drains. A tunnel that is open by then
// lives until it ends by itself or ctx does; keep returns after it.
func (l *link) keep(ctx, dialCtx context.Context) {
	a := l.agent
	a.share(1)
	defer a.share(-1)
	l.wait = a.newBackoff()
	if l.spread > 0 {
		l.until = time.Now().Add(rand.N(l.spread))
	}
	for l.awaitTurn(dialCtx) {
		next, err := l.dial(dialCtx, l.carriers())
		if err != nil {
			if l.mayDial(dialCtx) {
				a.totals.failed.Add(1)
			}
			if !l.pause(dialCtx, err) {
				return
			}
			continue
		}
		l.node = next.welcome.Node
		holds := a.admit(next, nil)
		a.wg.Go(func() { next.run(ctx) })
		if !holds {
			next.logger.Debug("another tunnel leads to the same edge", "remote", l.target.addr)
			a.wg.Go(func() { next.retire(ctx, "another tunnel leads to the same edge") })
			if !l.awaitVacancy(dialCtx, next.welcome.Node) {
				return
			}
			continue
		}
		l.wait.Connected()
		l.failures = 0
		l.viaQUIC = next.session.Carrier() == tunnel.QUIC
		next.logger.Info("tunnel open", "remote", next.session.RemoteAddr().String(),
			"carrier", string(next.session.Carrier()), "region", next.welcome.Region, "hosts", next.welcome.Hosts)

		next = l.stay(ctx, dialCtx, next)
		l.wait.Disconnected()
		if isClosed(next.leaving) && next.goAway.Code == "" {
			l.wait = a.newBackoff() // it left in good order, and may soon be back in it
		}
		if reject := next.expelled(); reject != nil {
			if !l.pause(dialCtx, reject) {
				return
			}
		} else if !isClosed(next.leaving) && !next.retiring() && l.mayDial(dialCtx) {
			d := a.postpone(l, nil)
			a.totals.lost.Add(1)
			next.logger.Warn("tunnel lost", "remote", l.target.addr, "err", next.reason(), "retry_in", d.Round(time.Millisecond).String())
			l.tellFailed()
		}
	}
}

// stay returns when another tunnel is to be dialled, because the connection has
// ended or the edge asked us to leave; what lives on is looked after elsewhere.
// Where QUIC is in use it moves to TLS when that works again. It returns the
// connection that it held last.
func (l *link) stay(ctx, dialCtx context.Context, c *connection) *connection {
	a := l.agent
	var upgrade <-chan time.Time
	probe := a.cfg.timing.upgrade
	if l.viaQUIC && a.cfg.Transport == Auto {
		t := time.NewTimer(jitter(probe))
		defer t.Stop()
		upgrade = t.C
	}
	for {
		select {
		case <-c.done:
			return c
		case <-c.leaving:
			a.vacate(c)
			c.logger.Info("edge asks us to go", "reason", c.goAway.Reason, "code", string(c.goAway.Code))
			a.wg.Go(func() { a.depart(ctx, c) })
			// Others leave this edge too; it said when it is our turn to look for another.
			a.sleep(dialCtx, time.Duration(c.goAway.DelayMillis)*time.Millisecond, c.done)
			return c
		case <-upgrade:
			next, err := l.dial(dialCtx, carriers{tls: true})
			if err != nil {
				probe = min(2*probe, 5*a.cfg.timing.upgrade)
				t := time.NewTimer(jitter(probe))
				defer t.Stop()
				upgrade = t.C
				continue
			}
			if !a.admit(next, c) {
				a.wg.Go(func() { next.run(ctx) })
				a.wg.Go(func() { next.retire(ctx, "another tunnel leads to the same edge") })
				upgrade = nil
				continue
			}
			a.wg.Go(func() { next.run(ctx) })
			old := c
			a.wg.Go(func() { old.retire(ctx, "TLS works again") })
			next.logger.Info("tunnel moved from quic to tls", "remote", l.target.addr)
			c, l.viaQUIC, upgrade = next, false, nil
		}
	}
}

// awaitTurn waits until the link's tunnel is needed and it may dial, and reports
// whether to.
func (l *link) awaitTurn(ctx context.Context) bool {
	for l.mayDial(ctx) {
		d, changed := l.agent.turn(l)
		if d <= 0 {
			return true
		}
		if !l.agent.sleep(ctx, d, changed) {
			return false
		}
	}
	return false
}

func (l *link) mayDial(ctx context.Context) bool {
	return ctx.Err() == nil && !isClosed(l.agent.quit)
}

// dial makes one attempt.
func (l *link) dial(ctx context.Context, with carriers) (*connection, error) {
	ctx, cancel := l.attempt(ctx)
	defer cancel()
	d, err := l.agent.dial(ctx, l.target, with)
	if err != nil {
		return nil, err
	}
	return newConnection(l.agent, d, l.name), nil
}

// attempt bounds one attempt, and ends it when draining begins.
func (l *link) attempt(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, l.agent.cfg.timing.dial)
	done := make(chan struct{})
	go func() { // ends with the attempt
		select {
		case <-l.agent.quit:
			cancel()
		case <-done:
		}
	}()
	return ctx, func() {
		close(done)
		cancel()
	}
}

// carriers decides what to try. An edge that is down refuses TCP at once, and QUIC
// would only wait in vain; so QUIC joins when TCP stays silent for a while, was
// refused several times, or did not get through last time.
func (l *link) carriers() carriers {
	switch l.agent.cfg.Transport {
	case OnlyTLS:
		return carriers{tls: true}
	case OnlyQUIC:
		return carriers{quic: true}
	}
	c := carriers{tls: true, quic: true, head: l.agent.cfg.timing.head, insist: l.failures >= 2}
	if l.viaQUIC {
		c.head, c.insist = min(c.head, 250*time.Millisecond), true
	}
	return c
}

// pause has the link wait as long as an attempt that failed with err asks for, and
// reports whether to try again.
func (l *link) pause(ctx context.Context, err error) bool {
	if !l.mayDial(ctx) {
		return false
	}
	a := l.agent
	var reject *protocol.Reject
	if errors.As(err, &reject) && reject.Code.Permanent() {
		a.logger.Error("edge refuses the agent", "remote", l.target.addr, "code", string(reject.Code), "err", reject.Reason)
		return l.pauseRefused(ctx, reject)
	}
	if reject == nil {
		l.failures++
		if l.node != "" {
			a.stumble(l.node)
		}
	}
	level := slog.LevelWarn
	if a.reaches(l.name) {
		level = slog.LevelDebug // another address of the name works, as with an edge that has one family only
	}
	d := a.postpone(l, reject)
	a.logger.Log(ctx, level, "cannot open tunnel", "remote", l.target.addr, "err", err, "retry_in", d.Round(time.Millisecond).String())
	l.tellFailed()
	return true
}

// pauseRefused waits for another token, or for a long time.
func (l *link) pauseRefused(ctx context.Context, reject *protocol.Reject) bool {
	a := l.agent
	token := a.currentToken()
	a.refuse(l.name, reject)
	until := time.Now().Add(jitter(a.cfg.timing.refused))
	for {
		_, changed := a.connected()
		if a.currentToken() != token {
			return l.mayDial(ctx)
		}
		left := time.Until(until)
		if left <= 0 {
			return l.mayDial(ctx)
		}
		if !a.sleep(ctx, left, changed) {
			return false
		}
	}
}

// awaitVacancy waits until no tunnel to node is held, or for a long time: the
// address may lead elsewhere by then.
func (l *link) awaitVacancy(ctx context.Context, node string) bool {
	a := l.agent
	until := time.Now().Add(jitter(a.cfg.timing.duplicate))
	for {
		held, changed := a.holds(node)
		left := time.Until(until)
		if !held || left <= 0 {
			return l.mayDial(ctx)
		}
		if !a.sleep(ctx, left, changed) {
			return false
		}
	}
}

func (l *link) tellFailed() {
	select {
	case l.failed <- struct{}{}:
	default:
	}
}

// depart looks after a tunnel to an edge that is going away. The edge's clients are
// told to go elsewhere too, and until they have gone their requests need this
// tunnel; so the agent goes on serving until the edge closes it. An edge that does
// not keep its own deadline is left.
func (a *Agent) depart(ctx context.Context, c *connection) {
	if c.expelled() != nil {
		_ = c.session.Close()
		return
	}
	deadline := time.Duration(c.goAway.DeadlineMillis) * time.Millisecond
	if deadline <= 0 {
		deadline = 10 * time.Second
	}
	t := time.NewTimer(deadline + a.cfg.timing.dead)
	defer t.Stop()
	select {
	case <-c.done:
	case <-a.quit: // Drain retires it
	case <-ctx.Done():
	case <-t.C:
		c.retire(ctx, "the edge is going away")
	}
}

func (a *Agent) newBackoff() *backoff.Backoff {
	t := a.cfg.timing
	return backoff.New(t.retryBase, t.retryMax, t.stable)
}

func (a *Agent) currentToken() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.token
}

// jitter is d give or take a quarter, so that agents do not act in step.
func jitter(d time.Duration) time.Duration {
	return d*3/4 + rand.N(d/2+1)
}
