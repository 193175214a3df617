package cluster

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"wormhole/edge/backup"
	"wormhole/edge/cluster/identity"
	"wormhole/edge/cluster/kv"
	"wormhole/edge/cluster/store"
)

// openStore opens the mirror and connects to the store, which it hosts if that is
// this edge's part.
func (c *Cluster) openStore(ctx context.Context, first bool) error {
	hosted := filepath.Join(c.cfg.Dir, hostedDir)
	_, statErr := os.Stat(hosted)
	var err error
	if c.placement, err = loadPlacement(c.cfg.Dir); err != nil {
		return err
	}
	mine := first || statErr == nil
	if c.placement.Generation > 0 {
		mine = slices.Contains(c.placement.Nodes, c.cfg.Node)
	}
	alone := mine && len(c.placement.Nodes) != kv.Replicas
	if c.cfg.External != nil {
		if mine && !first {
			return fmt.Errorf("this edge hosts the network's store in %s: take a backup, and restore it before you start with --nats", hosted)
		}
		if err := c.cfg.External.Prepare(ctx, first); err != nil {
			if first {
				return err
			}
			c.logger.Warn("store cannot be used now", "err", err)
		}
	} else {
		if !mine {
			c.readSeeds()
		}
		// What was left of the time before it was moved from here.
		if statErr == nil && !alone {
			if err := os.RemoveAll(hosted); err != nil {
				return err
			}
		}
		if alone {
			floor, err := c.floor(ctx, first)
			if err != nil {
				return err
			}
			server, err := kv.StartServer(hosted, floor, c.logger)
			if err != nil {
				return err
			}
			c.hosted = server
			c.wg.Go(func() { server.Tend(c.running) })
		}
	}
	c.store, err = kv.Open(kv.Config{
		Dial: c.dialStore, Why: c.whyAway, External: c.cfg.External, Mirror: filepath.Join(c.cfg.Dir, mirrorDir), Pushed: c.pushed,
	}, c.logger)
	if err != nil {
		return err
	}
	if err := c.readMembers(ctx); err != nil { // from the mirror
		return err
	}
	if c.cfg.External == nil {
		if err := c.openParts(); err != nil {
			return err
		}
	}
	// The store must be followed before anything that reads it can be opened.
	c.wg.Go(func() { _ = c.store.Run(c.running) })

	patience := time.Second
	if alone {
		patience = 5 * time.Second // it may have much to read
	}
	if first || c.store.Empty() {
		patience = 20 * time.Second
	}
	wait := time.NewTimer(patience)
	defer wait.Stop()
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for {
		select {
		case <-c.store.Fresh():
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-look.C:
			// A damaged store is no reason not to serve what this edge knows.
			if _, fault := c.store.Health(); errors.Is(fault, store.ErrCorrupt) && !first && !c.store.Empty() {
				return nil
			}
		case <-wait.C:
			if first || c.store.Empty() {
				_, fault := c.store.Health()
				return fmt.Errorf("the network's store did not answer within %s, and this edge knows nothing of it yet: %w", patience, fault)
			}
			c.logger.Warn("store cannot be reached, starting from the mirror")
			return nil
		}
	}
}

// found makes this edge the first of a network.
func (c *Cluster) found(ctx context.Context) error {
	ca, err := c.ca(ctx)
	if c.cfg.External == nil || errors.Is(err, store.ErrNotFound) {
		if err := c.takeOver(ctx); err != nil {
			return err
		}
		if err := c.solePlacement(ctx); err != nil {
			return err
		}
		if err := c.soleHost(ctx); err != nil {
			return err
		}
		ca, err = c.ca(ctx)
	}
	if errors.Is(err, store.ErrNotFound) {
		ca, err = c.makeCA(ctx)
	}
	if err != nil {
		return err
	}
	if c.cfg.External != nil {
		if err := c.enter(ctx); err != nil {
			return err
		}
	}
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	cert, err := ca.Issue(c.cfg.Node, public)
	if err != nil {
		return err
	}
	if c.id, err = identity.New(key, cert, ca.Certificate()); err != nil {
		return err
	}
	return c.id.Save(c.cfg.Dir)
}

// makeCA makes the authority over edges, or reads the one that another edge made at
// the same time.
func (c *Cluster) makeCA(ctx context.Context) (*identity.CA, error) {
	ca, err := identity.NewCA(c.cfg.Node)
	if err != nil {
		return nil, err
	}
	text, err := ca.PEM()
	if err != nil {
		return nil, err
	}
	if err := c.createAtStart(ctx, bucketCluster, keyCA, text); errors.Is(err, store.ErrExists) {
		return c.ca(ctx)
	} else if err != nil {
		return nil, err
	}
	return ca, nil
}

// createAtStart is Create with patience: servers that have just made the bucket are
// choosing its leader, and nobody starts an edge again for that. ErrExists may mean
// that a try before was heard and its answer was not.
func (c *Cluster) createAtStart(ctx context.Context, bucket, key string, value []byte) error {
	for end := time.Now().Add(10 * time.Second); ; {
		_, err := c.store.Create(ctx, bucket, key, value)
		if !errors.Is(err, store.ErrUnavailable) || time.Now().After(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// enter makes this edge a member without a join: whoever may use the NATS cluster can
// read the authority's key.
func (c *Cluster) enter(ctx context.Context) error {
	for name, path := range c.cfg.SharedFiles {
		e, err := c.store.Get(ctx, bucketCluster, filePrefix+name)
		if errors.Is(err, store.ErrNotFound) {
			continue
		} else if err != nil {
			return err
		}
		if err := writeNew(path, e.Value); err != nil {
			return err
		}
	}
	text, err := json.Marshal(Member{Node: c.cfg.Node, Region: c.cfg.Region, Joined: time.Now().UTC().Truncate(time.Second)})
	if err != nil {
		return err
	}
	err = c.createAtStart(ctx, bucketMembers, c.cfg.Node, text)
	if !errors.Is(err, store.ErrExists) {
		return err
	}
	e, err := c.store.Get(ctx, bucketMembers, c.cfg.Node)
	if m, ok := decodeMember(e); err == nil && (!ok || m.Left) {
		return errors.New("this edge has left the network: remove its data directory to be a new one")
	}
	return err
}

// afterRestore is how far revisions may have gone on after a backup was made.
const afterRestore = 1 << 32

// floor is what revisions of a new store must be above: 0, unless a network was
// restored here, of which other edges may remember later revisions than the backup.
func (c *Cluster) floor(ctx context.Context, first bool) (uint64, error) {
	if _, err := os.Stat(c.cfg.Import); err != nil || !first {
		return 0, nil
	}
	old, err := store.OpenDir(c.cfg.Import)
	if err != nil {
		return 0, err
	}
	defer old.Close() // read only
	e, err := old.Get(ctx, backup.FloorBucket, backup.FloorKey)
	if errors.Is(err, store.ErrNotFound) {
		return 0, nil
	} else if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(string(e.Value), 10, 63)
	if err != nil {
		return 0, fmt.Errorf("revision of the restored store: %w", err)
	}
	return n + afterRestore, nil
}

// soleHost marks this edge as the one host of the store: others may have been in a
// backup.
func (c *Cluster) soleHost(ctx context.Context) error {
	entries, err := c.store.List(ctx, bucketMembers)
	if err != nil {
		return err
	}
	for _, e := range entries {
		m, ok := decodeMember(e)
		if !ok || m.Store == (m.Node == c.cfg.Node && c.cfg.External == nil) {
			continue
		}
		m.Store = !m.Store
		text, err := json.Marshal(m)
		if err != nil {
			return err
		}
		if _, err := c.store.Update(ctx, bucketMembers, m.Node, text, e.Revision); err != nil {
			return err
		}
	}
	return nil
}

// solePlacement begins a new generation of a store that was on three edges when the
// backup was made that is restored here: they, and all others, follow.
func (c *Cluster) solePlacement(ctx context.Context) error {
	e, err := c.store.Get(ctx, bucketCluster, keyPlacement)
	if errors.Is(err, store.ErrNotFound) || c.cfg.External != nil {
		return nil
	} else if err != nil {
		return err
	}
	var p Placement
	if json.Unmarshal(e.Value, &p) != nil || !p.valid() {
		return errors.New("the restored store does not say where it was")
	}
	p = Placement{Generation: p.Generation + 1, ID: randomHex(16), Nodes: []string{c.cfg.Node}}
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if _, err := c.store.Update(ctx, bucketCluster, keyPlacement, text, e.Revision); err != nil {
		return err
	}
	if err := savePlacement(c.cfg.Dir, p); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.placement = p
	return nil
}

// Heir is the edge that a restored backup becomes: the one that made it if it hosts
// the store, else one that does, since edges that are left look for that one.
func Heir(self string, entries []backup.Entry) string {
	heir := ""
	for _, e := range entries {
		if e.Bucket != bucketMembers {
			continue
		}
		m, ok := decodeMember(store.Entry{Key: e.Key, Value: e.Value})
		if ok && m.Store && !m.Left && (heir == "" || m.Node == self) {
			heir = m.Node
		}
	}
	if heir == "" {
		return self
	}
	return heir
}

// MirrorDir is the copy of the store in the folder Folder of an edge.
func MirrorDir(folder string) string { return filepath.Join(folder, mirrorDir) }

// takeOver copies the store of the time before the cluster, once.
func (c *Cluster) takeOver(ctx context.Context) error {
	if _, err := os.Stat(c.cfg.Import); err != nil {
		return nil // there was none
	}
	old, err := store.OpenDir(c.cfg.Import)
	if err != nil {
		return err
	}
	defer old.Close() // read only
	names, err := old.Buckets()
	if err != nil {
		return err
	}
	n := 0
	for _, name := range names {
		entries, err := old.List(ctx, name)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if _, err := c.store.Create(ctx, name, e.Key, e.Value); err != nil && !errors.Is(err, store.ErrExists) {
				return err
			}
			n++
		}
	}
	c.logger.Info("store taken over", "entries", n)
	return nil
}

func (c *Cluster) ca(ctx context.Context) (*identity.CA, error) {
	e, err := c.store.Get(ctx, bucketCluster, keyCA)
	if err != nil {
		return nil, err
	}
	return identity.ParseCA(e.Value)
}

// renew replaces a node certificate in the second half of its life.
func (c *Cluster) renew(ctx context.Context) error {
	if !c.id.Old(time.Now()) {
		return nil
	}
	ca, err := c.ca(ctx)
	if err != nil {
		return err
	}
	id, err := c.id.Renewed(ca)
	if err != nil {
		return err
	}
	c.id = id
	return id.Save(c.cfg.Dir)
}

// dialStore connects to an edge that holds the store: this one if it does, and
// another if the one before was dialled a moment ago and did not do.
func (c *Cluster) dialStore() (net.Conn, error) {
	c.mu.Lock()
	if time.Since(c.dialledAt) > redialAfter {
		c.dialled = 0
	}
	turn, placement, server := c.dialled, c.placement, c.hosted
	c.dialled++
	c.dialledAt = time.Now()
	c.mu.Unlock()
	nodes := c.holders()
	if i := slices.Index(nodes, c.cfg.Node); i >= 0 {
		nodes = slices.Concat(nodes[i:], nodes[:i])
	} else if server != nil {
		nodes = slices.Insert(nodes, 0, c.cfg.Node) // not entered yet
	}
	var errs []error
	for i := range nodes {
		node := nodes[(turn+i)%len(nodes)]
		conn, err := c.dialHolder(node, placement, server)
		if err == nil {
			c.mu.Lock()
			c.storeAt = node
			c.mu.Unlock()
			return conn, nil
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return nil, errors.New("no edge is known that hosts the store")
	}
	return nil, errors.Join(errs...)
}

// redialAfter is how long a connection to the store must have been good for the same
// edge to be dialled first again.
const redialAfter = 20 * time.Second

func (c *Cluster) dialHolder(node string, placement Placement, server *kv.Server) (net.Conn, error) {
	switch {
	case node == c.cfg.Node && server == nil:
		return nil, errors.New("the store is not here yet")
	case node == c.cfg.Node:
		return server.InProcessConn()
	case placement.Generation == 0:
		return c.dialEdge(c.running, node, alpnStore)
	}
	conn, err := c.dialEdge(c.running, node, alpnMoved)
	if err == nil {
		_, err = io.WriteString(conn, placement.ID)
	}
	if err != nil && conn != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, err
}

// serveStore takes an edge that knows of no move of the store.
func (c *Cluster) serveStore(ctx context.Context, conn *tls.Conn) {
	placement, server := c.placed()
	if server == nil || placement.Generation > 0 {
		_ = conn.Close() // the bus tells it where the store is
		return
	}
	server.Serve(ctx, conn)
}

// serveMoved takes an edge that knows where the store is.
func (c *Cluster) serveMoved(ctx context.Context, conn *tls.Conn) {
	id, err := readID(conn)
	placement, server := c.placed()
	if err != nil || server == nil || id != placement.ID {
		_ = conn.Close()
		return
	}
	server.Serve(ctx, conn)
}

// whyAway says why the store takes no writes, if that is known.
func (c *Cluster) whyAway() error {
	if at := c.moving.Load(); at != 0 && time.Since(time.Unix(0, at)) < holdTimeout {
		return errors.New("it is being moved to three edges, try again in some seconds")
	}
	return nil
}

// Store is the network's state.
func (c *Cluster) Store() *kv.Store { return c.store }
