package cluster

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"wormhole/edge/authority"
	"wormhole/edge/cluster/identity"
	"wormhole/edge/cluster/store"
)

// Member is one edge of the network, as the store has it.
type Member struct {
	Node   string `json:"node"`
	Region string `json:"region,omitempty"`
	// Addr is its public door, Mesh that of its mesh, host:port; empty until it has
	// started once.
	Addr string `json:"addr,omitempty"`
	Mesh string `json:"mesh,omitempty"`
	// Store says that it hosts the store.
	Store  bool      `json:"store,omitempty"`
	Joined time.Time `json:"joined"`
	// Left says that it is a member no more; its certificate is worth nothing.
	Left bool `json:"left,omitempty"`
}

// join gets this edge a certificate from a member.
func (c *Cluster) join(ctx context.Context) error {
	text, err := os.ReadFile(c.cfg.JoinTokenFile)
	if err != nil {
		return fmt.Errorf("join_token_file: %w", err)
	}
	token := strings.TrimSpace(string(text))
	pin, err := authority.PeekJoin(token)
	if err != nil {
		return err
	}
	id, grant, err := identity.Join(ctx, c.cfg.Join, pin, identity.Request{
		Token: token, Node: c.cfg.Node, Region: c.cfg.Region,
	})
	if err != nil {
		return err
	}
	for name, path := range c.cfg.SharedFiles {
		text, ok := grant.Files[name]
		if !ok {
			continue
		}
		if err := writeNew(path, text); err != nil {
			return err
		}
	}
	var placement Placement
	if json.Unmarshal(grant.Store, &placement) == nil && placement.valid() {
		if err := savePlacement(c.cfg.Dir, placement); err != nil {
			return err
		}
	}
	seeds, err := json.Marshal(grant.Members)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(c.cfg.Dir, seedsFile), seeds, 0o600); err != nil {
		return err
	}
	if err := id.Save(c.cfg.Dir); err != nil {
		return err
	}
	c.id = id
	c.logger.Info("edge joined the network", "network", grant.Network, "members", len(grant.Members))
	return nil
}

// writeNew writes a file that does not exist yet.
func writeNew(path string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	} else if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Sync(), f.Close())
}

// readSeeds takes in the members that were known at the join.
func (c *Cluster) readSeeds() {
	text, err := os.ReadFile(filepath.Join(c.cfg.Dir, seedsFile))
	var list []Member
	if err != nil || json.Unmarshal(text, &list) != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range list {
		c.members[m.Node] = m
	}
}

func (c *Cluster) readMembers(ctx context.Context) error {
	entries, err := c.store.List(ctx, bucketMembers)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range entries {
		if m, ok := decodeMember(e); ok {
			c.members[m.Node] = m
		}
	}
	return nil
}

func decodeMember(e store.Entry) (Member, bool) {
	var m Member
	err := json.Unmarshal(e.Value, &m)
	return m, err == nil && m.Node == e.Key && identity.ValidNode(m.Node)
}

// allow refuses nodes that are no members.
func (c *Cluster) allow(node string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, ok := c.members[node]
	switch {
	case !ok:
		return fmt.Errorf("the edge %s is not known here", node)
	case m.Left:
		return fmt.Errorf("the edge %s has left the network", node)
	}
	return nil
}

// Members lists the edges that are or were members, by id.
func (c *Cluster) Members() []Member {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]Member, 0, len(c.members))
	for _, m := range c.members {
		if c.placement.Generation > 0 { // records of members follow
			m.Store = slices.Contains(c.placement.Nodes, m.Node)
		}
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b Member) int { return strings.Compare(a.Node, b.Node) })
	return out
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
	_, server := c.placed()
	next.Region, next.Addr, next.Mesh, next.Store = c.cfg.Region, addr, mesh, server != nil
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

// registerSoon is register without patience: the loop that calls it must go on.
func (c *Cluster) registerSoon(ctx context.Context, mesh string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return c.register(ctx, mesh)
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
			return mesh, m.Addr != c.addr || m.Mesh != mesh || m.Store != (c.hosted != nil)
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
	if p, _ := c.placed(); p.Generation > 0 {
		if grant.Store, err = json.Marshal(p); err != nil {
			return nil, err
		}
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

// Leave makes a node a member no more: its certificate is refused from now on. An
// edge that hosts the store cannot leave before another did Replace it.
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
	case slices.Contains(c.holders(), node):
		return errors.New("this edge hosts the network's store and cannot leave; if three do, another may take its place: edge cluster replace")
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
