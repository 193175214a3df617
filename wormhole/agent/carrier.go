package agent

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
)

// maxPending bounds control messages that wait to be written. An edge that lets so
// many pile up does not read.
const maxPending = 1 << 20

// carrier is one connection of a tunnel with the control conversation on it: the
// first, with which the tunnel ends, or one that joined. The end of a stream's app
// side is reported on the connection that carries the stream. All methods but run,
// listen, speak and accept may be called concurrently.
type carrier struct {
	owner   *connection
	session tunnel.Session
	network network
	load    *tunnel.Load

	pulse    *pulse
	refusing atomic.Bool   // new streams are refused: nobody sends them rightly
	acked    chan struct{} // closed at the DrainAck
	gone     chan struct{} // closed when run has ended; nil for the first

	sendMu  sync.Mutex // guards pending
	pending bytes.Buffer
	wake    chan struct{} // something is pending
}

func newCarrier(owner *connection, d dialled) *carrier {
	return &carrier{
		owner:   owner,
		session: d.session,
		network: d.network,
		load:    tunnel.NewLoad(owner.noteBulk),
		pulse:   newPulse(),
		acked:   make(chan struct{}),
		wake:    make(chan struct{}, 1),
	}
}

// accept takes the edge's streams and does nothing else, so that it keeps up.
func (k *carrier) accept(ctx context.Context, wg *sync.WaitGroup) {
	for {
		s, err := k.session.Accept(ctx)
		if err != nil {
			return
		}
		k.owner.streams.add(1)
		wg.Go(func() {
			defer k.owner.streams.add(-1)
			k.owner.agent.forward.Serve(ctx, k.load.Track(s), k.gate, k.ended)
		})
	}
}

func (k *carrier) gate() protocol.Answer {
	switch {
	case k.refusing.Load():
		return protocol.AnswerDraining
	case !k.owner.agent.ready.Load():
		return protocol.AnswerNotReady
	}
	return protocol.AnswerOK
}

func (k *carrier) ended(e protocol.StreamEnd) { k.send(protocol.TypeStreamEnd, e.Encode()) }

// listen reads what the edge says.
func (k *carrier) listen() {
	for {
		typ, payload, err := protocol.ReadMessage(k.session.Control(), protocol.MaxMessage)
		if err == nil {
			k.pulse.heard(time.Now())
			err = k.handle(typ, payload)
		}
		if err != nil {
			k.fail(err)
			_ = k.session.Close()
			return
		}
	}
}

// handle acts on what is said on any connection; the rest concerns the tunnel and is
// said on the first.
func (k *carrier) handle(typ protocol.Type, payload []byte) error {
	switch typ {
	case protocol.TypeBeatAck:
		seq, err := protocol.DecodeBeat(payload)
		if err != nil {
			return err
		}
		k.pulse.answered(seq, time.Now())
	case protocol.TypeDrainAck:
		k.refusing.Store(true)
		closeOnce(k.acked)
	default:
		if k == k.owner.carrier {
			return k.owner.handle(typ, payload)
		}
	}
	return nil
}

// speak writes what is pending. It gathers: many ends of streams are one write.
func (k *carrier) speak(ctx context.Context) {
	var out bytes.Buffer
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.wake:
		}
		k.sendMu.Lock()
		k.pending, out = out, k.pending
		k.sendMu.Unlock()
		control := k.session.Control()
		_ = control.SetWriteDeadline(time.Now().Add(k.owner.agent.cfg.timing.deadAlways))
		if _, err := control.Write(out.Bytes()); err != nil {
			k.fail(err)
			_ = k.session.Close()
			return
		}
		if out.Cap() > 64<<10 {
			out = bytes.Buffer{}
		}
		out.Reset()
	}
}

// send queues one control message. It never blocks.
func (k *carrier) send(typ protocol.Type, v any) {
	k.sendMu.Lock()
	err := protocol.WriteMessage(&k.pending, typ, v)
	if err == nil && k.pending.Len() > maxPending {
		err = errNotRead
	}
	k.sendMu.Unlock()
	if err != nil {
		// Only the session's owner may wait for it to close, and the caller may hold
		// the agent's lock.
		k.fail(err)
		go func() { _ = k.session.Close() }() // ends when the session is closed, which run waits for
		return
	}
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

func (k *carrier) sendBeat(now time.Time) {
	k.send(protocol.TypeBeat, protocol.AppendBeat(k.pulse.next(now)))
}

// judge reports whether the edge still lives.
func (k *carrier) judge(now time.Time) bool {
	t := k.owner.agent.cfg.timing
	if k.pulse.stalled(now, 3*t.beat) {
		return true // this process was stopped for a while: ask before judging
	}
	silence := k.pulse.silence(now)
	switch {
	case silence < t.suspect:
		return true
	case silence >= t.deadAlways:
		return false
	case silence >= t.dead:
		// A beat may be stuck behind other bytes on a thin pipe. The kernel knows
		// whether the other machine still answers.
		quiet, known := k.network.quiet()
		return known && quiet < t.dead
	}
	if k.pulse.suspect() {
		k.owner.logger.Warn("edge is slow to answer", "duration", silence)
	}
	return true
}

// fail notes why the connection ends, if the tunnel ends with it.
func (k *carrier) fail(err error) {
	if k == k.owner.carrier {
		k.owner.fail(err)
		return
	}
	k.owner.logger.Debug("further connection failed", "err", err)
}

// run serves a connection that joined until its session ends, ctx does, the edge
// falls silent, or nobody needs it any more.
func (k *carrier) run(ctx context.Context) {
	defer close(k.gone)
	defer k.owner.part(k)
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer func() { _ = k.session.Close() }() // ends the three below
	defer cancel()                           // ends the streams
	wg.Go(func() { k.accept(ctx, &wg) })
	wg.Go(func() { k.listen() })
	wg.Go(func() { k.speak(ctx) })

	t := k.owner.agent.cfg.timing
	tick := time.NewTicker(t.beat)
	defer tick.Stop()
	used := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.session.Done():
			return
		case now := <-tick.C:
			if !k.judge(now) {
				k.fail(errSilent)
				return
			}
			k.sendBeat(now)
			if k.session.Streams() > 0 || k.owner.bulky() {
				used = now
			} else if now.Sub(used) > t.unused {
				// A stream that the edge opens at this moment finds the connection closed,
				// before any byte of it reached the app, and is opened on the first.
				return
			}
		}
	}
}

// noteBulk wakes run: a stream became bulk. It never blocks.
func (c *connection) noteBulk() {
	select {
	case c.bulk <- struct{}{}:
	default:
	}
}

// carriers are the connections of the tunnel, the first one first.
func (c *connection) carriers() []*carrier {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]*carrier{c.carrier}, c.joined...)
}

// openStreams counts the streams open on all connections.
func (c *connection) openStreams() int {
	n := 0
	for _, k := range c.carriers() {
		n += k.session.Streams()
	}
	return n
}

// bulky reports whether any connection carries bulk now.
func (c *connection) bulky() bool {
	for _, k := range c.carriers() {
		if k.load.Bulk() > 0 {
			return true
		}
	}
	return false
}

// crowded reports whether a short request would wait behind bulk whatever connection
// it is on, and another may be opened. moving says that the bulk has not stalled.
func (c *connection) crowded() (crowded, moving bool) {
	carriers := c.carriers()
	if c.retiring() || isClosed(c.leaving) || len(carriers) >= min(c.welcome.Connections, c.agent.cfg.Connections) {
		return false, false
	}
	for _, k := range carriers {
		if k.load.Bulk() == 0 {
			return false, false
		}
		moving = moving || k.load.BulkWithin(c.agent.cfg.timing.look) > 0
	}
	return true, moving
}

// join opens another connection for the tunnel and begins to serve it.
func (c *connection) join(ctx context.Context, wg *sync.WaitGroup) error {
	a := c.agent
	dialCtx, cancel := context.WithTimeout(ctx, a.cfg.timing.dial)
	defer cancel()
	d, err := a.dialTLS(dialCtx, c.target, &protocol.Hello{
		Token: a.currentToken(), Instance: a.instance, Version: a.cfg.Version, Tunnel: c.welcome.Tunnel,
	})
	if err != nil {
		return err
	}
	k := newCarrier(c, d)
	k.gone = make(chan struct{})
	c.mu.Lock()
	keep := !c.drained
	if keep {
		c.joined = append(c.joined, k)
	}
	n := 1 + len(c.joined)
	c.mu.Unlock()
	if !keep {
		return d.session.Close()
	}
	c.logger.Info("tunnel has a further connection, so that bulk does not delay short requests", "connections", n)
	wg.Go(func() { k.run(ctx) })
	return nil
}

// part forgets a connection that has ended.
func (c *connection) part(k *carrier) {
	c.mu.Lock()
	c.joined = slices.DeleteFunc(c.joined, func(other *carrier) bool { return other == k })
	n := 1 + len(c.joined)
	c.mu.Unlock()
	c.logger.Info("further connection of the tunnel ended", "err", k.session.Err(), "connections", n)
}
