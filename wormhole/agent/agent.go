package agent

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
)

// Forwarder joins one stream to the app until both sides have ended; see
// forward.Forwarder.Serve.
type Forwarder interface {
	Serve(ctx context.Context, stream tunnel.Stream, gate func() protocol.Answer, ended func(protocol.StreamEnd))
}

// Agent holds the tunnels of one app. All methods may be called concurrently.
type Agent struct {
	cfg      Config
	forward  Forwarder
	logger   *slog.Logger
	instance string
	sessions tls.ClientSessionCache // shared, so that reconnecting is cheap

	ready  atomic.Bool // written with mu held
	totals totals
	wg     sync.WaitGroup
	began  time.Time

	refusedAll chan *protocol.Reject

	mu        sync.Mutex // guards what follows; nothing blocks while it is held
	token     string
	reason    string // why the app is not ready
	draining  bool
	conns     map[*connection]struct{}    // all that are open
	nodes     map[string]*connection      // by node; of those that are not leaving
	prospects map[string]*prospect        // by node, as edges told us
	wanted    map[string]bool             // nodes to hold tunnels to, of a network; nil outside of one
	found     map[string]string           // by configured name: the node it led to last
	lost      map[string]time.Time        // by node: when a tunnel under a configured name was given up
	refusals  map[string]*protocol.Reject // by configured name, while it refuses for good
	rounds    rounds                      // of attempts while no tunnel is open
	changed   chan struct{}               // closed and renewed when nodes, prospects, wanted or token change
	quit      chan struct{}               // closed when draining begins
}

// New makes an agent. It does nothing until Run.
func New(cfg Config, forward Forwarder, logger *slog.Logger) (*Agent, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	a := &Agent{
		cfg:        cfg,
		forward:    forward,
		logger:     logger,
		instance:   hex.EncodeToString(id[:]),
		sessions:   tls.NewLRUClientSessionCache(2 * cfg.EdgesMax),
		refusedAll: make(chan *protocol.Reject, 1),
		token:      cfg.Token,
		reason:     "starting",
		conns:      map[*connection]struct{}{},
		nodes:      map[string]*connection{},
		prospects:  map[string]*prospect{},
		found:      map[string]string{},
		lost:       map[string]time.Time{},
		refusals:   map[string]*protocol.Reject{},
		changed:    make(chan struct{}),
		quit:       make(chan struct{}),
	}
	a.rounds = newRounds(a.newBackoff())
	return a, nil
}

// Run keeps tunnels until ctx ends; then it closes what is open, waits for it and
// returns nil. No state of the network makes it return, except that every edge
// refuses the token and Config.StopWhenRefused is set: then it returns the
// *protocol.Reject. It is called once.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer a.wg.Wait()
	defer cancel()
	a.mu.Lock()
	a.began = time.Now()
	a.mu.Unlock()

	for _, name := range a.cfg.Edges {
		a.wg.Go(func() { a.keepName(ctx, name) })
	}
	a.wg.Go(func() { a.keepTold(ctx) })

	select {
	case <-ctx.Done():
		return nil
	case reject := <-a.refusedAll:
		return reject
	}
}

// SetReady tells every edge whether the app accepts requests; reason says why not.
// Until the first call it does not.
func (a *Agent) SetReady(ready bool, reason string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if ready == a.ready.Load() && reason == a.reason {
		return
	}
	a.ready.Store(ready)
	a.reason = reason
	for c := range a.conns {
		c.sendReady(ready, reason)
	}
}

// SetToken replaces the token: open tunnels present it, and edges that had refused
// the old one are dialled again at once.
func (a *Agent) SetToken(token string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if token == a.token {
		return
	}
	a.token = token
	for c := range a.conns {
		c.send(protocol.TypeToken, protocol.TokenRefresh{Token: token})
	}
	a.announce()
}

// Drain takes the agent out of service without losing a request: no new tunnel is
// dialled, every edge is told, their acknowledgements are awaited (for a second at
// most), then the streams, and each tunnel is closed when it carries none. It
// returns nil when no tunnel is left, or the cause of ctx with tunnels still open,
// which the end of Run will close.
func (a *Agent) Drain(ctx context.Context) error {
	a.mu.Lock()
	if !a.draining {
		a.draining = true
		close(a.quit)
	}
	a.mu.Unlock()
	for {
		conns := a.open()
		if len(conns) == 0 {
			return nil
		}
		var wg sync.WaitGroup
		for _, c := range conns {
			wg.Go(func() { c.retire(ctx, "the agent is stopping") })
		}
		wg.Wait()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// Status describes the agent and its tunnels.
func (a *Agent) Status() Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := Status{Ready: a.ready.Load(), Draining: a.draining, Tunnels: []TunnelStatus{}, Totals: a.totals.read()}
	for c := range a.conns {
		s.Tunnels = append(s.Tunnels, c.status())
	}
	if len(a.nodes) == 0 {
		for _, r := range a.refusals {
			s.Refused = r.Error()
		}
	}
	return s
}

func (a *Agent) open() []*connection {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]*connection, 0, len(a.conns))
	for c := range a.conns {
		out = append(out, c)
	}
	return out
}

// announce wakes everybody who waits for a change. mu must be held.
func (a *Agent) announce() {
	close(a.changed)
	a.changed = make(chan struct{})
}

// hello is what to say to an edge now. While other tunnels are open it says that
// the app is not ready: the tunnel may turn out to lead to a node that we hold
// already, and no request should be sent into it before that is known.
func (a *Agent) hello() *protocol.Hello {
	a.mu.Lock()
	defer a.mu.Unlock()
	return &protocol.Hello{
		Token:              a.token,
		Instance:           a.instance,
		Hosts:              a.cfg.Hosts,
		Name:               a.cfg.Name,
		Tags:               a.cfg.Tags,
		Release:            a.cfg.Release,
		ReleaseDescription: a.cfg.ReleaseDescription,
		Branch:             a.cfg.Branch,
		Version:            a.cfg.Version,
		AppProtocol:        a.cfg.AppProtocol,
		Ready:              a.ready.Load() && len(a.nodes) == 0,
	}
}

// admit takes a new connection into the books and reports whether it holds its
// node. If not, another connection does, other than the one it replaces, and the
// caller retires the new one.
func (a *Agent) admit(c, replaces *connection) (holds bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.conns[c] = struct{}{}
	a.totals.opened.Add(1)
	if a.token != c.hello.Token {
		c.send(protocol.TypeToken, protocol.TokenRefresh{Token: a.token})
	}
	if holder := a.nodes[c.welcome.Node]; holder != nil && holder != replaces {
		return false
	}
	if len(a.nodes) == 0 {
		a.rounds.wait.Connected()
	}
	a.nodes[c.welcome.Node] = c
	delete(a.lost, c.welcome.Node)
	delete(a.refusals, c.name)
	if ready := a.ready.Load(); ready != c.hello.Ready {
		c.sendReady(ready, a.reason)
	}
	if c.name != "" {
		a.found[c.name] = c.welcome.Node
	}
	a.hear(time.Now())
	a.announce()
	return true
}

// vacate gives up the connection's node, so that another may hold it.
func (a *Agent) vacate(c *connection) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.nodes[c.welcome.Node] == c {
		delete(a.nodes, c.welcome.Node)
		if c.name != "" {
			a.lost[c.welcome.Node] = time.Now()
		}
		if !c.retiring() {
			a.lostNode(c.welcome.Node)
		}
		if len(a.nodes) == 0 {
			a.bereft(isClosed(c.leaving) && c.goAway.Code == "")
		}
		a.hear(time.Now())
		a.announce()
	}
}

func (a *Agent) forget(c *connection) {
	a.vacate(c)
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.conns, c)
}

// setEdges takes in what an edge says of others.
func (a *Agent) setEdges(c *connection, edges []protocol.Edge) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c.edges = edges
	a.hear(time.Now())
	a.announce()
}

// holds reports whether a connection that stays holds node, and the channel that
// is closed at the next change.
func (a *Agent) holds(node string) (bool, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.nodes[node] != nil, a.changed
}

// reaches reports whether a tunnel is open under the configured name.
func (a *Agent) reaches(name string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.nodes {
		if name != "" && c.name == name {
			return true
		}
	}
	return false
}

// connected counts the tunnels that stay.
func (a *Agent) connected() (int, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.nodes), a.changed
}

// refuse notes that name refuses us for good, and ends Run if all do.
func (a *Agent) refuse(name string, reject *protocol.Reject) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if name != "" {
		a.refusals[name] = reject
	}
	if !a.cfg.StopWhenRefused || len(a.nodes) > 0 {
		return
	}
	for _, n := range a.cfg.Edges {
		if a.refusals[n] == nil {
			return
		}
	}
	select {
	case a.refusedAll <- reject:
	default:
	}
}

// sleep waits for d, or until ctx ends, draining begins, or wake is ready (nil: d
// alone counts). It reports whether to go on.
func (a *Agent) sleep(ctx context.Context, d time.Duration, wake <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-a.quit:
		return false
	case <-wake:
		return true
	case <-t.C:
		return true
	}
}
