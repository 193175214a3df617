package agents

import (
	"context"
	"errors"
	"fmt"
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

// Tunnel is one admitted agent: its connections, its backend, and the control
// conversation. All methods may be called concurrently.
type Tunnel struct {
	id      string
	door    *Door
	session tunnel.Session // of the first connection, whose end is the tunnel's
	hello   *protocol.Hello
	hosts   []string
	backend *balance.Backend
	pool    *upstream.Pool
	logger  *slog.Logger

	claims   atomic.Pointer[token.Claims]
	expelled atomic.Bool
	carriers atomic.Pointer[[]*carrier] // the first connection and those that joined; written with mu held
	streams  atomic.Int64               // open, on all connections

	mu     sync.Mutex // guards what follows
	places int        // connections that joined or are about to
	detach []func()   // undo of the registrations; nil once undone
	gone   bool       // registrations were undone for good
}

func newTunnel(d *Door, session tunnel.Session, adm *admission, carrierName tunnel.Carrier) *Tunnel {
	t := &Tunnel{
		id:      adm.welcome.Tunnel,
		door:    d,
		session: session,
		hello:   adm.hello,
		hosts:   adm.hosts,
	}
	t.hello.Token = "" // was verified, and is a good part of what an idle tunnel holds
	t.claims.Store(adm.claims)
	t.carriers.Store(&[]*carrier{newCarrier(t, session)})

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
		Kinds:       adm.claims.Kinds,
		AppProtocol: appProtocol,
		Carrier:     string(carrierName),
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

// LastBeat is when the agent last gave a sign of life on the first connection.
func (t *Tunnel) LastBeat() time.Time { return t.first().heard() }

// Streams counts the streams open now.
func (t *Tunnel) Streams() int {
	n := 0
	for _, c := range *t.carriers.Load() {
		n += c.session.Streams()
	}
	return n
}

// Connections counts the connections open now; at least one.
func (t *Tunnel) Connections() int { return len(*t.carriers.Load()) }

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

	err := t.first().converse(t.handle)
	t.leave() // no connection joins any more
	for _, c := range *t.carriers.Load() {
		_ = c.session.Close()
	}
	refusing.Wait()
	_ = t.pool.Close()
	if errors.Is(err, tunnel.ErrAborted) {
		err = t.session.Err()
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

func (t *Tunnel) handle(typ protocol.Type, payload []byte) error {
	switch typ {
	case protocol.TypeBeat:
		if len(payload) != 8 {
			return errBeat
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
		// What is sent on one connection may overtake what is sent on another.
		for _, c := range *t.carriers.Load() {
			c.send(protocol.TypeDrainAck, nil)
		}
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
		t.first().reports.Note(end)
	}
	return nil // types of a newer agent are skipped
}

// refresh puts a new token in force if it grants all that the tunnel serves.
func (t *Tunnel) refresh(raw string) *protocol.Reject {
	claims, err := t.door.tokens.Verify(raw)
	if err == nil {
		_, err = hostsToServe(t.hosts, claims)
	}
	if err == nil {
		err = t.kindsWithin(claims)
	}
	if err == nil {
		err = t.door.reserve(claims)
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

// kindsWithin refuses claims that do not grant every kind that the tunnel serves.
func (t *Tunnel) kindsWithin(claims *token.Claims) error {
	for _, kind := range t.backend.Info().Kinds {
		if !claims.AllowsKind(kind) {
			return &protocol.Reject{Code: protocol.CodeHostForbidden, Reason: fmt.Sprintf("the token does not grant %s, which this tunnel serves: restart the agent with it", kind)}
		}
	}
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
	for _, c := range (*t.carriers.Load())[1:] {
		if silence := now.Sub(c.heard()); silence > t.door.cfg.DeadAfter {
			t.logger.Warn("agent silent on a further connection, closing that", "duration", silence)
			_ = c.session.Close()
		}
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

// send writes one control message on the first connection.
func (t *Tunnel) send(typ protocol.Type, v any) { t.first().send(typ, v) }

// OpenStream opens a stream to the app: header written, answer read. A refusal is
// *upstream.Refused; every error means that nothing reached the app.
func (t *Tunnel) OpenStream(ctx context.Context, h protocol.StreamHeader) (upstream.Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, t.door.cfg.StreamTimeout)
	defer cancel()
	var buf [256]byte
	header, err := protocol.AppendStreamHeader(buf[:0], h)
	if err != nil {
		return nil, err
	}
	c := t.choose()
	s, err := c.open(ctx, header)
	if err != nil && c != t.first() && isClosed(c.session.Done()) {
		return t.first().open(ctx, header) // the connection died, the tunnel lives
	}
	return s, err
}
