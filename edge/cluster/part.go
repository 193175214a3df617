package cluster

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"wormhole/edge/cluster/kv"
	"wormhole/edge/cluster/relay"
)

// alpnRoute is what the servers of a store that three edges hold speak through,
// between the public doors of those edges.
const alpnRoute = "wormhole-store-route/1"

// alpnVia is how one of the three asks another to join it with the third one's public
// door. What follows is the store's Placement.ID and the third one's node, and then
// whatever it says to that door: a handshake of its own.
const alpnVia = "wormhole-store-via/1"

// directAfter is how long an edge that a route comes to by way of another must have
// been in reach until the route goes to it directly again.
const directAfter = 10 * time.Second

// storesDir is in Config.Dir: a folder for each part of a store, by Placement.ID.
const storesDir = "stores"

// plan is a store that three edges are to hold. It comes to be when its host says so.
type plan struct {
	Placement
	Host   string `json:"host"` // who holds the store until then
	Secret string `json:"secret"`
}

func (p *plan) valid() bool {
	return p.Placement.valid() && len(p.Nodes) == kv.Replicas && slices.Contains(p.Nodes, p.Host) && len(p.Secret) >= 32
}

// part is this edge's third of a store: a server, and a port of loopback for each of
// the three through which it reaches them.
type part struct {
	dir    string
	server *kv.Server
	routes []net.Listener
	stop   context.CancelFunc
	wg     sync.WaitGroup

	mu    sync.Mutex          // guards below
	plan  plan                // its ID and Secret never change
	leads []string            // where routes lead to: nodes
	conns map[net.Conn]string // with other servers, by node
}

func (s *part) id() string     { s.mu.Lock(); defer s.mu.Unlock(); return s.plan.ID }
func (s *part) secret() string { s.mu.Lock(); defer s.mu.Unlock(); return s.plan.Secret }

// enter notes a connection with node until leave, or refuses if that does not hold a
// part of the store.
func (s *part) enter(conn net.Conn, node string) (leave func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Contains(s.plan.Nodes, node) {
		return nil, false
	}
	s.conns[conn] = node
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.conns, conn)
	}, true
}

// follow goes over to p, the same store on partly other edges. When it returns,
// nothing of those that were left out gets here any more, also after a restart.
func (s *part) follow(p Placement, self string) error {
	s.mu.Lock()
	s.plan.Placement, s.plan.Host = p, self
	for i, node := range s.leads {
		if slices.Contains(p.Nodes, node) {
			continue
		}
		for _, come := range p.Nodes {
			if !slices.Contains(s.leads, come) {
				s.leads[i] = come
			}
		}
	}
	for conn, node := range s.conns {
		if !slices.Contains(p.Nodes, node) {
			_ = conn.Close()
		}
	}
	next := s.plan
	s.mu.Unlock()
	return savePlan(s.dir, next)
}

func savePlan(dir string, p plan) error {
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return writeSynced(filepath.Join(dir, "plan.json"), text)
}

// openPart starts the server of p, new or not.
func (c *Cluster) openPart(p plan) (_ *part, err error) {
	s := &part{plan: p, dir: filepath.Join(c.cfg.Dir, storesDir, p.ID), leads: slices.Clone(p.Nodes), conns: map[net.Conn]string{}}
	ctx, stop := context.WithCancel(c.running)
	s.stop = stop
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, err
	}
	if err := savePlan(s.dir, p); err != nil {
		return nil, err
	}
	name := p.server(c.cfg.Node)
	if name != c.cfg.Node {
		if err := writeSynced(filepath.Join(c.cfg.Dir, takenFile), []byte(name+"\n")); err != nil {
			return nil, err
		}
	}
	conf := kv.Replica{Name: name, Network: "store-" + p.ID, Secret: p.Secret}
	for range p.Nodes {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		s.routes = append(s.routes, l)
		conf.Routes = append(conf.Routes, l.Addr().String())
	}
	if s.server, err = kv.StartReplica(filepath.Join(s.dir, "data"), conf, c.logger); err != nil {
		return nil, err
	}
	for i, l := range s.routes {
		s.wg.Go(func() { c.forwardRoutes(ctx, s, l, i) })
	}
	s.wg.Go(func() { s.server.Tend(ctx) })
	s.wg.Go(func() { c.settle(ctx) })
	return s, nil
}

// forwardRoutes joins what the server here dials with the server that the route i
// leads to, until the listener is closed.
func (c *Cluster) forwardRoutes(ctx context.Context, s *part, l net.Listener, i int) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		s.wg.Go(func() {
			defer conn.Close()
			s.mu.Lock()
			node := s.leads[i]
			s.mu.Unlock()
			out, detour, err := c.dialRoute(ctx, s, node)
			if err != nil {
				return // the server tries again
			}
			defer out.Close()
			leave, ok := s.enter(out, node)
			if !ok {
				return
			}
			defer leave()
			end := context.AfterFunc(ctx, func() { _ = conn.Close(); _ = out.Close() })
			defer end()
			if detour {
				over := make(chan struct{})
				defer close(over)
				s.wg.Go(func() {
					if c.awaitDirect(ctx, node, over) {
						_ = out.Close() // the server comes again
					}
				})
			}
			kv.Splice(conn, out)
		})
	}
}

// dialRoute connects to the server of s on node, and says whether that is by way of
// another edge.
//
// Each of the three servers must reach the other two. If two of them do not, whoever
// of both does not lead hears of no leader, has itself elected by the third, and so
// on in turns, as the servers ask nobody before they campaign.
func (c *Cluster) dialRoute(ctx context.Context, s *part, node string) (_ net.Conn, detour bool, err error) {
	if node == c.cfg.Node {
		out, err := net.DialTimeout("tcp", s.server.RouteAddr(), time.Second)
		return out, false, err
	}
	out, err := c.dialEdge(ctx, node, alpnRoute)
	if err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
		for _, third := range s.others(c.cfg.Node, node) {
			var viaErr error
			if out, viaErr = c.dialVia(ctx, s, third, node); viaErr == nil {
				c.logger.Info("the store's server of an edge is reached by way of another", "node", node, "remote", third, "err", err)
				detour, err = true, nil
				break
			}
			err = errors.Join(err, viaErr)
		}
	}
	if err != nil {
		return nil, false, err
	}
	if _, err := io.WriteString(out, s.id()); err != nil {
		_ = out.Close()
		return nil, false, err
	}
	return out, detour, nil
}

// others are who holds s besides two edges.
func (s *part) others(a, b string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.plan.Nodes), func(n string) bool { return n == a || n == b })
}

// dialVia connects to the public door of node by way of third, which carries what it
// cannot read.
func (c *Cluster) dialVia(ctx context.Context, s *part, third, node string) (net.Conn, error) {
	conn, err := c.dialEdge(ctx, third, alpnVia)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	out := tls.Client(conn, c.id.Client(alpnRoute, node))
	if _, err = io.WriteString(conn, s.id()+node); err == nil {
		err = out.HandshakeContext(ctx)
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("reach the edge %s by way of %s: %w", node, third, err)
	}
	return out, nil
}

// awaitDirect waits until node has been in reach for directAfter, and reports that.
func (c *Cluster) awaitDirect(ctx context.Context, node string, over <-chan struct{}) bool {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for since := time.Now(); ; {
		if p := c.peer(node); p == nil || p.Health() != relay.Up {
			since = time.Now()
		} else if time.Since(since) > directAfter {
			return true
		}
		select {
		case <-tick.C:
		case <-over:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// serveVia joins one of the three edges that hold the store with another one's door.
func (c *Cluster) serveVia(ctx context.Context, conn *tls.Conn) {
	defer conn.Close()
	from, err := c.id.Peer(conn.ConnectionState())
	id, idErr := readID(conn)
	to := make([]byte, len(c.cfg.Node))
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, toErr := io.ReadFull(conn, to)
	if errors.Join(err, idErr, toErr, conn.SetReadDeadline(time.Time{})) != nil {
		return
	}
	s, node := c.partOf(id), string(to)
	if s == nil || from == node || node == c.cfg.Node {
		return
	}
	leave, ok := s.enter(conn, from)
	if !ok {
		return
	}
	defer leave()
	d := net.Dialer{Timeout: 2 * time.Second}
	out, err := d.DialContext(ctx, "tcp", c.storeAddr(node))
	if err != nil {
		return
	}
	defer out.Close()
	leaveOut, ok := s.enter(out, node)
	if !ok {
		return
	}
	defer leaveOut()
	end := context.AfterFunc(ctx, func() { _ = conn.Close(); _ = out.Close() })
	defer end()
	kv.Splice(conn, out)
}

// partOf is this edge's part of the store id, nil if it has none.
func (c *Cluster) partOf(id string) *part {
	c.mu.Lock()
	parts := []*part{c.pending, c.part}
	c.mu.Unlock()
	for _, s := range parts {
		if s != nil && s.id() == id {
			return s
		}
	}
	return nil
}

// serveRoute joins another edge's server with the one here, if they are of one store.
func (c *Cluster) serveRoute(ctx context.Context, conn *tls.Conn) {
	defer conn.Close()
	node, err := c.id.Peer(conn.ConnectionState())
	id, idErr := readID(conn)
	if err != nil || idErr != nil {
		return
	}
	s := c.partOf(id)
	if s == nil {
		return
	}
	leave, ok := s.enter(conn, node)
	if !ok {
		return
	}
	defer leave()
	addr := s.server.RouteAddr()
	if addr == "" {
		return
	}
	in, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return
	}
	defer in.Close()
	end := context.AfterFunc(ctx, func() { _ = conn.Close(); _ = in.Close() })
	defer end()
	kv.Splice(conn, in)
}

// readID reads which store the peer means.
func readID(conn net.Conn) (string, error) {
	id := make([]byte, 32)
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, err := io.ReadFull(conn, id)
	return string(id), errors.Join(err, conn.SetReadDeadline(time.Time{}))
}

// close ends the server and waits.
func (s *part) close() {
	s.stop()
	for _, l := range s.routes {
		_ = l.Close()
	}
	if s.server != nil {
		_ = s.server.Close()
	}
	s.wg.Wait()
}

// remove is close for a part of a store that is not to be.
func (s *part) remove() {
	s.close()
	_ = os.RemoveAll(s.dir) // else the next start does
}

// dialEdge connects to the public door of node.
func (c *Cluster) dialEdge(ctx context.Context, node, alpn string) (net.Conn, error) {
	addr := c.storeAddr(node)
	if addr == "" {
		return nil, fmt.Errorf("the address of the edge %s is not known", node)
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 2 * time.Second}, Config: c.id.Client(alpn, node)}
	return d.DialContext(ctx, "tcp", addr)
}

// storeAddr is addrOf, also before there is a bus.
func (c *Cluster) storeAddr(node string) string {
	c.mu.Lock()
	ready, addr := c.bus != nil, c.members[node].Addr
	c.mu.Unlock()
	if ready {
		return c.addrOf(node)
	}
	return addr
}

// openParts starts this edge's part of the store, if it has one, and parts of stores
// of which it is not known here whether they came to be. Others are removed.
func (c *Cluster) openParts() error {
	root := filepath.Join(c.cfg.Dir, storesDir)
	folders, err := os.ReadDir(root)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, f := range folders {
		dir := filepath.Join(root, f.Name())
		var p plan
		text, err := os.ReadFile(filepath.Join(dir, "plan.json"))
		known := err == nil && json.Unmarshal(text, &p) == nil && p.valid() && p.ID == f.Name()
		ours := f.Name() == c.placement.ID
		switch {
		case ours && !slices.Contains(c.placement.Nodes, c.cfg.Node): // another holds it in its place
			c.setAside(dir)
			continue
		case ours && !known:
			return fmt.Errorf("%s is damaged, which says how this edge holds its part of the network's store", filepath.Join(dir, "plan.json"))
		case ours && p.Generation < c.placement.Generation:
			p.Placement, p.Host = c.placement, c.cfg.Node
		case !known, !ours && (p.Generation <= c.placement.Generation || p.Host == c.cfg.Node):
			// The host itself decides: what it did not write down did not come to be.
			if err := os.RemoveAll(dir); err != nil {
				return err
			}
			continue
		}
		s, err := c.openPart(p)
		if err != nil {
			return err
		}
		if ours {
			c.mu.Lock()
			c.part, c.hosted = s, s.server
			c.mu.Unlock()
		} else {
			c.await(s)
		}
	}
	if len(c.placement.Nodes) != kv.Replicas || !slices.Contains(c.placement.Nodes, c.cfg.Node) || c.part != nil {
		return nil
	}
	if late, name := c.placement.newest(); late == c.cfg.Node {
		if begun, err := c.taken(name); err != nil {
			return err
		} else if !begun {
			p := c.placement
			c.wg.Go(func() { c.take(p) })
			return nil
		}
	}
	return fmt.Errorf("this edge held a part of the network's store in %s and does not any more: have another edge hold it (edge cluster replace %s OTHER, on an edge that runs), "+
		"and let this one join anew with an empty data directory", filepath.Join(root, c.placement.ID), c.cfg.Node)
}

// await keeps a part until its host says what became of it.
func (c *Cluster) await(s *part) {
	c.mu.Lock()
	former := c.pending
	c.pending = s
	c.mu.Unlock()
	s.mu.Lock()
	planned := s.plan
	s.mu.Unlock()
	if former != nil {
		former.remove()
	}
	c.wg.Go(func() {
		tick := time.NewTicker(2 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-c.running.Done():
				return
			}
			c.mu.Lock()
			over := c.pending != s
			c.mu.Unlock()
			if over {
				return
			}
			a, err := c.ask(c.running, planned.Host, question{Op: opOutcome, ID: planned.ID})
			switch {
			case err != nil: // it may have come to be, and be held by the other two
			case a.Placement.Generation >= planned.Generation:
				c.offer(a.Placement)
			case a.Gone:
				c.mu.Lock()
				over := c.pending != s
				if !over {
					c.pending = nil
				}
				c.mu.Unlock()
				if !over {
					c.logger.Info("the store was not moved, its new part here is removed")
					s.remove()
				}
				return
			}
		}
	})
}
