package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"wormhole/edge/cluster/kv"
	"wormhole/edge/cluster/store"
)

// Replacement is what Replace did.
type Replacement struct {
	Generation uint64 `json:"generation"`
	// Edges hold the store now, New in place of Lost.
	Edges []string `json:"edges"`
	Lost  string   `json:"lost"`
	New   string   `json:"new"`
	// TookMillis is until the new one had everything and writes were taken.
	TookMillis int64 `json:"took_ms"`
}

// ReplaceTimeout bounds a replacement. What was decided goes on after it.
const ReplaceTimeout = 3 * time.Minute

// readyTimeout bounds the question whether an edge is there and able.
const readyTimeout = 4 * time.Second

// Replace has another edge hold the store in place of one of the three that do, which
// may be lost or not; each is named by node, region or address. Writes go on. It is
// decided by an entry of the store itself, so that of several that are asked for only
// one comes to be: its holders then take nothing from the lost one any more, give it
// up, and give the new one a copy, whatever becomes of whoever asked.
func (c *Cluster) Replace(ctx context.Context, lostName, newName string) (*Replacement, error) {
	if c.cfg.External != nil {
		return nil, errors.New("the store is on the NATS servers of --nats, which say themselves how many hold it")
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, ReplaceTimeout)
	defer cancel()
	stop := context.AfterFunc(c.running, cancel)
	defer stop()
	e, err := c.store.Get(ctx, bucketCluster, keyPlacement)
	if err != nil {
		if len(c.holders()) != kv.Replicas {
			return nil, errOnOne
		}
		return nil, err
	}
	now, _ := c.placed()
	var p Placement
	switch {
	case json.Unmarshal(e.Value, &p) != nil || !p.valid():
		return nil, errors.New("the store does not say where it is")
	case p.Generation != now.Generation || p.ID != now.ID:
		c.offer(p)
		return nil, errors.New("where the store is has just changed: look at edge cluster list, and ask again")
	case len(p.Nodes) != kv.Replicas:
		return nil, errOnOne
	}
	lost, err := c.named(lostName)
	if err != nil {
		return nil, err
	}
	come, err := c.named(newName)
	switch {
	case err != nil:
		return nil, err
	case slices.Contains(p.Nodes, come):
		return nil, fmt.Errorf("the edge %s holds the store already", come)
	case !slices.Contains(p.Nodes, lost):
		return nil, fmt.Errorf("the edge %s does not hold the store: %s do", lost, strings.Join(p.Nodes, ", "))
	}
	next := p.replaced(lost, come)
	if err := c.ready(ctx, next.Nodes, true); err != nil {
		return nil, err
	}
	text, err := json.Marshal(next)
	if err != nil {
		return nil, err
	}
	// From here on it is so, whatever happens to this process.
	revision, err := c.decide(ctx, text, e.Revision)
	if errors.Is(err, store.ErrConflict) {
		return nil, errors.New("somebody else has just changed where the store is: look at edge cluster list, and ask again")
	} else if err != nil {
		return nil, fmt.Errorf("whether the edge is replaced is not known: edge cluster list shows it: %w", err)
	}
	c.logger.Info("an edge that holds the store is replaced", "lost", lost, "new", come, "generation", next.Generation)
	c.offer(next)
	done := &Replacement{Generation: next.Generation, Edges: next.Nodes, Lost: lost, New: come}
	var last error
	for tick := time.NewTicker(200 * time.Millisecond); ; {
		a, err := c.inquire(ctx, come, question{Op: opReady, ID: next.ID})
		if err == nil && a.Placement.Generation >= next.Generation && a.Whole {
			// The lost one's server may have led the others, who elect another: what was
			// decided is written once more, and done is what they take. A conflict is an
			// answer as good, if an earlier try was taken that seemed to fail.
			_, err = c.store.Update(ctx, bucketCluster, keyPlacement, text, revision)
			if err == nil || errors.Is(err, store.ErrConflict) {
				done.TookMillis = time.Since(began).Milliseconds()
				return done, nil
			}
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("the edge %s holds the store in place of %s from now on, but has not everything yet; it goes on by itself, edge cluster list shows it: %w",
				come, lost, errors.Join(ctx.Err(), last))
		}
	}
}

// decide writes where the store is from now on, over the entry of a revision. Those who
// hold it act on it at once, and the answer may be lost with the connection of who
// asked: then it looks at what became of it.
func (c *Cluster) decide(ctx context.Context, text []byte, revision uint64) (uint64, error) {
	for tick := time.NewTicker(200 * time.Millisecond); ; {
		decided, err := c.store.Update(ctx, bucketCluster, keyPlacement, text, revision)
		if errors.Is(err, store.ErrConflict) {
			e, failed := c.store.Get(ctx, bucketCluster, keyPlacement)
			if failed == nil && bytes.Equal(e.Value, text) {
				return e.Revision, nil
			}
		}
		if !errors.Is(err, store.ErrUnavailable) {
			return decided, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, errors.Join(err, ctx.Err())
		}
	}
}

var errOnOne = errors.New("the store is on one edge, which cannot be replaced: have three hold it with edge cluster promote, or restore a backup elsewhere")

// replaced is p with the edge come in place of lost.
func (p Placement) replaced(lost, come string) Placement {
	names := map[string]string{}
	for _, node := range p.Nodes {
		names[node] = p.server(node)
	}
	next := Placement{Generation: p.Generation + 1, ID: p.ID}
	// A server of the store that begins with nothing must not be taken for one that
	// was there before, should this edge have had one.
	names[come] = fmt.Sprintf("%s-%d", come, next.Generation)
	next.Nodes = append(slices.DeleteFunc(slices.Clone(p.Nodes), func(n string) bool { return n == lost }), come)
	slices.Sort(next.Nodes)
	for _, node := range next.Nodes {
		next.Servers = append(next.Servers, names[node])
	}
	return next
}

// server is what the server of the store on node is called.
func (p *Placement) server(node string) string {
	if i := slices.Index(p.Nodes, node); i >= 0 && i < len(p.Servers) {
		return p.Servers[i]
	}
	return node
}

// newest is the edge that came with this generation in place of another, if any, and
// the name of its server.
func (p *Placement) newest() (node, server string) {
	for i, name := range p.Servers {
		if name == fmt.Sprintf("%s-%d", p.Nodes[i], p.Generation) {
			return p.Nodes[i], name
		}
	}
	return "", ""
}

// inquire is ask, of this edge too, with a bound of its own.
func (c *Cluster) inquire(ctx context.Context, node string, q question) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	if node == c.cfg.Node {
		return c.answer(ctx, node, q)
	}
	return c.ask(ctx, node, q)
}

// ready asks whether all nodes are there, reach each other, and can hold the store;
// those that do hold it must have everything if whole is wanted. It takes seconds at most.
func (c *Cluster) ready(ctx context.Context, nodes []string, whole bool) error {
	now, _ := c.placed()
	answers, errs := make([]answer, len(nodes)), make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, node := range nodes {
		wg.Go(func() { // ends with the inquiry
			var err error
			answers[i], err = c.inquire(ctx, node, question{Op: opReady, ID: now.ID, Edges: nodes})
			switch {
			case err != nil && c.unreached(ctx, node) != nil:
				errs[i] = fmt.Errorf("the edge %s cannot be reached now, and all three must be there: start it, or look whether the others can connect to it; then ask again",
					c.describe(node))
			case err != nil:
				errs[i] = fmt.Errorf("the edge %s: %w", c.describe(node), err)
			case whole && slices.Contains(now.Nodes, node) && !answers[i].Whole:
				errs[i] = fmt.Errorf("the edge %s has not all of the store yet: ask again when edge cluster list says that it is in step", c.describe(node))
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for i, node := range nodes {
		for _, other := range answers[i].Unreached {
			errs[i] = errors.Join(errs[i], fmt.Errorf("the edge %s cannot connect to %s, and the three must reach each other", c.describe(node), c.describe(other)))
		}
	}
	return errors.Join(errs...)
}

// describe names an edge for people.
func (c *Cluster) describe(node string) string {
	c.mu.Lock()
	m := c.members[node]
	c.mu.Unlock()
	if m.Addr == "" {
		return node
	}
	return fmt.Sprintf("%s (%s)", node, m.Addr)
}

// unreached is why node cannot be connected to, nil if it can.
func (c *Cluster) unreached(ctx context.Context, node string) error {
	if node == c.cfg.Node {
		return nil
	}
	conn, err := c.dialEdge(ctx, node, alpnControl)
	if err == nil {
		_ = conn.Close()
	}
	return err
}

// isReady answers for this edge.
func (c *Cluster) isReady(ctx context.Context, q question) (a answer, err error) {
	var server *kv.Server
	a.Placement, server = c.placed()
	if c.cfg.External != nil {
		return a, errors.New("it uses a NATS cluster of its own")
	}
	a.Whole = server != nil && a.Placement.ID == q.ID && server.Whole()
	if len(q.Edges) > kv.Replicas {
		return a, errors.New("too many edges are named")
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, node := range q.Edges {
		wg.Go(func() { // ends with the dial
			if c.unreached(ctx, node) != nil {
				mu.Lock()
				a.Unreached = append(a.Unreached, node)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	slices.Sort(a.Unreached)
	return a, nil
}

// attend ends the context, and says why, when one of the nodes is gone for a while.
func (c *Cluster) attend(ctx context.Context, nodes []string) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	for _, node := range nodes {
		if node == c.cfg.Node {
			continue
		}
		wg.Go(func() { // ends with ctx
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			for last := time.Now(); ; {
				select {
				case <-tick.C:
				case <-ctx.Done():
					return
				}
				if _, err := c.inquire(ctx, node, question{Op: opOutcome}); err == nil {
					last = time.Now()
				} else if time.Since(last) > readyTimeout {
					cancel(fmt.Errorf("the edge %s cannot be reached any more: start it, or look whether the others can connect to it; then ask again", c.describe(node)))
				}
			}
		})
	}
	return ctx, func() { cancel(nil); wg.Wait() }
}

// settleInterval is the time between two looks at who holds the store.
const settleInterval = 2 * time.Second

// settle has the servers of the store be those of the placement, until ctx ends.
func (c *Cluster) settle(ctx context.Context) {
	tick := time.NewTicker(settleInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if _, err := c.settled(ctx); err != nil && !errors.Is(err, kv.ErrFollower) {
			c.logger.Debug("the store is not on its three edges yet", "err", err)
		}
	}
}

// settled reports whether no other edges hold the store than those of the placement,
// and works on it: who is not one of them any more is given up. Only the edge whose
// server leads the others knows; the rest get kv.ErrFollower.
func (c *Cluster) settled(ctx context.Context) (bool, error) {
	c.settling.Lock()
	defer c.settling.Unlock()
	p, server := c.placed()
	late, lateServer := p.newest()
	switch {
	case server == nil || len(p.Nodes) != kv.Replicas:
		return false, kv.ErrFollower
	case late == "" || c.settledAt == p.Generation:
		return true, nil
	case !server.Leads():
		return false, kv.ErrFollower
	}
	// Nobody may take the one that is lost for one of the three any more.
	for _, node := range p.Nodes {
		if node == late {
			continue
		}
		a, err := c.inquire(ctx, node, question{Op: opOutcome, ID: p.ID})
		if err != nil {
			return false, err
		}
		if a.Placement.Generation != p.Generation {
			return false, fmt.Errorf("the edge %s does not know of it yet", node)
		}
	}
	ok, err := server.Keep(ctx, p.Servers, lateServer)
	if ok && err == nil {
		c.settledAt = p.Generation
	}
	return ok, err
}

// share answers an edge that is to hold a part of the store and has none yet. It has
// to wait until the one in whose place it comes is given up, so that the store never
// needs more servers than three.
func (c *Cluster) share(ctx context.Context, node string, q question) (*plan, error) {
	p, _ := c.placed()
	if late, _ := p.newest(); p.ID != q.ID || late != node {
		return nil, fmt.Errorf("as the edge %s knows it, %s is not to hold the store", c.cfg.Node, node)
	}
	if ok, err := c.settled(ctx); err != nil {
		return nil, err
	} else if !ok {
		return nil, errors.New("the edge that is replaced was not given up yet")
	}
	c.mu.Lock()
	s := c.part
	c.mu.Unlock()
	if s == nil || s.id() != p.ID {
		return nil, errors.New("the store is not here")
	}
	return &plan{Placement: p, Host: c.cfg.Node, Secret: s.secret()}, nil
}

// takenFile is in Config.Dir: the server of a store that this edge has begun in place
// of another's. It must not begin a second time, with nothing.
const takenFile = "taken"

// take gets this edge its part of the store p, in place of another that held it.
func (c *Cluster) take(p Placement) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		if now, _ := c.placed(); now.Generation != p.Generation {
			return
		}
		if err := c.tryTake(p); err == nil {
			c.logger.Info("this edge holds a part of the network's store now", "generation", p.Generation)
			return
		} else if !errors.Is(err, kv.ErrFollower) {
			c.logger.Debug("this edge does not hold its part of the store yet", "err", err)
		}
		select {
		case <-tick.C:
		case <-c.running.Done():
			return
		}
	}
}

func (c *Cluster) tryTake(p Placement) error {
	var errs []error
	for _, node := range p.Nodes {
		if node == c.cfg.Node {
			continue
		}
		a, err := c.inquire(c.running, node, question{Op: opPart, ID: p.ID})
		switch {
		case err != nil:
			errs = append(errs, err)
			continue
		case a.Plan == nil || !a.Plan.valid() || a.Plan.ID != p.ID || a.Plan.Generation != p.Generation:
			errs = append(errs, errors.New("the plan is not proper"))
			continue
		}
		s, err := c.openPart(*a.Plan)
		if err != nil {
			return err
		}
		c.mu.Lock()
		over := c.placement.Generation != p.Generation
		if !over {
			c.part, c.hosted = s, s.server
		}
		c.mu.Unlock()
		if over {
			s.remove()
		}
		return nil
	}
	return errors.Join(errs...)
}

// taken reports whether the server name was begun here once.
func (c *Cluster) taken(name string) (bool, error) {
	text, err := os.ReadFile(filepath.Join(c.cfg.Dir, takenFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return strings.TrimSpace(string(text)) == name, err
}

// followPlacement hears from the store itself where it is.
func (c *Cluster) followPlacement() {
	for c.running.Err() == nil {
		events, err := c.store.Watch(c.running, bucketCluster)
		if err != nil {
			return
		}
		for e := range events {
			var p Placement
			if e.Kind == store.EventPut && e.Entry.Key == keyPlacement && json.Unmarshal(e.Entry.Value, &p) == nil {
				c.offer(p)
			}
		}
		select {
		case <-time.After(time.Second):
		case <-c.running.Done():
		}
	}
}
