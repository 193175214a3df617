package agents

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"wormhole/edge/upstream"
	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
)

var errBeat = errors.New("beat of wrong length")

// carrier is one connection of a tunnel. The first carries the control conversation
// and lives as long as the tunnel; others join while there is bulk, and leave. A
// stream stays on the connection that it was opened on, and the end of its app's side
// is reported on the same. All methods may be called concurrently.
type carrier struct {
	tunnel   *Tunnel
	session  tunnel.Session
	reports  *upstream.Reports
	load     *tunnel.Load
	lastBeat atomic.Int64 // unix nanoseconds of the last sign of life on the control stream

	sendMu sync.Mutex // one control message at a time
}

func newCarrier(t *Tunnel, session tunnel.Session) *carrier {
	c := &carrier{tunnel: t, session: session, reports: upstream.NewReports(session), load: tunnel.NewLoad(nil)}
	c.lastBeat.Store(time.Now().UnixNano())
	return c
}

// heard is when the agent last gave a sign of life on this connection.
func (c *carrier) heard() time.Time { return time.Unix(0, c.lastBeat.Load()) }

// converse reads control messages until the stream ends, and returns why it did.
func (c *carrier) converse(handle func(protocol.Type, []byte) error) error {
	control := c.session.Control()
	for {
		typ, payload, err := protocol.ReadMessage(control, protocol.MaxMessage)
		if err != nil {
			return err
		}
		c.lastBeat.Store(time.Now().UnixNano())
		if err := handle(typ, payload); err != nil {
			c.tunnel.logger.Warn("bad control message from agent", "err", err)
			return err
		}
	}
}

// handleJoined acts on what is said on a connection that joined: everything that
// concerns the tunnel is said on the first.
func (c *carrier) handleJoined(typ protocol.Type, payload []byte) error {
	switch typ {
	case protocol.TypeBeat:
		if len(payload) != 8 {
			return errBeat
		}
		c.send(protocol.TypeBeatAck, payload)
	case protocol.TypeStreamEnd:
		end, err := protocol.DecodeStreamEnd(payload)
		if err != nil {
			return err
		}
		c.reports.Note(end)
	}
	return nil
}

// send writes one control message. A connection whose agent does not read is closed.
func (c *carrier) send(typ protocol.Type, v any) {
	c.sendMu.Lock()
	defer c.sendMu.Unlock()
	control := c.session.Control()
	_ = control.SetWriteDeadline(time.Now().Add(5 * time.Second))
	if err := protocol.WriteMessage(control, typ, v); err != nil && !isClosed(c.session.Done()) {
		c.tunnel.logger.Warn("agent does not take control messages, closing its connection", "err", err)
		_ = c.session.Close()
	}
}

// open opens a stream on this connection; see Tunnel.OpenStream.
func (c *carrier) open(ctx context.Context, header []byte) (upstream.Stream, error) {
	t := c.tunnel
	if most := int64(t.door.mostStreams(t.claims.Load())); t.streams.Add(1) > most {
		t.streams.Add(-1)
		return nil, fmt.Errorf("%w: %d on all its connections", tunnel.ErrTooManyStreams, most)
	}
	raw, err := c.session.Open(ctx)
	if err != nil {
		t.streams.Add(-1)
		return nil, err
	}
	s := &stream{carrier: c, tracked: c.load.Track(raw)}
	s.Reported = c.reports.Track(s.tracked)
	if err := s.Begin(ctx, header, nil); err != nil {
		_ = s.Close()
		return nil, err
	}
	if q, ok := raw.(upstream.Prober); ok {
		return quietStream{s, q}, nil
	}
	return s, nil
}

// behind reports whether this connection carries bulk and another does not, or has
// joined and fallen silent.
func (c *carrier) behind() bool {
	if c.load.Bulk() > 0 {
		return c.tunnel.choose().load.Bulk() == 0
	}
	return c != c.tunnel.first() && c.silent()
}

// silent reports whether the agent gave no sign of life for a while.
func (c *carrier) silent() bool { return time.Since(c.heard()) > c.tunnel.door.cfg.SuspectAfter }

// first is the connection that opened the tunnel.
func (t *Tunnel) first() *carrier { return (*t.carriers.Load())[0] }

// choose returns the connection for a new stream: the first if it carries no bulk, so
// that streams keep together, else one that carries none, else one that carries least.
// A stream that turns out to be bulk stays where it is, and what follows is placed
// elsewhere.
func (t *Tunnel) choose() *carrier {
	carriers := *t.carriers.Load()
	best := carriers[0]
	if len(carriers) == 1 {
		return best
	}
	least := best.load.Bulk()
	for _, c := range carriers[1:] {
		if least == 0 {
			break
		}
		if n := c.load.Bulk(); n < least && !c.silent() {
			best, least = c, n
		}
	}
	return best
}

// takePlace keeps a place for a connection that is about to join. The error is a
// *protocol.Reject.
func (t *Tunnel) takePlace() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gone {
		return noTunnel()
	}
	if t.places+1 >= t.door.cfg.Connections {
		return &protocol.Reject{
			Code: protocol.CodeTooManyTunnels, Reason: fmt.Sprintf("the tunnel has its %d connections already", t.places+1), RetryAfterMillis: 5000,
		}
	}
	t.places++
	return nil
}

func (t *Tunnel) giveUpPlace() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.places--
}

// serveJoined makes session one of the tunnel's, for which a place is kept, until it
// ends. Streams on it end with it, and the tunnel goes on.
func (t *Tunnel) serveJoined(session tunnel.Session) {
	defer t.giveUpPlace()
	c := newCarrier(t, session)
	if !t.join(c) {
		_ = session.Close()
		return
	}
	t.logger.Info("agent opened a further connection", "remote", session.RemoteAddr().String(), "connections", t.Connections())
	_ = c.converse(c.handleJoined)
	t.part(c)
	_ = session.Close()
	t.logger.Info("further connection of the agent ended", "err", session.Err(), "connections", t.Connections())
}

// join reports whether the tunnel lives and takes the connection.
func (t *Tunnel) join(c *carrier) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gone {
		return false
	}
	joined := append(slices.Clone(*t.carriers.Load()), c)
	t.carriers.Store(&joined)
	return true
}

func (t *Tunnel) part(c *carrier) {
	t.mu.Lock()
	defer t.mu.Unlock()
	left := slices.DeleteFunc(slices.Clone(*t.carriers.Load()), func(other *carrier) bool { return other == c })
	t.carriers.Store(&left)
}

// stream is an open stream of a tunnel.
type stream struct {
	*upstream.Reported
	carrier *carrier
	tracked *tunnel.Tracked
	closed  atomic.Bool
}

// Behind implements upstream.Placed.
func (s *stream) Behind() bool { return s.carrier.behind() }

// Rest implements upstream.Placed.
func (s *stream) Rest() { s.tracked.Rest() }

// Lender returns the side of the stream that lends, nil if it has none.
func (s *stream) Lender() upstream.Lender {
	if l, ok := s.tracked.Stream.(upstream.Lender); ok {
		return lender{l, s.tracked}
	}
	return nil
}

// lender lends what a stream has received, and has it counted.
type lender struct {
	upstream.Lender
	tracked *tunnel.Tracked
}

// Lend implements upstream.Lender.
func (l lender) Lend() ([]byte, error) {
	b, err := l.Lender.Lend()
	l.tracked.Took(len(b))
	return b, err
}

// Close implements tunnel.Stream.
func (s *stream) Close() error {
	err := s.Reported.Close()
	if s.closed.CompareAndSwap(false, true) {
		s.carrier.tunnel.streams.Add(-1)
	}
	return err
}

// quietStream is a stream whose carrier can tell that nothing has arrived unread.
type quietStream struct {
	*stream
	upstream.Prober
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
