package agent

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"wormhole/shared/protocol"
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

// keepTold keeps links to edges that other edges told us of, up to
// Config.EdgesMax tunnels in all.
func (a *Agent) keepTold(ctx context.Context) {
	links := newLinks(ctx)
	defer links.stop()
	tick := time.NewTicker(toldGrace / 3)
	defer tick.Stop()
	few := 0 // ticks with fewer tunnels than wanted
	for {
		wanted, changed := a.wantedTold(links.has)
		links.set(wanted)
		select {
		case <-ctx.Done():
			return
		case <-a.quit:
			return
		case <-changed:
		case <-tick.C:
			open, want := a.shortage()
			if few++; open >= want {
				few = 0
			}
			if few == 3 {
				a.logger.Warn("fewer tunnels than wanted", "open", open, "wanted", want)
			}
		}
	}
}

// wantedTold says which edges to dial at the address we were told, keyed by node,
// and gives the channel that is closed at the next change. An edge that has a link
// keeps it as long as it is in the list.
func (a *Agent) wantedTold(has func(node string) bool) (map[string]*link, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	room := a.cfg.EdgesMax
	for _, c := range a.nodes {
		if c.name != "" {
			room--
		}
	}
	var kept, fresh []protocol.Edge
	for node, e := range a.told {
		switch {
		case has(node):
			kept = append(kept, e)
		case a.nodes[node] == nil && time.Since(a.lost[node]) > toldGrace:
			fresh = append(fresh, e)
		}
	}
	// Agents should not all choose the same edges when there are more than enough;
	// map order is random, so no further shuffling is needed.
	wanted := map[string]*link{}
	for _, e := range slices.Concat(kept, fresh) {
		host, _, err := net.SplitHostPort(e.Addr)
		if err != nil || len(wanted) >= room {
			continue
		}
		wanted[e.Node] = &link{agent: a, target: target{addr: e.Addr, server: host}}
	}
	return wanted, a.changed
}

// shortage is how many tunnels are open and how many there should be.
func (a *Agent) shortage() (open, want int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.nodes), min(a.cfg.EdgesMin, len(a.told))
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
