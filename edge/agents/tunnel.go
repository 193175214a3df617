package agents

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"wormhole/edge/balance"
	"wormhole/edge/upstream"
	"wormhole/shared/protocol"
	"wormhole/shared/token"
	"wormhole/shared/tunnel"
)

// Tunnel is one admitted agent: its session, its backend, and the control
// conversation. All methods may be called concurrently.
type Tunnel struct {
	id      string
	door    *Door
	session tunnel.Session
	hello   *protocol.Hello
	hosts   []string
	backend *balance.Backend
	pool    *upstream.Pool
	logger  *slog.Logger

	claims   atomic.Pointer[token.Claims]
	lastBeat atomic.Int64 // unix nanoseconds of the last sign of life on the control stream
	expelled atomic.Bool

	sendMu sync.Mutex // one control message at a time

	mu      sync.Mutex // guards what follows
	streams map[uint64]*Stream
	detach  []func() // undo of the registrations; nil once undone
	gone    bool     // registrations were undone for good
}

func newTunnel(d *Door, session tunnel.Session, adm *admission, carrier tunnel.Carrier) *Tunnel {
	t := &Tunnel{
		id:      adm.welcome.Tunnel,
		door:    d,
		session: session,
		hello:   adm.hello,
		hosts:   adm.hosts,
		streams: map[uint64]*Stream{},
	}
	t.hello.Token = "" // was verified, and is a good part of what an idle tunnel holds
	t.claims.Store(adm.claims)
	t.lastBeat.Store(time.Now().UnixNano())

	name := adm.hello.Name
	if name == "" {
		name = adm.claims.Name
	}
	appProtocol := adm.hello.AppProtocol
	if appProtocol == "" {
		appProtocol = adm.claims.AppProtocol
	}
	// The token's tags were given by the operator; an agent may add but not change.
	tags := map[string]string{}
	for k, v := range adm.hello.Tags {
		tags[k] = v
	}
	for k, v := range adm.claims.Tags {
		tags[k] = v
	}
	t.logger = d.logger.With("tunnel", t.id, "backend", name)
	t.pool = upstream.New(t, d.cfg.Upstream)
	t.backend = balance.NewBackend(balance.Info{
		ID:          t.id,
		Name:        name,
		Instance:    adm.hello.Instance,
		Tunnel:      t.id,
		Node:        d.cfg.Node,
		Region:      d.cfg.Region,
		TokenID:     adm.claims.ID,
		Remote:      session.RemoteAddr().String(),
		Version:     adm.hello.Version,
		Release:     adm.hello.Release,
		Branch:      adm.hello.Branch,
		AppProtocol: appProtocol,
		Carrier:     string(carrier),
		Tags:        tags,
		Since:       time.Now(),
	}, t.pool)
	t.backend.SetReady(adm.hello.Ready)
	return t
}

// Backend is the app behind the tunnel.
func (t *Tunnel) Backend() *balance.Backend { return t.backend }

// Hosts are the canonical patterns it serves.
func (t *Tunnel) Hosts() []string { return t.hosts }

// LastBeat is when the agent last gave a sign of life.
func (t *Tunnel) LastBeat() time.Time { return time.Unix(0, t.lastBeat.Load()) }

// Streams counts the streams open now.
func (t *Tunnel) Streams() int { return t.session.Streams() }

func (t *Tunnel) tokenID() string { return t.claims.Load().ID }

// serve registers the backend and converses until the session ends.
func (t *Tunnel) serve(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { _ = t.session.Close() })
	defer stop()
	t.attach()
	t.logger.Info("agent connected", "remote", t.session.RemoteAddr().String(), "hosts", t.hosts,
		"carrier", string(t.session.Carrier()), "ready", t.hello.Ready, "release", t.hello.Release, "token", t.tokenID())

	var refusing sync.WaitGroup
	if t.session.Carrier() != tunnel.TLS { // which refuses by itself
		refusing.Go(t.refuseStreams)
	}

	err := t.converse()
	t.leave()
	_ = t.session.Close()
	refusing.Wait()
	_ = t.pool.Close()
	if sessionErr := t.session.Err(); err == nil || errors.Is(err, tunnel.ErrAborted) {
		err = sessionErr
	}
	t.logger.Info("agent disconnected", "err", err, "duration", time.Since(t.backend.Info().Since))
}

// refuseStreams aborts what the agent opens, until the session ends: agents have
// nothing to open yet.
func (t *Tunnel) refuseStreams() {
	for {
		s, err := t.session.Accept(context.Background())
		if err != nil {
			return
		}
		s.Abort()
		_ = s.Close()
	}
}

// attach joins the pools of all its hosts.
func (t *Tunnel) attach() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gone || t.detach != nil {
		return
	}
	for _, h := range t.hosts {
		t.detach = append(t.detach, t.door.sites.Attach(h, t.backend))
	}
}

// leave takes the backend out of every pool, for good. Requests in flight go on.
func (t *Tunnel) leave() {
	t.backend.Drain()
	t.mu.Lock()
	detach := t.detach
	t.detach, t.gone = nil, true
	t.mu.Unlock()
	for _, f := range detach {
		f()
	}
}

// converse reads control messages until the stream ends.
func (t *Tunnel) converse() error {
	control := t.session.Control()
	for {
		typ, payload, err := protocol.ReadMessage(control, protocol.MaxMessage)
		if err != nil {
			return err
		}
		t.lastBeat.Store(time.Now().UnixNano())
		if err := t.handle(typ, payload); err != nil {
			t.logger.Warn("bad control message from agent", "err", err)
			return err
		}
	}
}

func (t *Tunnel) handle(typ protocol.Type, payload []byte) error {
	switch typ {
	case protocol.TypeBeat:
		if len(payload) != 8 {
			return errors.New("beat of wrong length")
		}
		t.backend.SetSuspect(false)
		t.send(protocol.TypeBeatAck, payload)
	case protocol.TypeReady:
		var m protocol.Ready
		if err := protocol.Decode(payload, &m); err != nil {
			return err
		}
		t.backend.SetReady(m.Ready)
		t.logger.Info("backend readiness changed", "ready", m.Ready, "reason", m.Reason)
	case protocol.TypeDrain:
		var m protocol.Drain
		if err := protocol.Decode(payload, &m); err != nil {
			return err
		}
		// After leave nobody can pick the backend; a request that was just picked and
		// finds its stream refused is sent elsewhere, so the acknowledgement is honest.
		t.leave()
		t.pool.CloseIdle()
		t.send(protocol.TypeDrainAck, nil)
		t.logger.Info("agent drains", "reason", m.Reason, "in_flight", t.backend.InFlight())
	case protocol.TypeToken:
		var m protocol.TokenRefresh
		if err := protocol.Decode(payload, &m); err != nil {
			return err
		}
		t.send(protocol.TypeTokenAck, protocol.TokenAck{Reject: t.refresh(m.Token)})
	case protocol.TypeStreamEnd:
		end, err := protocol.DecodeStreamEnd(payload)
		if err != nil {
			return err
		}
		t.mu.Lock()
		s := t.streams[end.Stream]
		t.mu.Unlock()
		if s != nil {
			s.reported(end)
		}
	}
	return nil // types of a newer agent are skipped
}

// refresh puts a new token in force if it grants all that the tunnel serves.
func (t *Tunnel) refresh(raw string) *protocol.Reject {
	claims, err := t.door.tokens.Verify(raw)
	if err == nil {
		if _, err = hostsToServe(t.hosts, claims); err == nil {
			err = t.door.reserve(claims)
		} else {
			err = asReject(err)
		}
	}
	if err != nil {
		var reject *protocol.Reject
		if !errors.As(asReject(err), &reject) {
			reject = &protocol.Reject{Code: protocol.CodeInternal, Reason: "the token could not be checked"}
		}
		return reject
	}
	old := t.claims.Swap(claims)
	t.door.release(old.ID)
	t.logger.Info("agent token refreshed", "token", claims.ID)
	t.recheck()
	return nil
}

// recheck expels the agent if its token was revoked after it was verified and
// before Revoke could find the tunnel under it.
func (t *Tunnel) recheck() {
	err := t.door.tokens.Check(t.claims.Load())
	if err == nil {
		return
	}
	code, reason := protocol.CodeInternal, "the token could not be checked"
	var te *token.Error
	if errors.As(err, &te) {
		code, reason = te.Code, te.Reason
	}
	t.expel(code, reason)
}

// judge looks at the tunnel's silence and its token's end.
func (t *Tunnel) judge(now time.Time) {
	silence := now.Sub(t.LastBeat())
	switch {
	case silence > t.door.cfg.DeadAfter:
		t.logger.Warn("agent silent, closing its tunnel", "duration", silence)
		_ = t.session.Close()
	case silence > t.door.cfg.SuspectAfter:
		t.backend.SetSuspect(true)
	}
	if exp := t.claims.Load().ExpiresAt; now.After(exp.Add(time.Minute)) {
		t.expel(protocol.CodeTokenExpired, "the token has expired")
	}
}

// expel takes the backend out at once, says why, and closes the tunnel.
func (t *Tunnel) expel(code protocol.Code, reason string) {
	if !t.expelled.CompareAndSwap(false, true) {
		return
	}
	t.leave()
	t.logger.Warn("agent expelled", "code", string(code), "reason", reason)
	t.door.wg.Add(1)
	go func() { // bounded by the write deadline in send
		defer t.door.wg.Done()
		t.send(protocol.TypeGoAway, protocol.GoAway{Code: code, Reason: reason})
		// Let the words arrive; the agent closes when it has read them.
		select {
		case <-t.session.Done():
		case <-time.After(500 * time.Millisecond):
		}
		_ = t.session.Close()
	}()
}

// send writes one control message. An agent that does not read is closed.
func (t *Tunnel) send(typ protocol.Type, v any) {
	t.sendMu.Lock()
	defer t.sendMu.Unlock()
	control := t.session.Control()
	_ = control.SetWriteDeadline(time.Now().Add(5 * time.Second))
	if err := protocol.WriteMessage(control, typ, v); err != nil {
		select {
		case <-t.session.Done():
		default:
			t.logger.Warn("agent does not take control messages, closing its tunnel", "err", err)
			_ = t.session.Close()
		}
	}
}

// OpenStream opens a stream to the app: header written, answer read. A refusal is
// *upstream.Refused; every error means that nothing reached the app.
func (t *Tunnel) OpenStream(ctx context.Context, h protocol.StreamHeader) (upstream.Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, t.door.cfg.StreamTimeout)
	defer cancel()
	raw, err := t.session.Open(ctx)
	if err != nil {
		return nil, err
	}
	s := &Stream{Stream: raw, tunnel: t, ended: make(chan struct{})}
	t.mu.Lock()
	t.streams[raw.ID()] = s
	t.mu.Unlock()
	if err := s.start(ctx, h); err != nil {
		_ = s.Close()
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
	upstream.Prober
}

// Stream is a stream of a tunnel together with the agent's report of its end.
type Stream struct {
	tunnel.Stream
	tunnel *Tunnel

	once  sync.Once
	ended chan struct{} // closed when end is set
	end   protocol.StreamEnd
}

// start sends the header and reads the answer.
func (s *Stream) start(ctx context.Context, h protocol.StreamHeader) error {
	var buf [256]byte
	header, err := protocol.AppendStreamHeader(buf[:0], h)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := s.Write(header); err != nil {
		return err
	}
	var answer [1]byte
	if _, err := s.Read(answer[:]); err != nil {
		return err
	}
	if a := protocol.Answer(answer[0]); a != protocol.AnswerOK {
		return &upstream.Refused{Answer: a}
	}
	if !stop() {
		return ctx.Err()
	}
	return nil
}

// Delivered returns how many bytes after the header the agent handed to the app,
// once the agent has reported it, and false if ctx ends or the session dies first.
func (s *Stream) Delivered(ctx context.Context) (uint64, bool) {
	select {
	case <-s.ended:
		return s.end.Delivered, true
	default:
	}
	select {
	case <-s.ended:
		return s.end.Delivered, true
	case <-s.tunnel.session.Done():
		return 0, false
	case <-ctx.Done():
		return 0, false
	}
}

func (s *Stream) reported(end protocol.StreamEnd) {
	s.once.Do(func() {
		s.end = end
		close(s.ended)
	})
}

// Close releases the stream; see tunnel.Stream.
func (s *Stream) Close() error {
	s.tunnel.mu.Lock()
	delete(s.tunnel.streams, s.ID())
	s.tunnel.mu.Unlock()
	return s.Stream.Close()
}
