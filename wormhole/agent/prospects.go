package agent

import (
	"context"
	"crypto/tls"
	"math/rand/v2"
	"net"
	"time"

	"github.com/quic-go/quic-go"

	"wormhole/shared/backoff"
	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
)

const (
	maxProspects = 1024 // edges remembered
	maxMeasured  = 24   // edges measured, of those that are listed
	atOnce       = 4    // measurements at a time
	samples      = 8    // of which the least counts
	enough       = 3    // samples by which an edge is known
	maxFalls     = 6    // after which the wait for a place doubles no more
)

// prospect is an edge that others told of. Agent.mu guards it.
type prospect struct {
	edge   protocol.Edge
	listed bool // some edge that we hold, or held last, lists it
	common bool // it is of a network: others list it, or it lists others

	rtts    [samples]time.Duration // the last measurements, 0 for none
	n       int                    // how many were taken since it was listed or failed
	failed  bool                   // it could not be reached lately
	pending bool                   // being measured
	next    time.Time              // of the next measurement
	retry   *backoff.Backoff       // between measurements of one that failed

	since   time.Time // listed, or reached again
	settled time.Time // may take another's place from then on, if it was measured
	falls   int       // how often it was lost lately
	fell    time.Time // when it was last lost
}

// rtt is the least of the last measurements, 0 if there is none.
func (p *prospect) rtt() time.Duration {
	least := time.Duration(0)
	for _, d := range p.rtts {
		if d > 0 && (least == 0 || d < least) {
			least = d
		}
	}
	return least
}

// rise begins the time in which an edge has to prove itself: none for those known
// from the start, and twice as long after each time it was lost. Agents are given
// different times, so that they do not return to an edge all at once.
func (p *prospect) rise(now time.Time, t timing, first bool) {
	p.since, p.n, p.next, p.failed = now, 0, now, false
	p.rtts = [samples]time.Duration{}
	p.settled = now
	if !first || p.falls > 0 {
		d := t.settle << min(max(p.falls-1, 0), maxFalls)
		p.settled = now.Add(d + rand.N(d+1))
	}
}

// fall notes that a tunnel to the edge was lost or that it asked us to go.
func (p *prospect) fall(now time.Time, t timing) {
	if now.Sub(p.fell) > t.forgive {
		p.falls = 0
	}
	p.falls++
	p.fell = now
}

// hear takes in the lists of the edges we hold. mu must be held.
func (a *Agent) hear(now time.Time) {
	listed := map[string]protocol.Edge{}
	common := map[string]bool{}
	for _, c := range a.nodes {
		for _, e := range c.edges {
			if e.Node != "" && e.Addr != "" {
				listed[e.Node] = e
				common[e.Node] = common[e.Node] || len(c.edges) > 1 || e.Node != c.welcome.Node
			}
		}
	}
	if len(listed) == 0 {
		return // the last word counts
	}
	first := now.Sub(a.began) < a.cfg.timing.settle
	for node, p := range a.prospects {
		if _, ok := listed[node]; !ok {
			p.listed = false
			if now.Sub(p.since) > a.cfg.timing.forgive && now.Sub(p.fell) > a.cfg.timing.forgive {
				delete(a.prospects, node)
			}
		}
	}
	for node, e := range listed {
		p := a.prospects[node]
		if p == nil {
			if len(a.prospects) >= maxProspects {
				continue
			}
			p = &prospect{retry: a.newBackoff()}
			a.prospects[node] = p
		}
		if !p.listed || p.edge.Addr != e.Addr {
			p.rise(now, a.cfg.timing, first)
		}
		p.edge, p.listed, p.common = e, true, p.common || common[node]
	}
}

// stumble notes that a node could not be dialled.
func (a *Agent) stumble(node string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.prospects[node]
	if p == nil || p.failed {
		return
	}
	p.failed = true
	p.next = time.Now().Add(p.retry.Next())
	a.announce()
}

// lostNode notes that a tunnel to node ended against our will. mu must be held.
func (a *Agent) lostNode(node string) {
	if p := a.prospects[node]; p != nil {
		p.fall(time.Now(), a.cfg.timing)
	}
}

// onQUIC reports whether a tunnel had to take QUIC.
func (a *Agent) onQUIC() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.nodes {
		if c.session.Carrier() == tunnel.QUIC {
			return true
		}
	}
	return false
}

// networked reports whether the edges that we hold are of a network whose edges
// reach each other's sites, so that tunnels to some are enough. mu must be held.
func (a *Agent) networked() bool {
	for _, c := range a.nodes {
		if len(c.edges) > 1 {
			return true
		}
	}
	return false
}

// options are the listed edges and what is known of them. mu must be held.
func (a *Agent) options(now time.Time) []option {
	var out []option
	for node, p := range a.prospects {
		if !p.listed {
			continue
		}
		o := option{
			node: node, region: p.edge.Region, rtt: p.rtt(), held: a.nodes[node] != nil,
			settled: p.n >= enough && !now.Before(p.settled), failed: p.failed, order: orderOf(a.instance, node),
		}
		if c := a.nodes[node]; o.rtt == 0 && c != nil {
			o.rtt = c.pulse.rtt()
		}
		out = append(out, o)
	}
	return out
}

// measureDue begins the measurements that are due and says when to look again.
func (a *Agent) measureDue(ctx context.Context, slots chan struct{}) {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.networked() && len(a.nodes) > 0 {
		return // there is nothing to choose
	}
	for _, o := range worthMeasuring(a.options(now), maxMeasured) {
		p := a.prospects[o.node]
		if p.pending || now.Before(p.next) {
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			return // the next tick goes on
		}
		p.pending = true
		node, addr := o.node, p.edge.Addr
		a.wg.Go(func() {
			d, err := a.measure(ctx, addr)
			<-slots
			a.measured(node, addr, d, err)
		})
	}
}

// measured notes one measurement.
func (a *Agent) measured(node, addr string, d time.Duration, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.prospects[node]
	if p == nil {
		return
	}
	p.pending = false
	if p.edge.Addr != addr {
		return
	}
	now, t := time.Now(), a.cfg.timing
	switch {
	case err != nil && !p.failed && a.nodes[node] != nil:
		p.next = now.Add(jitter(t.measure)) // a tunnel proves that it can be reached
	case err != nil:
		p.failed, p.n = true, 0
		p.next = now.Add(p.retry.Next())
		a.logger.Debug("edge cannot be measured", "node", node, "remote", addr, "err", err)
	default:
		if p.failed {
			p.rise(now, t, false)
			p.retry = a.newBackoff()
		}
		p.rtts[p.n%samples] = max(d, 1)
		p.n++
		// Often at first, since a machine that is busy measures too much, then seldom.
		p.next = now.Add(jitter(min(t.tick<<min(max(p.n-enough, 0), 16), t.measure)))
		a.logger.Debug("edge measured", "node", node, "remote", addr, "duration", d)
	}
	a.announce()
}

// measure is the time of one round trip to an edge's public door: that of a TLS
// handshake, after which it hangs up, without the setting up of the connection.
func (a *Agent) measure(ctx context.Context, addr string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.timing.dial)
	defer cancel()
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return 0, err
	}
	conf := a.tlsConfig(host)
	if a.cfg.Transport == OnlyQUIC || a.cfg.Transport == Auto && a.onQUIC() {
		began := time.Now()
		conn, err := quic.DialAddr(ctx, addr, conf, &quic.Config{})
		if err != nil {
			return 0, err
		}
		took := time.Since(began)
		return took, conn.CloseWithError(0, "")
	}
	conn, err := a.connect(ctx, addr)
	if err != nil {
		return 0, err
	}
	defer conn.Close() // nothing was written
	secure := tls.Client(conn, conf)
	began := time.Now()
	if err := secure.HandshakeContext(ctx); err != nil {
		return 0, err
	}
	return time.Since(began), nil
}
