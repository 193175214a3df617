package relay

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"wormhole/edge/balance"
	"wormhole/edge/cluster/identity"
	"wormhole/edge/site"
	"wormhole/edge/upstream"
	"wormhole/shared/pipe"
	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
	"wormhole/shared/tunnel/tlsmux"
)

const (
	// maxStreams is how many streams one edge may hold open at another.
	maxStreams = 1 << 14

	headerTimeout = 5 * time.Second
	// reportTimeout is how long the agent has to say how much it delivered.
	reportTimeout = 500 * time.Millisecond
)

// Sites is where the accepting edge finds a site's backends.
type Sites interface {
	Site(pattern string) (*site.Site, bool)
}

// Server accepts other edges' streams and joins them to tunnels of this edge.
type Server struct {
	id     *identity.Identity
	sites  Sites
	logger *slog.Logger

	carried atomic.Uint64 // streams joined
	refused atomic.Uint64

	mu      sync.Mutex // guards what follows
	leaving bool
	active  map[string]map[*carriage]struct{}
	guests  map[*visitor]struct{}
}

// carriage is one stream that is being carried.
type carriage struct {
	backend *balance.Backend
	from    *visitor
	stream  uint64
	told    bool // to carry no further request; guarded by Server.mu
}

// visitor is one other edge's session.
type visitor struct {
	node    string
	session tunnel.Session
	sending sync.Mutex
}

// NewServer makes a server.
func NewServer(id *identity.Identity, sites Sites, logger *slog.Logger) *Server {
	return &Server{id: id, sites: sites, logger: logger, active: map[string]map[*carriage]struct{}{}, guests: map[*visitor]struct{}{}}
}

// Counts are how many streams were carried and refused.
func (s *Server) Counts() (carried, refused uint64) { return s.carried.Load(), s.refused.Load() }

// Serve speaks to the edge on conn, whose handshake is done, until the session
// ends.
func (s *Server) Serve(ctx context.Context, conn *tls.Conn) {
	node, err := s.id.Peer(conn.ConnectionState())
	if err != nil {
		return
	}
	session, _, _, err := tlsmux.Accept(ctx, conn, func(context.Context, *protocol.Hello, net.Addr) (*protocol.Welcome, error) {
		return &protocol.Welcome{Node: s.id.Node(), Hosts: []string{}}, nil
	}, tlsmux.Options{ALPN: ALPN, MaxIncoming: 2 * maxStreams, MaxStreams: 1})
	if err != nil {
		s.logger.Debug("relay session not accepted", "node", node, "err", err)
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = session.Close() })
	defer stop()
	v := &visitor{node: node, session: session}
	s.mu.Lock()
	s.guests[v] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.guests, v)
		s.mu.Unlock()
	}()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer session.Close() // it has no error
	wg.Go(v.converse)
	for {
		stream, err := session.Accept(context.Background())
		if err != nil {
			return
		}
		wg.Go(func() { s.carry(ctx, v, stream) })
	}
}

// Evict ends the sessions of an edge that is no member any more.
func (s *Server) Evict(node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for v := range s.guests {
		if v.node == node {
			go v.session.Close() // it has no error; Serve waits for it
		}
	}
}

// converse answers beats until the session ends.
func (v *visitor) converse() {
	defer v.session.Close() // it has no error
	for {
		typ, payload, err := protocol.ReadMessage(v.session.Control(), maxControl)
		if err != nil {
			return
		}
		if typ == protocol.TypeBeat {
			v.send(protocol.TypeBeatAck, payload)
		}
	}
}

func (v *visitor) send(typ protocol.Type, payload []byte) {
	v.sending.Lock()
	defer v.sending.Unlock()
	control := v.session.Control()
	_ = control.SetWriteDeadline(time.Now().Add(5 * time.Second))
	if err := protocol.WriteMessage(control, typ, payload); err != nil {
		go v.session.Close() // it has no error, and must not wait for its own users
	}
}

// carry joins one stream to a tunnel of this edge.
func (s *Server) carry(ctx context.Context, v *visitor, stream tunnel.Stream) {
	defer stream.Close() // it has no error of interest
	_ = stream.SetReadDeadline(time.Now().Add(headerTimeout))
	pattern, header, err := readHeader(stream)
	if err != nil {
		return
	}
	_ = stream.SetReadDeadline(time.Time{})
	b, app, answer := s.open(ctx, pattern, header)
	if answer != protocol.AnswerOK {
		s.refused.Add(1)
		refuse(stream, answer)
		return
	}
	defer b.Release()
	c := &carriage{backend: b, from: v, stream: stream.ID()}
	s.enter(pattern, c)
	defer s.leave(pattern, c)
	if b.Draining() || s.isLeaving() { // it began before the line above
		s.Changed(pattern)
	}
	s.carried.Add(1)
	if _, err := stream.Write(appendAnswer(nil, protocol.AnswerOK, b.Name())); err != nil {
		_ = app.Close()
		return
	}
	passDirectly(stream, app)
	pipe.Join(ctx, stream, &reporting{Stream: app, report: func(clean bool) { v.report(stream.ID(), app, clean) }}, 0)
}

// open opens a stream to one of the site's backends here.
func (s *Server) open(ctx context.Context, pattern string, h protocol.StreamHeader) (*balance.Backend, upstream.Stream, protocol.Answer) {
	site, ok := s.sites.Site(pattern)
	if !ok {
		return nil, nil, protocol.AnswerNotReady
	}
	pool, other := site.Pool(), site.TCP()
	if h.Kind == protocol.KindTCP {
		pool, other = other, pool
	}
	answer := protocol.AnswerNotReady
	if len(other.Near()) > 0 {
		answer = protocol.AnswerUnsupported // the site is reached here, for another kind
	}
	var tried []*balance.Backend
	for range 3 {
		b := pool.PickNear(tried...)
		if b == nil {
			break
		}
		app, err := b.Upstream().OpenStream(ctx, h)
		if err == nil {
			b.Report(balance.Served)
			return b, app, protocol.AnswerOK
		}
		var refused *upstream.Refused
		switch {
		case errors.Is(err, tunnel.ErrTooManyStreams):
			answer = protocol.AnswerFull
		case errors.As(err, &refused):
			answer = refused.Answer
		}
		if answer != protocol.AnswerFull {
			b.Report(balance.Unreachable)
		}
		b.Release()
		tried = append(tried, b)
	}
	return nil, nil, answer
}

// passDirectly has what comes on either stream written to the other by the goroutine
// that receives it, as long as it is short and there is room. Join does the rest: what
// is long, what has to wait, and the ends.
func passDirectly(a, b tunnel.Stream) {
	direct, back := tunnel.DirectOf(a), tunnel.DirectOf(b)
	if direct == nil || back == nil {
		return
	}
	direct.PassTo(back)
	back.PassTo(direct)
}

// refuse answers and lets the answer arrive.
func refuse(stream tunnel.Stream, a protocol.Answer) {
	_ = stream.SetWriteDeadline(time.Now().Add(headerTimeout))
	if _, err := stream.Write(appendAnswer(nil, a, "")); err != nil || stream.CloseWrite() != nil {
		return
	}
	_ = stream.SetReadDeadline(time.Now().Add(headerTimeout))
	_, _ = io.Copy(io.Discard, stream)
}

// reporting is an app's stream that tells its end before the other edge sees it.
type reporting struct {
	upstream.Stream
	once   sync.Once
	report func(clean bool)
}

func (r *reporting) Read(p []byte) (int, error) {
	n, err := r.Stream.Read(p)
	if err != nil {
		r.once.Do(func() { r.report(errors.Is(err, io.EOF)) })
	}
	return n, err
}

// report passes on what the agent said of a stream's end.
func (v *visitor) report(stream uint64, app upstream.Stream, clean bool) {
	ctx, cancel := context.WithTimeout(context.Background(), reportTimeout)
	defer cancel()
	if n, ok := app.Delivered(ctx); ok {
		v.send(protocol.TypeStreamEnd, protocol.StreamEnd{Stream: stream, Delivered: n, Clean: clean}.Encode())
	}
}

func (s *Server) enter(pattern string, c *carriage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.active[pattern] == nil {
		s.active[pattern] = map[*carriage]struct{}{}
	}
	s.active[pattern][c] = struct{}{}
}

func (s *Server) leave(pattern string, c *carriage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.active[pattern], c)
	if len(s.active[pattern]) == 0 {
		delete(s.active, pattern)
	}
}

func (s *Server) isLeaving() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leaving
}

// Drain asks the other edges to put no further request on the streams carried here,
// and waits until they have ended. It returns ctx's error if that ends first.
func (s *Server) Drain(ctx context.Context) error {
	s.mu.Lock()
	s.leaving = true
	patterns := make([]string, 0, len(s.active))
	for pattern := range s.active {
		patterns = append(patterns, pattern)
	}
	s.mu.Unlock()
	for _, pattern := range patterns {
		s.Changed(pattern)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		s.mu.Lock()
		carries := len(s.active) > 0
		s.mu.Unlock()
		if !carries {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Changed looks whether backends of a site drain, and asks the edges that keep
// streams to them to let those go. It does not block.
func (s *Server) Changed(pattern string) {
	var tell map[*visitor][]uint64
	s.mu.Lock()
	for c := range s.active[pattern] {
		if !c.told && (s.leaving || c.backend.Draining()) {
			c.told = true
			if tell == nil {
				tell = map[*visitor][]uint64{}
			}
			tell[c.from] = append(tell[c.from], c.stream)
		}
	}
	s.mu.Unlock()
	for v, streams := range tell {
		go v.retire(pattern, streams) // bounded by the write deadlines
	}
}

func (v *visitor) retire(pattern string, streams []uint64) {
	for _, id := range streams {
		v.send(typeRetire, append(binary.BigEndian.AppendUint64(nil, id), pattern...))
	}
}
