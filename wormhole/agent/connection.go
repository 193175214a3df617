package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
)

// maxPending bounds control messages that wait to be written. An edge that lets so
// many pile up does not read.
const maxPending = 1 << 20

var (
	errSilent  = errors.New("the edge is silent")
	errNotRead = errors.New("the edge does not read control messages")
)

// connection is one open tunnel. run owns its goroutines; all other methods may be
// called concurrently.
type connection struct {
	agent   *Agent
	session tunnel.Session
	hello   *protocol.Hello
	welcome *protocol.Welcome
	name    string // the configured name it was dialled under, empty if told of
	network network
	since   time.Time
	logger  *slog.Logger

	pulse    *pulse
	refusing atomic.Bool   // new streams are refused: nobody sends them rightly
	acked    chan struct{} // closed at the DrainAck
	leaving  chan struct{} // closed at the edge's GoAway, after goAway is set
	goAway   protocol.GoAway
	done     chan struct{} // closed when run has ended
	streams  counter

	mu      sync.Mutex // guards what follows
	pending bytes.Buffer
	drained bool // Drain was sent
	err     error

	wake chan struct{} // something is pending
}

func newConnection(a *Agent, d dialled, name string) *connection {
	return &connection{
		agent:   a,
		session: d.session,
		hello:   d.hello,
		welcome: d.welcome,
		name:    name,
		network: d.network,
		since:   time.Now(),
		logger:  a.logger.With("node", d.welcome.Node, "tunnel", d.welcome.Tunnel),
		pulse:   newPulse(),
		acked:   make(chan struct{}),
		leaving: make(chan struct{}),
		done:    make(chan struct{}),
		wake:    make(chan struct{}, 1),
	}
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

	tick := time.NewTicker(c.agent.cfg.timing.beat)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.session.Done():
			c.fail(c.session.Err())
			return
		case now := <-tick.C:
			if !c.judge(now) {
				c.fail(errSilent)
				return
			}
			c.sendBeat(now)
		}
	}
}

// accept takes the edge's streams and does nothing else, so that it keeps up.
func (c *connection) accept(ctx context.Context, wg *sync.WaitGroup) {
	for {
		s, err := c.session.Accept(ctx)
		if err != nil {
			return
		}
		c.streams.add(1)
		wg.Go(func() {
			defer c.streams.add(-1)
			c.agent.forward.Serve(ctx, s, c.gate, c.ended)
		})
	}
}

func (c *connection) gate() protocol.Answer {
	switch {
	case c.refusing.Load():
		return protocol.AnswerDraining
	case !c.agent.ready.Load():
		return protocol.AnswerNotReady
	}
	return protocol.AnswerOK
}

func (c *connection) ended(e protocol.StreamEnd) { c.send(protocol.TypeStreamEnd, e.Encode()) }

// listen reads what the edge says.
func (c *connection) listen() {
	for {
		typ, payload, err := protocol.ReadMessage(c.session.Control(), protocol.MaxMessage)
		if err == nil {
			c.pulse.heard(time.Now())
			err = c.handle(typ, payload)
		}
		if err != nil {
			c.fail(err)
			_ = c.session.Close()
			return
		}
	}
}

func (c *connection) handle(typ protocol.Type, payload []byte) error {
	switch typ {
	case protocol.TypeBeatAck:
		seq, err := protocol.DecodeBeat(payload)
		if err != nil {
			return err
		}
		c.pulse.answered(seq, time.Now())
	case protocol.TypeDrainAck:
		c.refusing.Store(true)
		closeOnce(c.acked)
	case protocol.TypeEdges:
		var m protocol.Edges
		if err := protocol.Decode(payload, &m); err != nil {
			return err
		}
		c.agent.setEdges(m.Edges)
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

// speak writes what is pending. It gathers: many ends of streams are one write.
func (c *connection) speak(ctx context.Context) {
	var out bytes.Buffer
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		}
		c.mu.Lock()
		c.pending, out = out, c.pending
		c.mu.Unlock()
		control := c.session.Control()
		_ = control.SetWriteDeadline(time.Now().Add(c.agent.cfg.timing.deadAlways))
		if _, err := control.Write(out.Bytes()); err != nil {
			c.fail(err)
			_ = c.session.Close()
			return
		}
		if out.Cap() > 64<<10 {
			out = bytes.Buffer{}
		}
		out.Reset()
	}
}

// send queues one control message. It never blocks.
func (c *connection) send(typ protocol.Type, v any) {
	c.mu.Lock()
	err := protocol.WriteMessage(&c.pending, typ, v)
	if err == nil && c.pending.Len() > maxPending {
		err = errNotRead
	}
	c.mu.Unlock()
	if err != nil {
		// Only the session's owner may wait for it to close, and the caller may hold
		// the agent's lock.
		c.fail(err)
		go func() { _ = c.session.Close() }() // ends when the session is closed, which run waits for
		return
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *connection) sendReady(ready bool, reason string) {
	if ready {
		reason = ""
	}
	c.send(protocol.TypeReady, protocol.Ready{Ready: ready, Reason: reason})
}

func (c *connection) sendBeat(now time.Time) {
	c.send(protocol.TypeBeat, protocol.AppendBeat(c.pulse.next(now)))
}

// judge reports whether the edge still lives.
func (c *connection) judge(now time.Time) bool {
	t := c.agent.cfg.timing
	if c.pulse.stalled(now, 3*t.beat) {
		return true // this process was stopped for a while: ask before judging
	}
	silence := c.pulse.silence(now)
	switch {
	case silence < t.suspect:
		return true
	case silence >= t.deadAlways:
		return false
	case silence >= t.dead:
		// A beat may be stuck behind other bytes on a thin pipe. The kernel knows
		// whether the other machine still answers.
		quiet, known := c.network.quiet()
		return known && quiet < t.dead
	}
	if c.pulse.suspect() {
		c.logger.Warn("edge is slow to answer", "duration", silence)
	}
	return true
}

// retire takes the tunnel out of service: drain, the edge's acknowledgement, then
// the streams. It closes the session when none is left and returns when the
// connection has ended or ctx has.
func (c *connection) retire(ctx context.Context, reason string) {
	c.agent.vacate(c)
	c.mu.Lock()
	first := !c.drained
	c.drained = true
	c.mu.Unlock()
	if first {
		c.send(protocol.TypeDrain, protocol.Drain{Reason: reason})
	}
	ack := time.NewTimer(c.agent.cfg.timing.ack)
	defer ack.Stop()
	select {
	case <-c.acked:
	case <-ack.C:
		c.logger.Warn("edge did not acknowledge the drain")
		c.refusing.Store(true)
	case <-c.done:
		return
	case <-ctx.Done():
		return
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
		if c.session.Streams() == 0 {
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
		Streams: c.session.Streams(),
		Leaving: isClosed(c.leaving) || isClosed(c.acked),
		RTT:     c.pulse.rtt(),
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
