package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
)

// maxRejoin bounds the wait between two tries to open a further connection.
const maxRejoin = 5 * time.Minute

var (
	errSilent  = errors.New("the edge is silent")
	errNotRead = errors.New("the edge does not read control messages")
)

// connection is one open tunnel: the connection that opened it, and those that join
// while it carries bulk. run owns its goroutines; all other methods may be called
// concurrently.
type connection struct {
	*carrier // the first, whose end is the tunnel's
	agent    *Agent
	target   target
	hello    *protocol.Hello
	welcome  *protocol.Welcome
	name     string          // the configured name it was dialled under, empty if told of
	edges    []protocol.Edge // as that edge told last; guarded by Agent.mu
	since    time.Time
	logger   *slog.Logger

	leaving chan struct{} // closed at the edge's GoAway, after goAway is set
	goAway  protocol.GoAway
	done    chan struct{} // closed when run has ended
	streams counter       // being served, on all connections
	bulk    chan struct{} // a stream became bulk

	mu      sync.Mutex // guards what follows
	joined  []*carrier // the connections besides the first
	drained bool       // Drain was sent
	err     error
}

func newConnection(a *Agent, d dialled, name string) *connection {
	c := &connection{
		agent:   a,
		target:  d.target,
		hello:   d.hello,
		welcome: d.welcome,
		name:    name,
		edges:   d.welcome.Edges,
		since:   time.Now(),
		logger:  a.logger.With("node", d.welcome.Node, "tunnel", d.welcome.Tunnel),
		leaving: make(chan struct{}),
		done:    make(chan struct{}),
		bulk:    make(chan struct{}, 1),
	}
	c.carrier = newCarrier(c, d)
	return c
}

// run serves the tunnel until its session ends, ctx ends or the edge falls silent.
func (c *connection) run(ctx context.Context) {
	defer close(c.done)
	defer c.agent.forget(c)
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer func() { _ = c.session.Close() }() // ends the three below
	defer cancel()                           // ends the streams
	wg.Go(func() { c.accept(ctx, &wg) })
	wg.Go(func() { c.listen() })
	wg.Go(func() { c.speak(ctx) })

	t := c.agent.cfg.timing
	tick := time.NewTicker(t.beat)
	defer tick.Stop()
	var look <-chan time.Time // when to look whether another connection is needed
	joined := make(chan error, 1)
	joining, rejoin := false, t.rejoin
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.session.Done():
			c.fail(c.session.Err())
			return
		case <-c.bulk:
			if look == nil && !joining {
				look = time.After(t.look)
			}
		case <-look:
			look = nil
			switch crowded, moving := c.crowded(); {
			case crowded && moving:
				joining = true
				wg.Go(func() { joined <- c.join(ctx, &wg) })
			case crowded:
				look = time.After(t.look) // it may go on
			}
		case err := <-joined:
			joining = false
			if err == nil {
				rejoin = t.rejoin
				continue
			}
			c.logger.Debug("no further connection for the tunnel", "err", err, "retry_in", rejoin.String())
			look = time.After(jitter(rejoin))
			rejoin = min(2*rejoin, maxRejoin)
		case now := <-tick.C:
			if !c.judge(now) {
				c.fail(errSilent)
				return
			}
			c.sendBeat(now)
		}
	}
}

// handle acts on what the edge says of the tunnel.
func (c *connection) handle(typ protocol.Type, payload []byte) error {
	switch typ {
	case protocol.TypeEdges:
		var m protocol.Edges
		if err := protocol.Decode(payload, &m); err != nil {
			return err
		}
		c.agent.setEdges(c, m.Edges)
	case protocol.TypeGoAway:
		var m protocol.GoAway
		if err := protocol.Decode(payload, &m); err != nil {
			return err
		}
		if !isClosed(c.leaving) {
			c.goAway = m
			close(c.leaving)
		}
	case protocol.TypeTokenAck:
		var m protocol.TokenAck
		if err := protocol.Decode(payload, &m); err != nil {
			return err
		}
		if m.Reject != nil {
			c.logger.Error("edge refused the new token, the old one stays in force", "code", string(m.Reject.Code), "err", m.Reject.Reason)
		} else {
			c.logger.Info("edge accepted the new token")
		}
	}
	return nil // types of a newer edge are skipped
}

func (c *connection) sendReady(ready bool, reason string) {
	if ready {
		reason = ""
	}
	c.send(protocol.TypeReady, protocol.Ready{Ready: ready, Reason: reason})
}

// retire takes the tunnel out of service: drain, the edge's acknowledgement on every
// connection, then the streams. It closes the session when none is left and returns when the
// connection has ended or ctx has.
func (c *connection) retire(ctx context.Context, reason string) {
	c.mu.Lock()
	first := !c.drained
	c.drained = true
	c.mu.Unlock()
	c.agent.vacate(c)
	if first {
		c.send(protocol.TypeDrain, protocol.Drain{Reason: reason})
	}
	ack := time.NewTimer(c.agent.cfg.timing.ack)
	defer ack.Stop()
	for _, k := range c.carriers() {
		select {
		case <-k.acked:
		case <-k.gone:
		case <-ack.C:
			c.logger.Warn("edge did not acknowledge the drain")
			ack.Reset(0) // for the others, too
			k.refusing.Store(true)
		case <-c.done:
			return
		case <-ctx.Done():
			return
		}
	}
	if !c.waitIdle(ctx) {
		return
	}
	_ = c.session.Close()
	select {
	case <-c.done:
	case <-ctx.Done():
	}
}

// retiring reports whether we asked to go.
func (c *connection) retiring() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.drained
}

// waitIdle waits until no stream is open, and reports false if ctx ends first.
func (c *connection) waitIdle(ctx context.Context) bool {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-c.done:
			return true
		case <-ctx.Done():
			return false
		case <-c.streams.zero():
		}
		// A stream may have arrived that was not accepted yet.
		if c.openStreams() == 0 {
			return true
		}
		select {
		case <-c.done:
			return true
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
}

// fail notes why the connection ends; the first reason counts.
func (c *connection) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
}

// reason is why the connection ended.
func (c *connection) reason() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		return tunnel.ErrSessionClosed
	}
	return c.err
}

func (c *connection) status() TunnelStatus {
	return TunnelStatus{
		Node:    c.welcome.Node,
		Region:  c.welcome.Region,
		Tunnel:  c.welcome.Tunnel,
		Remote:  c.session.RemoteAddr().String(),
		Carrier: c.session.Carrier(),
		Since:   c.since,
		Streams: c.openStreams(),
		Leaving: isClosed(c.leaving) || isClosed(c.acked),
		RTT:     c.pulse.rtt(),

		Connections: len(c.carriers()),
	}
}

// ended by the edge for cause, such as a revoked token?
func (c *connection) expelled() *protocol.Reject {
	if !isClosed(c.leaving) || !c.goAway.Code.Permanent() {
		return nil
	}
	return &protocol.Reject{Code: c.goAway.Code, Reason: c.goAway.Reason}
}

// String names the connection in errors.
func (c *connection) String() string {
	return fmt.Sprintf("tunnel %s to %s", c.welcome.Tunnel, c.welcome.Node)
}

// counter counts what is open and tells when nothing is.
type counter struct {
	mu   sync.Mutex // guards what follows
	n    int
	none chan struct{} // closed while n is 0; nil is the same
}

func (k *counter) add(d int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.n == 0 {
		k.none = make(chan struct{})
	}
	if k.n += d; k.n == 0 {
		close(k.none)
	}
}

// zero is closed as soon as nothing is open.
func (k *counter) zero() <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.none == nil {
		k.none = make(chan struct{})
		close(k.none)
	}
	return k.none
}

// closeOnce closes a channel that only one goroutine closes, if it is open.
func closeOnce(c chan struct{}) {
	if !isClosed(c) {
		close(c)
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
