package cluster

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"wormhole/edge/cluster/bus"
	"wormhole/edge/cluster/identity"
	"wormhole/edge/cluster/relay"
	"wormhole/edge/cluster/store"
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
	if c.hosted != nil {
		others = append(others, ingress.Other{
			ALPN: alpnStore, TLS: c.id.Server(alpnStore, c.allow),
			Serve: func(ctx context.Context, conn *tls.Conn) { c.hosted.Serve(ctx, conn) },
		})
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

// register writes this edge's record if it is not as it should be.
func (c *Cluster) register(ctx context.Context, mesh string) error {
	c.mu.Lock()
	addr := c.addr
	c.mu.Unlock()
	var m Member
	e, err := c.store.Get(ctx, bucketMembers, c.cfg.Node)
	switch {
	case err == nil:
		var ok bool
		if m, ok = decodeMember(e); !ok {
			return errors.New("the record of this edge is damaged")
		}
		if m.Left {
			return errors.New("this edge has left the network: remove its data directory to join again")
		}
	case errors.Is(err, store.ErrNotFound):
		m = Member{Node: c.cfg.Node, Joined: time.Now().UTC().Truncate(time.Second)}
	default:
		return err
	}
	next := m
	next.Region, next.Addr, next.Mesh, next.Store = c.cfg.Region, addr, mesh, c.hosted != nil
	c.learnMember(next)
	if next == m && err == nil {
		return nil
	}
	text, err := json.Marshal(next)
	if err != nil {
		return err
	}
	_, err = c.store.Put(ctx, bucketMembers, c.cfg.Node, text)
	return err
}

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
			c.meet(ctx)
			c.judge()
			c.tellEdges()
		case <-enter.C:
			if info, ok := c.self(); ok {
				if err := c.register(ctx, info); err != nil {
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

// self is the mesh address of this edge if its record differs from what it should be.
func (c *Cluster) self() (mesh string, differs bool) {
	if mesh = c.meshAdvertise(); mesh == "" {
		mesh = c.bus.Addr()
	}
	entries, err := c.store.List(context.Background(), bucketMembers)
	if err != nil {
		return "", false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range entries {
		if m, ok := decodeMember(e); ok && m.Node == c.cfg.Node {
			return mesh, m.Addr != c.addr || m.Mesh != mesh
		}
	}
	return mesh, true
}

// shareFiles puts the shared files into the store, where newcomers get them from.
func (c *Cluster) shareFiles(ctx context.Context) {
	for name, path := range c.cfg.SharedFiles {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // not used here
		}
		if _, err := c.store.Create(ctx, bucketCluster, filePrefix+name, text); err != nil && !errors.Is(err, store.ErrExists) {
			c.logger.Debug("file not shared", "err", err)
		}
	}
}

// followMembers keeps the list of members current.
func (c *Cluster) followMembers(ctx context.Context) {
	for ctx.Err() == nil {
		events, err := c.store.Watch(ctx, bucketMembers)
		if err != nil {
			return
		}
		for e := range events {
			if e.Kind != store.EventPut {
				continue // who is gone is marked, not deleted
			}
			if m, ok := decodeMember(e.Entry); ok {
				c.learnMember(m)
				if err := c.bus.SetRoutes(c.routes()); err != nil {
					c.logger.Warn("mesh not changed", "err", err)
				}
			}
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
}

func (c *Cluster) learnMember(m Member) {
	c.mu.Lock()
	old, known := c.members[m.Node]
	c.members[m.Node] = m
	c.mu.Unlock()
	if m.Left && (!known || !old.Left) && m.Node != c.cfg.Node {
		c.logger.Info("edge left the network", "node", m.Node)
		c.bus.Drop(m.Node)
		if c.server != nil {
			c.server.Evict(m.Node)
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
		Changed: func(relay.Health) {},
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

func (c *Cluster) heardOf(string, bus.Info) {}

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

// JoinToken makes a token with which another machine may join.
func (c *Cluster) JoinToken(ttl time.Duration) (raw string, expires time.Time, err error) {
	return c.authority.IssueJoin(identity.Fingerprint(c.id.Authority()), ttl)
}

func (c *Cluster) serveJoin(ctx context.Context, conn *tls.Conn) {
	if err := identity.ServeJoin(ctx, conn, c.admit); err != nil {
		c.logger.Warn("edge not admitted", "remote", conn.RemoteAddr().String(), "err", err)
	}
}

// admit decides on a newcomer.
func (c *Cluster) admit(ctx context.Context, req identity.Request) (*identity.Grant, error) {
	tokenID, err := c.authority.VerifyJoin(ctx, req.Token)
	if err != nil {
		return nil, err
	}
	if !identity.ValidNode(req.Node) || len(req.Region) > 64 {
		return nil, errors.New("the request names no proper node")
	}
	ca, err := c.ca(ctx)
	if err != nil {
		return nil, errors.New("the network's store cannot be reached; try again later")
	}
	cert, err := ca.Issue(req.Node, req.Key)
	if err != nil {
		return nil, err
	}
	m := Member{Node: req.Node, Region: req.Region, Joined: time.Now().UTC().Truncate(time.Second)}
	text, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	if _, err := c.store.Create(ctx, bucketMembers, req.Node, text); errors.Is(err, store.ErrExists) {
		return nil, fmt.Errorf("there is or was an edge %s: a machine that joins again needs an empty data directory", req.Node)
	} else if err != nil {
		return nil, errors.New("the network's store cannot be reached; try again later")
	}
	c.learnMember(m)
	grant := &identity.Grant{
		Network: c.authority.Audience(), Certificate: cert, Authority: c.id.Authority(), Files: map[string][]byte{},
	}
	for _, m := range c.Members() {
		if text, err := json.Marshal(m); err == nil {
			grant.Members = append(grant.Members, text)
		}
	}
	for name := range c.cfg.SharedFiles {
		if e, err := c.store.Get(ctx, bucketCluster, filePrefix+name); err == nil {
			grant.Files[name] = e.Value
		}
	}
	c.logger.Info("edge admitted", "node", req.Node, "region", req.Region, "token", tokenID)
	return grant, nil
}

// Leave makes a node a member no more: its certificate is refused from now on. The
// edge that hosts the store cannot leave.
func (c *Cluster) Leave(ctx context.Context, node string) error {
	e, err := c.store.Get(ctx, bucketMembers, node)
	if errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("there is no edge %.40q in this network", node)
	} else if err != nil {
		return err
	}
	m, ok := decodeMember(e)
	switch {
	case !ok:
		return errors.New("its record is damaged")
	case m.Store:
		return errors.New("this edge hosts the network's store and cannot leave")
	case m.Left:
		return nil
	}
	m.Left = true
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if _, err := c.store.Update(ctx, bucketMembers, node, text, e.Revision); err != nil {
		return err
	}
	c.learnMember(m)
	return nil
}

// Status describes the network as this edge sees it.
type Status struct {
	// Store is empty while the store is in step, else why not; StoreSince is since when.
	Store      string    `json:"store_fault,omitempty"`
	StoreSince time.Time `json:"store_since"`
	StoreHere  bool      `json:"store_here"`
	Mesh       string    `json:"mesh"`
	Authority  string    `json:"authority"` // fingerprint of who certifies edges
	Routes     int       `json:"routes"`    // sites that other edges reach
	Peers      []Peer    `json:"peers"`
	Carried    uint64    `json:"relayed_in"`
	Refused    uint64    `json:"relays_refused"`
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
	fault, since := c.store.Health()
	s := Status{
		StoreSince: since, StoreHere: c.hosted != nil, Mesh: c.bus.Addr(),
		Authority: identity.Fingerprint(c.id.Authority()), Routes: c.bus.Len(), Peers: []Peer{},
	}
	if fault != nil {
		s.Store = fault.Error()
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
