// Package agents is the agents' door of an edge: it reads the hello, checks the
// token, registers the backend under the hosts it may serve, keeps the control
// conversation, and lets the tunnel go when it drains, dies or is revoked.
package agents

import (
	"context"
	crand "crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"sort"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/time/rate"

	"wormhole/edge/balance"
	"wormhole/edge/upstream"
	"wormhole/shared/hostname"
	"wormhole/shared/protocol"
	"wormhole/shared/token"
	"wormhole/shared/tunnel"
	"wormhole/shared/tunnel/quicmux"
	"wormhole/shared/tunnel/tlsmux"
)

// Config sets the limits of the door. Zero values take the defaults.
type Config struct {
	// Node, Region and Version describe this edge to agents.
	Node, Region, Version string
	// MaxTunnels is the most tunnels one token may hold on this edge when the token
	// does not say; default 1000.
	MaxTunnels int
	// MaxStreams is the most open streams of one tunnel, on all its connections; a
	// token may say less. Default 2048.
	MaxStreams int
	// Connections is how many connections a tunnel over TLS may have. An agent opens
	// more than one only while bulk would delay short requests; default 4.
	Connections int
	// Congestion is TCP's congestion control for tunnels; see tlsmux.Options.
	Congestion string
	// HellosPerSecond admits that many hellos a second and turns the others away
	// with a time to come back, so that a storm of agents does not starve visitors;
	// default 200.
	HellosPerSecond int
	// SuspectAfter is the silence after which a tunnel is chosen last; default 3 s.
	SuspectAfter time.Duration
	// DeadAfter is the silence after which a tunnel is closed; default 10 s.
	DeadAfter time.Duration
	// StreamTimeout bounds opening a stream until the agent's answer; default 5 s.
	StreamTimeout time.Duration
	// Full reports whether the edge has no memory for another agent; nil is never.
	Full func() bool
	// SessionMemory bounds what the first connection of a tunnel may hold for bytes
	// that visitors do not read; each further one may hold a quarter of it. With less
	// than the default, SessionMemory, there are no further ones.
	SessionMemory int
	// Upstream configures the kept streams of every tunnel.
	Upstream upstream.Config
}

// How a storm of agents is let in: HellosPerSecond is the default of
// Config.HellosPerSecond, and those turned away are told to come back after a time
// between BusyLeast and BusyMost.
const (
	HellosPerSecond = 200
	BusyLeast       = 500 * time.Millisecond
	BusyMost        = 5 * time.Second
)

// SessionMemory is the default of Config.SessionMemory, in bytes.
const SessionMemory = 96 << 20

func (c Config) withDefaults() Config {
	if c.SessionMemory == 0 {
		c.SessionMemory = SessionMemory
	}
	if c.MaxTunnels == 0 {
		c.MaxTunnels = 1000
	}
	if c.MaxStreams == 0 {
		c.MaxStreams = 2048
	}
	if c.Connections == 0 {
		c.Connections = 4
	}
	if c.SessionMemory < SessionMemory {
		c.Connections = 1
	}
	if c.HellosPerSecond == 0 {
		c.HellosPerSecond = HellosPerSecond
	}
	if c.SuspectAfter == 0 {
		c.SuspectAfter = 3 * protocol.BeatInterval
	}
	if c.DeadAfter == 0 {
		c.DeadAfter = 10 * time.Second
	}
	if c.StreamTimeout == 0 {
		c.StreamTimeout = 5 * time.Second
	}
	return c
}

// Tokens verifies what an agent may serve. Both work offline and return a
// *token.Error for a token they refuse. Check looks again at claims that Verify
// returned.
type Tokens interface {
	Verify(raw string) (*token.Claims, error)
	Check(claims *token.Claims) error
}

// Sites is where a backend joins the pools of its hosts.
type Sites interface {
	Attach(pattern string, b *balance.Backend) (detach func())
}

// Door admits agents. All methods may be called concurrently.
type Door struct {
	cfg    Config
	tokens Tokens
	sites  Sites
	logger *slog.Logger
	hellos *rate.Limiter

	wg sync.WaitGroup // one for every connection being served

	mu       sync.Mutex // guards what follows
	tunnels  map[string]*Tunnel
	perToken map[string]int // tunnels by token id, those being admitted included
	edges    []protocol.Edge
	draining bool
	refused  map[protocol.Code]uint64
}

// New makes a door. Run must be running for dead tunnels to be noticed.
func New(cfg Config, tokens Tokens, sites Sites, logger *slog.Logger) (*Door, error) {
	if cfg.Node == "" {
		return nil, errors.New("agents: Config.Node is empty")
	}
	cfg = cfg.withDefaults()
	return &Door{
		cfg:      cfg,
		tokens:   tokens,
		sites:    sites,
		logger:   logger,
		hellos:   rate.NewLimiter(rate.Limit(cfg.HellosPerSecond), cfg.HellosPerSecond),
		tunnels:  map[string]*Tunnel{},
		perToken: map[string]int{},
		refused:  map[protocol.Code]uint64{},
	}, nil
}

// Run watches the tunnels' beats and the ends of their tokens until ctx is done.
func (d *Door) Run(ctx context.Context) error {
	tick := time.NewTicker(protocol.BeatInterval / 2)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			for _, t := range d.Tunnels() {
				t.judge(now)
			}
		}
	}
}

// ServeTLS speaks to the agent on conn, whose handshake is done, until the
// tunnel ends, and closes conn. A connection that joins a tunnel may end before it.
func (d *Door) ServeTLS(ctx context.Context, conn *tls.Conn) {
	d.serve(ctx, conn.RemoteAddr(), tunnel.TLS, func(admit tunnel.Admit, maxStreams int) (tunnel.Session, error) {
		s, _, _, err := tlsmux.Accept(ctx, conn, admit, tlsmux.Options{
			MaxStreams: maxStreams, RefuseStreams: true, MemoryCeiling: d.cfg.SessionMemory, Congestion: d.cfg.Congestion,
		})
		return s, err
	})
}

// ServeQUIC is ServeTLS for an agent that came over QUIC.
func (d *Door) ServeQUIC(ctx context.Context, conn *quic.Conn) {
	d.serve(ctx, conn.RemoteAddr(), tunnel.QUIC, func(admit tunnel.Admit, maxStreams int) (tunnel.Session, error) {
		s, _, _, err := quicmux.Accept(ctx, conn, admit, quicmux.Options{MaxStreams: maxStreams})
		return s, err
	})
}

func (d *Door) serve(ctx context.Context, remote net.Addr, carrier tunnel.Carrier,
	accept func(tunnel.Admit, int) (tunnel.Session, error),
) {
	d.wg.Add(1)
	defer d.wg.Done()

	var (
		adm     *admission
		session tunnel.Session
		err     error
	)
	// On a goroutine of its own, so that the stack that decoding and verifying need
	// is not kept as long as the tunnel.
	var admitting sync.WaitGroup
	admitting.Go(func() {
		session, err = accept(func(_ context.Context, hello *protocol.Hello, _ net.Addr) (*protocol.Welcome, error) {
			var err error
			if hello.Tunnel != "" {
				adm, err = d.admitJoining(hello, carrier)
			} else {
				adm, err = d.admit(hello)
			}
			if err != nil {
				return nil, err
			}
			if carrier == tunnel.TLS && adm.joins == nil {
				adm.welcome.Connections = d.cfg.Connections
			}
			return adm.welcome, nil
		}, d.cfg.MaxStreams)
	})
	admitting.Wait()
	if err != nil {
		switch {
		case adm == nil:
		case adm.joins != nil:
			adm.joins.giveUpPlace()
		default:
			d.release(adm.claims.ID)
		}
		d.noteRefusal(remote, err)
		return
	}
	if adm.joins != nil {
		adm.joins.serveJoined(session)
		return
	}
	t := newTunnel(d, session, adm, carrier)
	if !d.register(t) {
		_ = session.Close()
		d.release(adm.claims.ID)
		return
	}
	defer d.unregister(t)
	t.recheck()
	t.serve(ctx)
}

// admission is a hello that was accepted and counted against its token, or, if it
// joins a tunnel, against that.
type admission struct {
	hello   *protocol.Hello
	claims  *token.Claims
	hosts   []string // canonical patterns to serve
	welcome *protocol.Welcome
	joins   *Tunnel // nil for a new tunnel; else the rest but welcome is not set
}

// let decides whether a hello is looked at now, and verifies its token.
func (d *Door) let(hello *protocol.Hello) (*token.Claims, error) {
	d.mu.Lock()
	draining := d.draining
	d.mu.Unlock()
	if draining {
		return nil, &protocol.Reject{Code: protocol.CodeDraining, Reason: "this edge is stopping; use another", RetryAfterMillis: 1000}
	}
	if d.cfg.Full != nil && d.cfg.Full() {
		return nil, &protocol.Reject{Code: protocol.CodeBusy, Reason: "this edge has no memory left", RetryAfterMillis: 1000 + rand.Int64N(4000)}
	}
	if !d.hellos.Allow() {
		// Spread the return over what the storm needs, at random, so that those turned
		// away do not come back together.
		return nil, &protocol.Reject{Code: protocol.CodeBusy, Reason: "too many agents are connecting", RetryAfterMillis: (BusyLeast + rand.N(BusyMost-BusyLeast)).Milliseconds()}
	}
	if len(hello.Instance) != 32 {
		return nil, &protocol.Reject{Code: protocol.CodeBadHello, Reason: "instance must be 32 hexadecimal digits"}
	}
	claims, err := d.tokens.Verify(hello.Token)
	if err != nil {
		return nil, asReject(err)
	}
	return claims, nil
}

// admit decides on the hello of a new tunnel. On success one tunnel is counted for
// the token, to be given back by release.
func (d *Door) admit(hello *protocol.Hello) (*admission, error) {
	claims, err := d.let(hello)
	if err != nil {
		return nil, err
	}
	hosts, err := hostsToServe(hello.Hosts, claims)
	if err != nil {
		return nil, err
	}
	switch hello.AppProtocol {
	case "", "http1", "h2c":
	default:
		return nil, &protocol.Reject{Code: protocol.CodeBadHello, Reason: fmt.Sprintf("app protocol %q is none of http1, h2c", hello.AppProtocol)}
	}
	if err := d.reserve(claims); err != nil {
		return nil, err
	}
	d.mu.Lock()
	edges := d.edges
	d.mu.Unlock()
	return &admission{
		hello: hello, claims: claims, hosts: hosts,
		welcome: &protocol.Welcome{
			Tunnel:     newID(),
			Node:       d.cfg.Node,
			Region:     d.cfg.Region,
			Hosts:      hosts,
			Edges:      edges,
			Version:    d.cfg.Version,
			MaxStreams: d.mostStreams(claims),
		},
	}, nil
}

// admitJoining decides on the hello of a connection that is to join a tunnel. On
// success it has a place there, to be given back by giveUpPlace. What a tunnel is
// called is no secret: only the agent process that opened it knows its instance, and
// the token must be the one in force. Who has not both learns nothing of the tunnel.
func (d *Door) admitJoining(hello *protocol.Hello, carrier tunnel.Carrier) (*admission, error) {
	claims, err := d.let(hello)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	t := d.tunnels[hello.Tunnel]
	d.mu.Unlock()
	if t == nil || carrier != tunnel.TLS || t.session.Carrier() != tunnel.TLS ||
		t.tokenID() != claims.ID || subtle.ConstantTimeCompare([]byte(t.hello.Instance), []byte(hello.Instance)) != 1 {
		return nil, noTunnel()
	}
	if err := t.takePlace(); err != nil {
		return nil, err
	}
	return &admission{
		joins:   t,
		welcome: &protocol.Welcome{Tunnel: t.id, Node: d.cfg.Node, Region: d.cfg.Region, Hosts: t.hosts, Version: d.cfg.Version},
	}, nil
}

// mostStreams is how many streams a tunnel with this token may have open.
func (d *Door) mostStreams(claims *token.Claims) int {
	if limit := claims.Limits.MaxStreams; limit > 0 {
		return min(limit, d.cfg.MaxStreams)
	}
	return d.cfg.MaxStreams
}

func noTunnel() *protocol.Reject {
	return &protocol.Reject{Code: protocol.CodeNoTunnel, Reason: "no tunnel of this agent that a connection could join", RetryAfterMillis: 5000}
}

// hostsToServe is asked within what the token grants; asking for nothing means
// every exact host of the token.
func hostsToServe(asked []string, claims *token.Claims) ([]string, error) {
	if len(asked) == 0 {
		var exact []string
		for _, h := range claims.Hosts {
			if h[0] != '*' {
				exact = append(exact, h)
			}
		}
		if len(exact) == 0 {
			return nil, &protocol.Reject{
				Code:   protocol.CodeHostForbidden,
				Reason: fmt.Sprintf("the token grants only wildcards %v; say which hosts to serve with WORMHOLE_HOST", claims.Hosts),
			}
		}
		return exact, nil
	}
	if len(asked) > 256 {
		return nil, &protocol.Reject{Code: protocol.CodeBadHello, Reason: "asks for more than 256 hosts"}
	}
	hosts := make([]string, 0, len(asked))
	for _, a := range asked {
		pattern, err := hostname.CanonicalPattern(a)
		if err != nil {
			return nil, &protocol.Reject{Code: protocol.CodeHostForbidden, Reason: fmt.Sprintf("host %.100q: %v", a, err)}
		}
		granted := false
		for _, g := range claims.Hosts {
			granted = granted || hostname.Covers(g, pattern)
		}
		if !granted {
			return nil, &protocol.Reject{
				Code:   protocol.CodeHostForbidden,
				Reason: fmt.Sprintf("the token does not grant %s, only %v", pattern, claims.Hosts),
			}
		}
		hosts = append(hosts, pattern)
	}
	sort.Strings(hosts)
	return hosts, nil
}

func (d *Door) reserve(claims *token.Claims) error {
	limit := d.cfg.MaxTunnels
	if claims.Limits.MaxTunnels > 0 {
		limit = claims.Limits.MaxTunnels
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.perToken[claims.ID] >= limit {
		return &protocol.Reject{
			Code:             protocol.CodeTooManyTunnels,
			Reason:           fmt.Sprintf("the token has %d tunnels to this edge already", limit),
			RetryAfterMillis: 5000,
		}
	}
	d.perToken[claims.ID]++
	return nil
}

func (d *Door) release(tokenID string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.perToken[tokenID]--; d.perToken[tokenID] <= 0 {
		delete(d.perToken, tokenID)
	}
}

func (d *Door) register(t *Tunnel) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.draining {
		return false
	}
	// The same process coming again usually means that its older tunnel is dead
	// and nobody has noticed: choose that one last until it beats.
	for _, old := range d.tunnels {
		if old.hello.Instance == t.hello.Instance {
			old.backend.SetSuspect(true)
		}
	}
	d.tunnels[t.id] = t
	return true
}

func (d *Door) unregister(t *Tunnel) {
	d.mu.Lock()
	delete(d.tunnels, t.id)
	d.mu.Unlock()
	d.release(t.tokenID())
}

// SetEdges replaces the edges that agents are told of, those connected included.
func (d *Door) SetEdges(edges []protocol.Edge) {
	d.mu.Lock()
	d.edges = edges
	d.mu.Unlock()
	for _, t := range d.Tunnels() {
		t.send(protocol.TypeEdges, protocol.Edges{Edges: edges})
	}
}

// Tunnels are the tunnels open now, in no order.
func (d *Door) Tunnels() []*Tunnel {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]*Tunnel, 0, len(d.tunnels))
	for _, t := range d.tunnels {
		out = append(out, t)
	}
	return out
}

// Revoke closes every tunnel of a token, telling its agent why.
func (d *Door) Revoke(tokenID string) {
	for _, t := range d.Tunnels() {
		if t.tokenID() == tokenID {
			t.expel(protocol.CodeTokenRevoked, "the token was revoked")
		}
	}
}

// Refusals counts the hellos refused since the start, by code.
func (d *Door) Refusals() map[protocol.Code]uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make(map[protocol.Code]uint64, len(d.refused))
	for c, n := range d.refused {
		out[c] = n
	}
	return out
}

// GoAway tells every agent that this edge will stop within deadline and admits no
// more. Agents are given different delays, up to a quarter of the deadline, so
// that they do not all reach the next edge at once. It does not wait.
func (d *Door) GoAway(deadline time.Duration) {
	d.mu.Lock()
	d.draining = true
	d.mu.Unlock()
	tunnels := d.Tunnels()
	for i, t := range tunnels {
		spread := min(deadline/4, time.Duration(len(tunnels))*10*time.Millisecond)
		t.send(protocol.TypeGoAway, protocol.GoAway{
			Reason:         "the edge is stopping",
			DelayMillis:    (spread * time.Duration(i) / time.Duration(len(tunnels))).Milliseconds(),
			DeadlineMillis: deadline.Milliseconds(),
		})
	}
}

// Close ends every tunnel at once and waits until nothing of them is left.
func (d *Door) Close() error {
	d.mu.Lock()
	d.draining = true
	d.mu.Unlock()
	for _, t := range d.Tunnels() {
		_ = t.session.Close()
	}
	d.wg.Wait()
	return nil
}

func (d *Door) noteRefusal(remote net.Addr, err error) {
	var reject *protocol.Reject
	if !errors.As(err, &reject) {
		if errors.Is(err, io.EOF) {
			return // an agent that measured how far it is, and hung up without a word
		}
		d.logger.Debug("agent connection ended before its hello", "remote", remote.String(), "err", err)
		reject = &protocol.Reject{Code: protocol.CodeBadHello}
	} else {
		d.logger.Warn("agent refused", "remote", remote.String(), "code", string(reject.Code), "err", reject.Reason)
	}
	d.mu.Lock()
	d.refused[reject.Code]++
	d.mu.Unlock()
}

func asReject(err error) error {
	var te *token.Error
	if errors.As(err, &te) {
		return &protocol.Reject{Code: te.Code, Reason: te.Reason}
	}
	return err
}

func newID() string {
	var b [8]byte
	_, _ = crand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
