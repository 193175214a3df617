package cluster

import (
	"context"
	"crypto/tls"
	"slices"
	"time"

	"wormhole/edge/cluster/bus"
	"wormhole/edge/cluster/identity"
	"wormhole/edge/cluster/relay"
	"wormhole/edge/ingress"
)

const (
	judgeInterval = 250 * time.Millisecond
	// silentFor is how long a peer that cannot be reached must be silent on the bus
	// too before its routes are forgotten. Until then requests for what only it has
	// are refused soon and with the reason.
	silentFor = 10 * time.Minute
	// deadAfter is the same for one whose port refuses: its process is gone.
	deadAfter = 500 * time.Millisecond
)

// Live is an edge that serves.
type Live struct{ Node, Region, Addr string }

// Protocols are what the public door takes for the cluster.
func (c *Cluster) Protocols() []ingress.Other {
	others := []ingress.Other{
		{ALPN: relay.ALPN, TLS: c.id.Server(relay.ALPN, c.allow), Serve: c.server.Serve},
		{ALPN: identity.ALPNJoin, TLS: c.id.JoinServer(), Serve: c.serveJoin},
	}
	if c.cfg.External != nil {
		return others
	}
	for alpn, serve := range map[string]func(context.Context, *tls.Conn){
		alpnStore: c.serveStore, alpnMoved: c.serveMoved, alpnRoute: c.serveRoute, alpnVia: c.serveVia, alpnControl: c.serveControl,
	} {
		others = append(others, ingress.Other{ALPN: alpn, TLS: c.id.Server(alpn, c.allow), Serve: serve})
	}
	return others
}

// Announce says where this edge's public door is, once that listens. tell is called
// with the edges that serve now, this one among them, at once and when they change.
func (c *Cluster) Announce(ctx context.Context, addr string, tell func([]Live)) {
	c.mu.Lock()
	c.addr, c.edges = addr, tell
	c.mu.Unlock()
	mesh := c.meshAdvertise()
	if mesh == "" {
		mesh = c.bus.Addr()
	}
	c.bus.Describe(func(i *bus.Info) {
		i.Region, i.Addr, i.Mesh, i.Version = c.cfg.Region, addr, mesh, c.cfg.Version
	})
	if err := c.register(ctx, mesh); err != nil {
		c.logger.Warn("this edge is not entered in the store yet", "err", err)
	}
	c.tellEdges()
}

// Turns counts the turns of Run's loop, which never stops while Run does not.
func (c *Cluster) Turns() uint64 { return c.turns.Load() }

// Run keeps the parts going until ctx ends.
func (c *Cluster) Run(ctx context.Context) error {
	c.shareFiles(ctx)
	failed := make(chan error, 1)
	c.wg.Go(func() { failed <- c.bus.Run(ctx) })
	c.wg.Go(func() { c.followMembers(ctx) })
	c.meet(ctx)
	tick := time.NewTicker(judgeInterval)
	defer tick.Stop()
	enter := time.NewTicker(5 * time.Second)
	defer enter.Stop()
	for {
		select {
		case r := <-c.refused:
			c.bus.Doubt(r.pattern, r.node)
		case <-tick.C:
			c.obstruct()
			c.meet(ctx)
			c.judge()
			c.tellEdges()
			c.turns.Add(1)
		case <-enter.C:
			if info, ok := c.self(); ok {
				if err := c.registerSoon(ctx, info); err != nil {
					c.logger.Debug("this edge is not entered in the store yet", "err", err)
				}
			}
		case err := <-failed:
			return err
		case <-ctx.Done():
			c.mu.Lock()
			for _, p := range c.peers {
				p.stop()
			}
			c.mu.Unlock()
			return nil
		}
	}
}

// meet starts sessions with members that have none, and ends those of edges that
// left.
func (c *Cluster) meet(ctx context.Context) {
	came := false
	for _, m := range c.Members() {
		if m.Node == c.cfg.Node {
			continue
		}
		c.mu.Lock()
		p := c.peers[m.Node]
		switch {
		case p != nil && m.Left:
			p.stop()
			delete(c.peers, m.Node)
		case p == nil && !m.Left:
			came = true
			c.peers[m.Node] = c.startPeer(ctx, m)
		}
		c.mu.Unlock()
	}
	if came {
		c.sites.resync()
	}
}

func (c *Cluster) startPeer(ctx context.Context, m Member) *peering {
	ctx, stop := context.WithCancel(ctx)
	node := m.Node
	p := &peering{stop: stop, Peer: relay.NewPeer(relay.PeerConfig{
		Node: node, Region: m.Region, Addr: func() string { return c.addrOf(node) },
		Changed: func(relay.Health) {}, Memory: c.cfg.SessionMemory,
		Refused: func(pattern string) {
			select {
			case c.refused <- refusal{pattern, node}:
			default: // the digest corrects it
			}
		},
	}, c.id, c.logger)}
	c.wg.Go(func() { p.Run(ctx) })
	return p
}

// addrOf is where a node's public door is, by its own last word, else by the store.
func (c *Cluster) addrOf(node string) string {
	if info, ok := c.bus.Info(node); ok && info.Addr != "" {
		return info.Addr
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.members[node].Addr
}

func (c *Cluster) peer(node string) *relay.Peer {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.peers[node]; p != nil {
		return p.Peer
	}
	return nil
}

// judge forgets the routes of edges that are gone.
func (c *Cluster) judge() {
	heard := c.bus.Heard()
	var gone []string
	c.mu.Lock()
	for node, p := range c.peers {
		age, spoke := heard[node]
		dead := p.Health() == relay.Dead && age > deadAfter || p.Health() <= relay.Dead && age > silentFor
		switch {
		case !spoke:
		case dead && !p.dropped:
			p.dropped = true
			gone = append(gone, node)
		case !dead:
			p.dropped = false
		}
	}
	c.mu.Unlock()
	for _, node := range gone {
		c.logger.Warn("edge is gone, forgetting its routes", "node", node)
		c.bus.Drop(node)
	}
}

// heardOf hears what a node says of itself.
func (c *Cluster) heardOf(node string, info bus.Info) {
	c.heardOfStore(info.Store)
	if p := c.peer(node); p != nil {
		p.SetLeaving(info.Draining)
	}
}

// Edges are the edges that serve now, this one first.
func (c *Cluster) Edges() []Live {
	heard := c.bus.Heard()
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []Live
	for node, p := range c.peers {
		info, ok := c.bus.Info(node)
		age, spoke := heard[node]
		alive := p.Health() >= relay.Suspect || spoke && age < 3*time.Second && p.Health() != relay.Dead
		if !ok || !alive || info.Draining || info.Addr == "" {
			continue
		}
		out = append(out, Live{node, info.Region, info.Addr})
	}
	slices.SortFunc(out, func(a, b Live) int {
		if a.Node < b.Node {
			return -1
		}
		return 1
	})
	if c.addr != "" {
		out = slices.Insert(out, 0, Live{c.cfg.Node, c.cfg.Region, c.addr})
	}
	return out
}

func (c *Cluster) tellEdges() {
	edges := c.Edges()
	c.mu.Lock()
	tell := c.edges
	same := slices.Equal(edges, c.told)
	c.told = edges
	c.mu.Unlock()
	if tell != nil && !same {
		tell(edges)
	}
}

// Drain tells the other edges that this one is about to stop.
func (c *Cluster) Drain() { c.bus.Describe(func(i *bus.Info) { i.Draining = true }) }

// EndRelays lets what this edge carries for others end, until ctx does. It is the
// last thing before the tunnels are closed.
func (c *Cluster) EndRelays(ctx context.Context) error {
	if c.server == nil {
		return nil
	}
	return c.server.Drain(ctx)
}

// Status describes the network as this edge sees it.
type Status struct {
	// Store is empty while the store is in step, else why not; StoreSince is since when.
	Store      string    `json:"store_fault,omitempty"`
	StoreSince time.Time `json:"store_since"`
	StoreHere  bool      `json:"store_here"`
	// StoreEdges are the nodes that hold the store, one or three; StoreGeneration
	// counts where it was, 0 if it was never moved.
	StoreEdges      []string `json:"store_edges"`
	StoreGeneration uint64   `json:"store_generation,omitempty"`
	// StoreCatchingUp says that this edge is one of three and lacks something yet.
	StoreCatchingUp bool   `json:"store_catching_up,omitempty"`
	Mesh            string `json:"mesh"`
	NATS            string `json:"nats,omitempty"` // servers of others that carry bus and store
	Authority       string `json:"authority"`      // fingerprint of who certifies edges
	Routes          int    `json:"routes"`         // sites that other edges reach
	Peers           []Peer `json:"peers"`
	Carried         uint64 `json:"relayed_in"`
	Refused         uint64 `json:"relays_refused"`
}

// Peer is one other edge.
type Peer struct {
	Member
	Health   string `json:"health"` // of the relay session: up, suspect, down, dead
	Draining bool   `json:"draining,omitempty"`
	Version  string `json:"version,omitempty"`
	// HeardMillis is how long ago it was heard on the bus, -1 for never.
	HeardMillis int64 `json:"heard_ms"`
	// Sees is which edges it hears itself, and how long ago.
	Sees map[string]int64 `json:"sees,omitempty"`
}

// Status describes the network now.
func (c *Cluster) Status() Status {
	since, fault := c.store.Health()
	placement, server := c.placed()
	s := Status{
		StoreSince: since, StoreHere: server != nil, Mesh: c.bus.Addr(), StoreEdges: c.holders(), StoreGeneration: placement.Generation,
		Authority: identity.Fingerprint(c.id.Authority()), Routes: c.bus.Len(), Peers: []Peer{},
	}
	if fault != nil {
		s.Store = fault.Error()
	}
	s.StoreCatchingUp = server != nil && len(placement.Nodes) > 1 && !server.Whole()
	if c.cfg.External != nil {
		s.NATS = c.cfg.External.String()
	}
	s.Carried, s.Refused = c.server.Counts()
	heard := c.bus.Heard()
	for _, m := range c.Members() {
		if m.Node == c.cfg.Node {
			continue
		}
		p := Peer{Member: m, Health: relay.Down.String(), HeardMillis: -1}
		if peer := c.peer(m.Node); peer != nil {
			p.Health = peer.Health().String()
		}
		if age, ok := heard[m.Node]; ok {
			p.HeardMillis = age.Milliseconds()
		}
		if info, ok := c.bus.Info(m.Node); ok {
			p.Sees, p.Draining, p.Version = info.Sees, info.Draining, info.Version
		}
		s.Peers = append(s.Peers, p)
	}
	return s
}
