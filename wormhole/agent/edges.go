package agent

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"sync"
	"time"
)

// keepName keeps a link to every address of the configured edge name (host:port).
func (a *Agent) keepName(ctx context.Context, name string) {
	host, port, _ := net.SplitHostPort(name) // checked by Config.validate
	_, notIP := netip.ParseAddr(host)
	if proxy, err := a.cfg.Proxy(name); notIP == nil || proxy != nil || err != nil {
		// The proxy resolves the name; an address needs no resolving.
		l := &link{agent: a, name: name, target: target{addr: name, server: host}}
		l.keep(ctx, ctx)
		return
	}

	links := newLinks(ctx)
	defer links.stop()
	failed := make(chan struct{}, 1)
	retry := a.newBackoff()
	for {
		wait := a.cfg.timing.resolve
		addrs, err := a.resolve(ctx, host)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			wait = retry.Next()
			a.logger.Warn("cannot resolve edge", "remote", name, "err", err, "retry_in", wait.Round(time.Millisecond).String())
		default:
			retry = a.newBackoff()
			wanted := map[string]*link{}
			for _, ip := range addrs {
				addr := net.JoinHostPort(ip.String(), port)
				wanted[addr] = &link{agent: a, name: name, target: target{addr: addr, server: host}, failed: failed}
			}
			links.set(wanted)
		}
		// After a failed attempt the name is looked up again, but not more than once a
		// second.
		pause := min(wait, time.Second)
		if !a.sleep(ctx, pause, nil) || !a.sleep(ctx, wait-pause, failed) {
			return
		}
	}
}

func (a *Agent) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	addrs, err := a.cfg.Resolve(ctx, host)
	if err == nil && len(addrs) == 0 {
		err = errors.New("the name has no address")
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	return addrs, err
}

// toldGrace is how long a node that a configured name led to is left to that name
// before it is dialled at the address that edges tell.
const toldGrace = 15 * time.Second

// patienceToMeasure is how long an edge that is new is measured before it is taken
// for want of others.
const patienceToMeasure = time.Second

// keepTold decides which edges to hold tunnels to. It keeps links to those that other
// edges told us of, and lets tunnels go that are not needed any more, once those that
// stay are open.
func (a *Agent) keepTold(ctx context.Context) {
	links := newLinks(ctx)
	defer links.stop()
	tick := time.NewTicker(a.cfg.timing.tick)
	defer tick.Stop()
	slots := make(chan struct{}, atOnce)
	var short time.Time // since when there are fewer tunnels than wanted
	warned := false
	for {
		p := a.plan(time.Now(), links.has)
		links.set(p.links)
		for _, c := range p.surplus {
			c.logger.Info("tunnel is not needed any more, nearer edges are connected", "remote", c.session.RemoteAddr().String())
			a.wg.Go(func() { c.retire(ctx, "nearer edges are connected") })
		}
		a.measureDue(ctx, slots)
		switch {
		case p.open >= p.want:
			short, warned = time.Time{}, false
		case short.IsZero():
			short = time.Now()
		case !warned && time.Since(short) > toldGrace:
			warned = true
			a.logger.Warn("fewer tunnels than wanted", "open", p.open, "wanted", p.want)
		}
		select {
		case <-ctx.Done():
			return
		case <-a.quit:
			return
		case <-p.changed:
		case <-tick.C:
		}
	}
}

// plan is what to do about the edges that others told us of.
type plan struct {
	links      map[string]*link // by node: those to keep
	surplus    []*connection    // to let go
	open, want int              // tunnels
	changed    <-chan struct{}  // closed at the next change
}

// plan decides. has says which nodes have a link. In a network, whose edges reach
// each other's sites, the nearest are held; edges of no network are all held, since
// what one has is not reached through another.
func (a *Agent) plan(now time.Time, has func(node string) bool) plan {
	a.mu.Lock()
	defer a.mu.Unlock()
	options := a.options(now)
	p := plan{links: map[string]*link{}, open: len(a.nodes), want: min(a.cfg.EdgesMin, len(options))}
	var order []string
	var wanted map[string]bool
	if a.networked() {
		known := options[:0:0]
		for _, o := range options {
			q := a.prospects[o.node]
			measuring := o.rtt == 0 && !o.failed && now.Sub(q.since) < patienceToMeasure
			if q.common && (o.held || has(o.node) || !measuring) {
				known = append(known, o)
			}
		}
		order = choice{min: a.cfg.EdgesMin, max: a.cfg.EdgesMax, region: a.cfg.Region}.of(known)
		wanted = map[string]bool{}
		for _, node := range order {
			wanted[node] = true
		}
		p.surplus = a.surplus(now, wanted)
	} else {
		order = choice{min: a.cfg.EdgesMax, max: a.cfg.EdgesMax, region: a.cfg.Region}.of(options)
	}
	if !maps.Equal(wanted, a.wanted) {
		a.wanted = wanted
		a.announce()
	}
	room := a.cfg.EdgesMax
	for _, c := range a.nodes {
		if c.name != "" && (wanted == nil || wanted[c.welcome.Node]) {
			room--
		}
	}
	spread := time.Duration(0)
	if len(a.nodes) > 0 {
		spread = a.cfg.timing.spread
	}
	for _, node := range order {
		e := a.prospects[node].edge
		host, _, err := net.SplitHostPort(e.Addr)
		if err != nil || len(p.links) >= room {
			continue
		}
		if !has(node) && (a.nodes[node] != nil || now.Sub(a.lost[node]) <= toldGrace) {
			continue // a configured name leads there
		}
		p.links[node] = &link{agent: a, node: node, target: target{addr: e.Addr, server: host}, spread: spread}
	}
	p.changed = a.changed
	return p
}

// surplus are the tunnels that are not wanted, once all that are wanted have been
// open for a while. One goes only if an edge that stays reaches what it has. mu must
// be held.
func (a *Agent) surplus(now time.Time, wanted map[string]bool) []*connection {
	reached := map[string]bool{}
	for node := range wanted {
		c := a.nodes[node]
		if c == nil || now.Sub(c.since) < a.cfg.timing.overlap {
			return nil
		}
		for _, e := range c.edges {
			reached[e.Node] = true
		}
	}
	var out []*connection
	for node, c := range a.nodes {
		if !wanted[node] && reached[node] && len(wanted) > 0 {
			out = append(out, c)
		}
	}
	return out
}

// needless reports whether a link under a configured name may rest: all edges that
// are wanted are held, and it leads, or its name led, to another one of their
// network. mu must be held.
func (a *Agent) needless(l *link) bool {
	if len(a.wanted) == 0 {
		return false
	}
	for node := range a.wanted {
		if a.nodes[node] == nil {
			return false
		}
	}
	node := l.node
	if node == "" {
		node = a.found[l.name]
	}
	p := a.prospects[node]
	return p != nil && p.common && (l.node == "" || !a.wanted[node])
}

// links runs one goroutine for each link of a changing set. One goroutine uses it.
type links struct {
	ctx context.Context
	wg  sync.WaitGroup

	cancel map[string]context.CancelFunc
	ended  map[string]chan struct{}
}

func newLinks(ctx context.Context) *links {
	return &links{ctx: ctx, cancel: map[string]context.CancelFunc{}, ended: map[string]chan struct{}{}}
}

// has reports whether a link is being kept under key.
func (s *links) has(key string) bool {
	return s.cancel[key] != nil
}

// set starts the links that are wanted and not there, and lets those go that are
// there and not wanted: they dial no more, and end with their tunnel.
func (s *links) set(wanted map[string]*link) {
	for key, cancel := range s.cancel {
		if wanted[key] == nil {
			cancel()
			delete(s.cancel, key)
		}
	}
	for key, l := range wanted {
		if s.cancel[key] != nil {
			continue
		}
		if ended := s.ended[key]; ended != nil && !isClosed(ended) {
			continue // its last tunnel still lives; set is called again later
		}
		ctx, cancel := context.WithCancel(s.ctx)
		ended := make(chan struct{})
		s.cancel[key], s.ended[key] = cancel, ended
		s.wg.Go(func() {
			defer close(ended)
			defer cancel()
			l.keep(s.ctx, ctx)
		})
	}
}

// stop lets all links go and waits for them.
func (s *links) stop() {
	s.set(nil)
	s.wg.Wait()
}
