// Package agents is the agents' door of an edge: it reads the hello, checks the
// token, registers the backend under the hosts it may serve, keeps the control
// conversation, and lets the tunnel go when it drains, dies or is revoked.
package agents

import (
	"context"
	crand "crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
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
	// MaxStreams is the most open streams of one tunnel when the token does not
	// say; default 2048.
	MaxStreams int
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
	// Upstream configures the kept streams of every tunnel.
	Upstream upstream.Config
}

func (c Config) withDefaults() Config {
	if c.MaxTunnels == 0 {
		c.MaxTunnels = 1000
	}
	if c.MaxStreams == 0 {
		c.MaxStreams = 2048
	}
	if c.HellosPerSecond == 0 {
		c.HellosPerSecond = 200
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

	wg sync.WaitGroup // one for every tunnel being served

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
// tunnel ends, and closes conn.
func (d *Door) ServeTLS(ctx context.Context, conn *tls.Conn) {
	d.serve(ctx, conn.RemoteAddr(), tunnel.TLS, func(admit tunnel.Admit, maxStreams int) (tunnel.Session, error) {
		s, _, _, err := tlsmux.Accept(ctx, conn, admit, tlsmux.Options{MaxStreams: maxStreams, RefuseStreams: true})
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
			if adm, err = d.admit(hello); err != nil {
				return nil, err
			}
			return adm.welcome, nil
		}, d.cfg.MaxStreams)
	})
	admitting.Wait()
	if err != nil {
		if adm != nil {
			d.release(adm.claims.ID)
		}
		d.noteRefusal(remote, err)
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

// admission is a hello that was accepted and counted against its token.
type admission struct {
	hello   *protocol.Hello
	claims  *token.Claims
	hosts   []string // canonical patterns to serve
	welcome *protocol.Welcome
}

// admit decides on a hello. On success one tunnel is counted for the token, to be
// given back by release.
func (d *Door) admit(hello *protocol.Hello) (*admission, error) {
	d.mu.Lock()
	draining, edges := d.draining, d.edges
	d.mu.Unlock()
	if draining {
		return nil, &protocol.Reject{Code: protocol.CodeDraining, Reason: "this edge is stopping; use another", RetryAfterMillis: 1000}
	}
	if !d.hellos.Allow() {
		// Spread the return over what the storm needs, at random, so that those turned
		// away do not come back together.
		return nil, &protocol.Reject{Code: protocol.CodeBusy, Reason: "too many agents are connecting", RetryAfterMillis: 500 + rand.Int64N(4500)}
	}
	if hello.Tunnel != "" {
		return nil, &protocol.Reject{Code: protocol.CodeBadHello, Reason: "this edge takes one connection a tunnel"}
	}
	if len(hello.Instance) != 32 {
		return nil, &protocol.Reject{Code: protocol.CodeBadHello, Reason: "instance must be 32 hexadecimal digits"}
	}
	claims, err := d.tokens.Verify(hello.Token)
	if err != nil {
		return nil, asReject(err)
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
	return &admission{
		hello: hello, claims: claims, hosts: hosts,
		welcome: &protocol.Welcome{
			Tunnel:     newID(),
			Node:       d.cfg.Node,
			Region:     d.cfg.Region,
			Hosts:      hosts,
			Edges:      edges,
			Version:    d.cfg.Version,
			MaxStreams: d.cfg.MaxStreams,
		},
	}, nil
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
