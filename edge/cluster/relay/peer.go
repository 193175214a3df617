package relay

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"wormhole/edge/balance"
	"wormhole/edge/cluster/identity"
	"wormhole/edge/upstream"
	"wormhole/shared/protocol"
	"wormhole/shared/socket"
	"wormhole/shared/token"
	"wormhole/shared/tunnel"
	"wormhole/shared/tunnel/tlsmux"
)

// Health is what the session with a peer says of it.
type Health uint8

// The states. A peer whose port refuses connections is Dead: its process is gone.
const (
	Down    Health = iota // no session; it may be unreachable
	Dead                  // no session, and nobody listens there
	Suspect               // a session that has fallen silent
	Up
)

// String names the state.
func (h Health) String() string {
	return [...]string{"down", "dead", "suspect", "up"}[h]
}

const (
	dialTimeout  = 2 * time.Second
	openTimeout  = 2 * time.Second
	firstRetry   = 100 * time.Millisecond
	lastRetry    = 2 * time.Second
	beatInterval = 500 * time.Millisecond
	suspectAfter = 1500 * time.Millisecond
	// deadAfter is how long a session may be silent; a beat later what is caught in it
	// is freed. If that is for an app that no other edge reaches, the proxy has it wait
	// for a second more, and all of it must stay below 5 s.
	deadAfter = 3250 * time.Millisecond
)

var errNoSession = errors.New("no session with the edge that has this site")

// SessionMemory is the default of PeerConfig.Memory, in bytes: one session carries
// what many tunnels do.
const SessionMemory = 512 << 20

// PeerConfig says who a peer is.
type PeerConfig struct {
	Node, Region string
	// Addr says where its public door is now; empty is not known.
	Addr func() string
	// Changed is called when Health changes, and Refused when the peer said that it
	// does not reach pattern. Both must return soon.
	Changed func(Health)
	Refused func(pattern string)
	// Memory bounds, in bytes, what the session may hold for visitors who do not read;
	// 0 means SessionMemory.
	Memory int
	// Upstream configures the kept streams of each site.
	Upstream upstream.Config
}

// Peer is another edge as a place to send streams to. All methods may be called
// concurrently.
type Peer struct {
	cfg    PeerConfig
	id     *identity.Identity
	logger *slog.Logger

	health  atomic.Int32
	leaving atomic.Bool // it said that it will stop
	session atomic.Pointer[link]

	mu       sync.Mutex // guards backends
	backends map[spoken]*balance.Backend
}

// link is one session and what is open on it.
type link struct {
	session tunnel.Session
	reports *upstream.Reports
	acked   atomic.Int64 // time since start of the last word from there
	start   time.Time

	mu      sync.Mutex              // guards retired
	retired map[uint64]*atomic.Bool // by stream, while it is open: its backend drains
}

// NewPeer makes a peer. Run keeps a session with it.
func NewPeer(cfg PeerConfig, id *identity.Identity, logger *slog.Logger) *Peer {
	return &Peer{cfg: cfg, id: id, logger: logger.With("node", cfg.Node), backends: map[spoken]*balance.Backend{}}
}

// Health is what the session says now.
func (p *Peer) Health() Health { return Health(p.health.Load()) }

// Backend is the peer as a backend of the site pattern, whose apps speak
// appProtocol; the same one until Forget.
func (p *Peer) Backend(pattern, appProtocol string) *balance.Backend {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := spoken{pattern, appProtocol}
	b := p.backends[key]
	if b == nil {
		pool := upstream.New(opener{p, pattern}, p.cfg.Upstream)
		b = balance.NewBackend(balance.Info{
			ID: p.cfg.Node + "/" + pattern, Name: p.cfg.Node, Node: p.cfg.Node, Region: p.cfg.Region,
			Remote: p.cfg.Addr(), Carrier: string(tunnel.TLS), Since: time.Now(), Far: true,
			Kinds:       []string{token.KindHTTP, token.KindTCP}, // the peer knows which of its own take what
			AppProtocol: appProtocol,
		}, pool)
		p.apply(b, p.Health())
		p.backends[key] = b
	}
	return b
}

// Forget gives up the backends of a site that the peer does not reach any more.
// Requests in flight go on. If it reaches the site again, that is another backend:
// what was learnt of the old one must not count against it.
func (p *Peer) Forget(pattern string) {
	for _, b := range p.backendsOf(pattern, true) {
		b.Drain()
		b.Upstream().CloseIdle()
	}
}

// backendsOf are those that were made for a site, whatever its apps speak.
func (p *Peer) backendsOf(pattern string, forget bool) []*balance.Backend {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []*balance.Backend
	for _, appProtocol := range [...]string{"", "h2c"} {
		key := spoken{pattern, appProtocol}
		if b := p.backends[key]; b != nil {
			out = append(out, b)
			if forget {
				delete(p.backends, key)
			}
		}
	}
	return out
}

// spoken is a site and what its apps speak.
type spoken struct{ pattern, appProtocol string }

func (p *Peer) apply(b *balance.Backend, h Health) {
	// A peer that is silent is not tried: a request would wait in vain.
	b.SetReady(h == Up)
	b.SetSuspect(p.leaving.Load())
}

// SetLeaving says whether the peer is about to stop: then it is chosen only for what
// no other has, and keeps no streams that carry nothing.
func (p *Peer) SetLeaving(leaving bool) {
	if p.leaving.Swap(leaving) == leaving && !leaving {
		return
	}
	p.mu.Lock()
	backends := make([]*balance.Backend, 0, len(p.backends))
	for _, b := range p.backends {
		p.apply(b, p.Health())
		backends = append(backends, b)
	}
	p.mu.Unlock()
	if leaving {
		for _, b := range backends {
			b.Upstream().DropIdle()
		}
	}
}

func (p *Peer) setHealth(h Health) {
	if Health(p.health.Swap(int32(h))) == h {
		return
	}
	p.mu.Lock()
	for _, b := range p.backends {
		p.apply(b, h)
	}
	p.mu.Unlock()
	p.logger.Info("health of an edge changed", "health", h.String(), "remote", p.cfg.Addr())
	p.cfg.Changed(h)
}

// Run keeps a session until ctx ends.
func (p *Peer) Run(ctx context.Context) {
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, b := range p.backends {
			_ = b.Upstream().Close()
		}
	}()
	wait := firstRetry
	for {
		l, err := p.dial(ctx)
		switch {
		case ctx.Err() != nil:
			if l != nil {
				_ = l.session.Close()
			}
			return
		case err == nil:
			wait = firstRetry
			p.session.Store(l)
			p.setHealth(Up)
			p.serve(ctx, l)
			p.session.Store(nil)
			if ctx.Err() != nil {
				return
			}
			p.setHealth(Down)
			p.logger.Debug("relay session ended", "err", l.session.Err())
			continue // at once: a process that is gone refuses, and then we know
		case errors.Is(err, syscall.ECONNREFUSED):
			p.setHealth(Dead)
		default:
			p.setHealth(Down)
		}
		p.logger.Debug("no relay session", "err", err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		wait = min(2*wait, lastRetry)
	}
}

func (p *Peer) dial(ctx context.Context) (*link, error) {
	addr := p.cfg.Addr()
	if addr == "" {
		return nil, errors.New("address not known")
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	session, _, err := tlsmux.Dial(ctx, socket.Direct(conn), p.id.Client(ALPN, p.cfg.Node), &protocol.Hello{Instance: p.id.Node() + p.id.Node()},
		tlsmux.Options{ALPN: ALPN, MaxStreams: maxStreams, MaxIncoming: 16, MemoryCeiling: cmp.Or(p.cfg.Memory, SessionMemory)})
	if err != nil {
		return nil, fmt.Errorf("relay to %s: %w", addr, err)
	}
	return &link{session: session, reports: upstream.NewReports(session), start: time.Now(), retired: map[uint64]*atomic.Bool{}}, nil
}

// serve beats and listens until the session ends.
func (p *Peer) serve(ctx context.Context, l *link) {
	var wg sync.WaitGroup
	wg.Go(func() { p.listen(l) })
	wg.Go(func() { // the other edge has nothing to open
		for {
			s, err := l.session.Accept(context.Background())
			if err != nil {
				return
			}
			_ = s.Close()
		}
	})
	tick := time.NewTicker(beatInterval)
	defer tick.Stop()
	control := l.session.Control()
	for seq := uint64(1); ; seq++ {
		_ = control.SetWriteDeadline(time.Now().Add(deadAfter))
		if protocol.WriteMessage(control, protocol.TypeBeat, protocol.AppendBeat(seq)) != nil {
			break
		}
		select {
		case <-tick.C:
		case <-l.session.Done():
		case <-ctx.Done():
		}
		silence := time.Since(l.start) - time.Duration(l.acked.Load())
		if ctx.Err() != nil || isDone(l.session) || silence > deadAfter {
			break
		}
		if silence > suspectAfter {
			p.setHealth(Suspect)
		} else {
			p.setHealth(Up)
		}
	}
	_ = l.session.Close()
	wg.Wait()
}

func isDone(s tunnel.Session) bool {
	select {
	case <-s.Done():
		return true
	default:
		return false
	}
}

// listen reads control messages until the session ends.
func (p *Peer) listen(l *link) {
	for {
		typ, payload, err := protocol.ReadMessage(l.session.Control(), maxControl)
		if err != nil {
			return
		}
		l.acked.Store(int64(time.Since(l.start)))
		switch typ {
		case protocol.TypeStreamEnd:
			if end, err := protocol.DecodeStreamEnd(payload); err == nil {
				l.reports.Note(end)
			}
		case typeRetire:
			if len(payload) < 8 {
				continue
			}
			l.mu.Lock()
			retired := l.retired[binary.BigEndian.Uint64(payload)]
			l.mu.Unlock()
			if retired != nil {
				retired.Store(true)
				for _, b := range p.backendsOf(string(payload[8:]), false) {
					b.Upstream().DropIdle() // now if it is idle, else after its request
				}
			}
		}
	}
}

// opener opens streams for one site.
type opener struct {
	peer    *Peer
	pattern string
}

// OpenStream implements upstream.Opener.
func (o opener) OpenStream(ctx context.Context, h protocol.StreamHeader) (upstream.Stream, error) {
	l := o.peer.session.Load()
	if l == nil {
		return nil, errNoSession
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	raw, err := l.session.Open(ctx)
	if err != nil {
		return nil, err
	}
	var buf [512]byte
	header, err := appendHeader(buf[:0], o.pattern, h)
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	s := &Stream{Reported: l.reports.Track(raw), link: l}
	l.mu.Lock()
	l.retired[raw.ID()] = &s.retired
	l.mu.Unlock()
	if err := s.Begin(ctx, header, func() (err error) { s.backend, err = readShort(s); return err }); err != nil {
		_ = s.Close()
		var refused *upstream.Refused
		if errors.As(err, &refused) && refused.Answer == protocol.AnswerNotReady {
			o.peer.cfg.Refused(o.pattern)
		}
		return nil, err
	}
	if q, ok := raw.(upstream.Prober); ok {
		return quietStream{s, q}, nil
	}
	return s, nil
}

// quietStream is a Stream whose carrier can tell that nothing has arrived unread.
type quietStream struct {
	*Stream
	carrier upstream.Prober
}

// Quiet implements upstream.Prober: a stream to a backend that drains is not good
// for another request.
func (q quietStream) Quiet() bool { return !q.retired.Load() && q.carrier.Quiet() }

// Stream is a stream through a peer to an app.
type Stream struct {
	*upstream.Reported
	link    *link
	backend string
	retired atomic.Bool // its backend drains
}

// Backend names the backend that the peer chose.
func (s *Stream) Backend() string { return s.backend }

// Close releases the stream; see tunnel.Stream.
func (s *Stream) Close() error {
	s.link.mu.Lock()
	delete(s.link.retired, s.ID())
	s.link.mu.Unlock()
	return s.Reported.Close()
}
