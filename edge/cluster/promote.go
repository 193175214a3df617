package cluster

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"wormhole/edge/cluster/kv"
)

// Promotion is what Promote did.
type Promotion struct {
	Generation uint64 `json:"generation"`
	// Edges hold the store now, and Entries are in it.
	Edges   []string `json:"edges"`
	Entries int      `json:"entries"`
	// HeldMillis is for how long writes were refused.
	HeldMillis int64 `json:"writes_refused_ms"`
}

// PromoteTimeout bounds a promotion; nothing has changed if it ends before.
const PromoteTimeout = 3 * time.Minute

// Bounds of its steps: until a part runs at another edge, until the three agree, and
// for how long writes are refused at most.
const (
	prepareTimeout = 20 * time.Second
	agreeTimeout   = 60 * time.Second
	holdTimeout    = 30 * time.Second
)

// afterPromotion is how many revisions the old store may give while it is copied.
// It is less than afterRestore: a backup of before is restored above it.
const afterPromotion = 1 << 20

// Promote moves the store from the one edge that holds it to three: that one and two
// more, each named by node, region or address. Writes are refused for a moment, and
// go on in the old store if anything fails before they can go on in the new one.
// Concurrent calls are refused.
func (c *Cluster) Promote(ctx context.Context, names []string) (*Promotion, error) {
	if c.cfg.External != nil {
		return nil, errors.New("the store is on the NATS servers of --nats, which say themselves how many hold it")
	}
	holders := c.holders()
	if len(holders) != 1 {
		return nil, fmt.Errorf("the store is on three edges already: %s", strings.Join(holders, ", "))
	}
	nodes, err := c.trio(holders[0], names)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, PromoteTimeout)
	defer cancel()
	stop := context.AfterFunc(c.running, cancel)
	defer stop()
	if holders[0] != c.cfg.Node {
		a, err := c.ask(ctx, holders[0], question{Op: opPromote, Edges: nodes})
		return a.Moved, err
	}
	if !c.promoting.TryLock() {
		return nil, errors.New("the store is being moved already")
	}
	defer c.promoting.Unlock()
	if err := c.ready(ctx, nodes, false); err != nil {
		return nil, err
	}
	ctx, leave := c.attend(ctx, nodes)
	defer leave()
	done, err := c.promote(ctx, nodes)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, ctx.Err()) {
			err = cause
		}
		c.logger.Error("the store was not moved and goes on here", "err", err)
		return nil, fmt.Errorf("the store was not moved and goes on where it was: %w", err)
	}
	c.logger.Info("the store is on three edges now", "generation", done.Generation, "edges", done.Edges,
		"entries", done.Entries, "refused", time.Duration(done.HeldMillis)*time.Millisecond)
	return done, nil
}

// trio are the nodes that names mean, and host, in order.
func (c *Cluster) trio(host string, names []string) ([]string, error) {
	nodes := []string{host}
	for _, name := range names {
		node, err := c.named(name)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(nodes, node) {
			nodes = append(nodes, node)
		}
	}
	if len(nodes) != kv.Replicas {
		return nil, fmt.Errorf("exactly three edges hold a store: name two beside %s, which holds it now", host)
	}
	slices.Sort(nodes)
	return nodes, nil
}

// named is the one member that name means.
func (c *Cluster) named(name string) (string, error) {
	var found []string
	for _, m := range c.Members() {
		if m.Left {
			continue
		}
		host, _, _ := net.SplitHostPort(m.Addr)
		if m.Node == name {
			return name, nil
		}
		if name != "" && (name == m.Region || name == m.Addr || name == host) {
			found = append(found, m.Node)
		}
	}
	switch len(found) {
	case 0:
		return "", fmt.Errorf("there is no edge %.60q in this network: edge cluster list shows them", name)
	case 1:
		return found[0], nil
	}
	return "", fmt.Errorf("%.60q means several edges: name one of %s", name, strings.Join(found, ", "))
}

// promote does it, on the edge that holds the store.
func (c *Cluster) promote(ctx context.Context, nodes []string) (_ *Promotion, err error) {
	known, old := c.placed()
	if old == nil {
		return nil, errors.New("the store is not here any more")
	}
	p := plan{
		Placement: Placement{Generation: max(known.Generation, 1) + 1, ID: randomHex(16), Nodes: nodes},
		Host:      c.cfg.Node, Secret: randomHex(32),
	}
	c.setBegun(p.ID)
	defer c.setBegun("")
	part, err := c.openPart(p)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.pending = part // for routes; nobody awaits it
	c.mu.Unlock()
	defer func() {
		if err != nil {
			c.mu.Lock()
			c.pending = nil
			c.mu.Unlock()
			part.remove()
		}
	}()
	if err := c.prepareOthers(ctx, p); err != nil {
		return nil, err
	}
	last, err := old.Last(ctx)
	if err != nil {
		return nil, err
	}
	floor := last + afterPromotion
	agree, cancel := context.WithTimeout(ctx, agreeTimeout)
	err = part.server.Begin(agree, floor)
	cancel()
	if err != nil {
		return nil, err
	}
	// Most of it while writes go on.
	var done kv.Copied
	if err := old.Copy(ctx, part.server, &done); err != nil {
		return nil, err
	}

	began := time.Now()
	c.announce(true)
	c.noteMoving(true)
	old.Hold()
	defer func() {
		if err != nil {
			old.Release()
			c.noteMoving(false)
			c.announce(false)
		}
	}()
	hold, cancel := context.WithTimeout(ctx, holdTimeout)
	defer cancel()
	if err := old.Copy(hold, part.server, &done); err != nil {
		return nil, err
	}
	if last, err = old.Last(hold); err != nil {
		return nil, err
	}
	if last > floor {
		return nil, errors.New("too much was written meanwhile")
	}
	text, err := json.Marshal(p.Placement)
	if err != nil {
		return nil, err
	}
	if err := part.server.Note(hold, bucketCluster, keyPlacement, text); err != nil {
		return nil, err
	}
	// From here on it is so, whatever happens to this process.
	if err := savePlacement(c.cfg.Dir, p.Placement); err != nil {
		if there, _ := loadPlacement(c.cfg.Dir); there.ID != p.ID {
			return nil, err
		}
		c.logger.Warn("where the store is may not be on the disk yet", "err", err)
	}
	c.mu.Lock()
	c.placement, c.hosted, c.part, c.pending = p.Placement, part.server, part, nil
	c.mu.Unlock()
	c.noteMoving(false)
	c.announce(false)
	c.store.Reconnect()
	_ = old.Close()
	if err := os.RemoveAll(filepath.Join(c.cfg.Dir, hostedDir)); err != nil {
		c.logger.Warn("the former store's files are still there", "err", err)
	}
	settled := time.NewTimer(holdTimeout)
	defer settled.Stop()
	for {
		if since, fault := c.store.Health(); fault == nil && since.After(began) {
			break
		}
		select {
		case <-time.After(10 * time.Millisecond):
			continue
		case <-settled.C:
			c.logger.Warn("the store was moved, and does not answer yet")
		}
		break
	}
	return &Promotion{
		Generation: p.Generation, Edges: nodes, Entries: done.Len() + 1, HeldMillis: time.Since(began).Milliseconds(),
	}, nil
}

// prepareOthers has the other two start their parts.
func (c *Cluster) prepareOthers(ctx context.Context, p plan) error {
	ctx, cancel := context.WithTimeout(ctx, prepareTimeout)
	defer cancel()
	failed := make(chan error, len(p.Nodes))
	for _, node := range p.Nodes {
		if node == c.cfg.Node {
			failed <- nil
			continue
		}
		go func() { // ends with ctx
			_, err := c.ask(ctx, node, question{Op: opPrepare, Plan: &p})
			failed <- err
		}()
	}
	var errs []error
	for range p.Nodes {
		errs = append(errs, <-failed)
	}
	return errors.Join(errs...)
}

func (c *Cluster) setBegun(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.begun = id
}

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
