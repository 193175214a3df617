package agent

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"sync/atomic"
	"time"

	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
)

// Transport says which carriers may be used.
type Transport string

// The transports. Auto prefers TLS, uses QUIC while TCP does not get through, and
// returns to TLS when it does again.
const (
	Auto     Transport = "auto"
	OnlyQUIC Transport = "quic"
	OnlyTLS  Transport = "tls"
)

// How an agent waits between tries (see backoff.New): the first bound, the last, and
// how long a tunnel must have lasted for the first to hold again.
const (
	RetryBase   = time.Second
	RetryMax    = 30 * time.Second
	RetryStable = 30 * time.Second
)

// Config says who the agent is and where the edges are. Zero values take the
// defaults; Edges and Token are required.
type Config struct {
	// Edges are the edges' addresses as host:port. A name stands for all of its
	// addresses.
	Edges []string
	// Token is what the agent may serve; SetToken replaces it.
	Token string

	// Hosts, Name, Tags, Release, ReleaseDescription, Branch, Version and AppProtocol
	// go into the hello; see protocol.Hello.
	Hosts              []string
	Name               string
	Tags               map[string]string
	Release            string
	ReleaseDescription string
	Branch             string
	Version            string
	AppProtocol        string

	// RootCAs verify the edges' certificates; nil means the system's roots.
	RootCAs *x509.CertPool
	// Transport is Auto when empty.
	Transport Transport
	// Proxy names the HTTP proxy to reach addr (host:port) through, nil for none.
	// Through a proxy only TLS is used.
	Proxy func(addr string) (*url.URL, error)
	// Resolve looks up a name; nil means the system's resolver.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)

	// EdgesMin is how many edges of a network to hold tunnels to, if there are so
	// many: the nearest, in different regions if there are several. Fewer are logged.
	// Default 2.
	EdgesMin int
	// EdgesMax is the most edges to hold tunnels to: beyond EdgesMin those that are
	// as near as the nearest. Configured edges that are of no network are always
	// held. Default 8.
	EdgesMax int
	// Region names the region whose edges come first, however near others are;
	// empty is no preference.
	Region string

	// Connections is the most TCP connections of one tunnel, if its edge agrees.
	// There is one until the tunnel carries bulk; 1 leaves it at that. Default 4.
	Connections int
	// Congestion is TCP's congestion control for tunnels; see tlsmux.Options.
	Congestion string

	// StopWhenRefused makes Run return the *protocol.Reject once every configured
	// edge has refused the token for good. Otherwise it asks again now and then.
	StopWhenRefused bool

	timing timing
}

// timing are the waits of the agent, apart so that tests can shorten them.
type timing struct {
	dial       time.Duration // one attempt, hello included
	head       time.Duration // how long TLS is tried alone before QUIC joins
	retryBase  time.Duration // first bound of the back-off
	retryMax   time.Duration // last bound of the back-off
	stable     time.Duration // a tunnel this old resets the back-off
	refused    time.Duration // between attempts after a permanent refusal
	resolve    time.Duration // between two look-ups of a name that works
	beat       time.Duration // between two beats
	suspect    time.Duration // silence that is logged
	dead       time.Duration // silence that closes, if the network is silent too
	deadAlways time.Duration // silence that closes although TCP still gets answers
	upgrade    time.Duration // first wait before TLS is tried beside QUIC
	ack        time.Duration // how long a DrainAck is awaited
	duplicate  time.Duration // between attempts at an address that leads to a node we hold
	tick       time.Duration // between two looks at which edges are wanted
	measure    time.Duration // between two measurements of an edge
	settle     time.Duration // least time an edge that is new or back has to be good before it replaces another
	forgive    time.Duration // after which it is forgotten that an edge was lost
	overlap    time.Duration // how long the tunnels that stay must be open before one that is not needed goes
	spread     time.Duration // within which tunnels to further edges are begun
	look       time.Duration // how long bulk must last for a further connection
	rejoin     time.Duration // first wait after a further connection could not be opened
	unused     time.Duration // after which a further connection that carries nothing ends
}

func (t timing) withDefaults() timing {
	def := timing{
		dial: 10 * time.Second, head: 3 * time.Second,
		retryBase: RetryBase, retryMax: RetryMax, stable: RetryStable,
		refused: time.Minute, resolve: 30 * time.Second,
		beat: protocol.BeatInterval, suspect: 3 * protocol.BeatInterval,
		dead: 5 * time.Second, deadAlways: 15 * time.Second,
		upgrade: time.Minute, ack: time.Second, duplicate: 5 * time.Minute,
		tick: 250 * time.Millisecond, measure: 2 * time.Minute, settle: 5 * time.Second, forgive: 10 * time.Minute,
		overlap: time.Second, spread: 500 * time.Millisecond,
		look: 250 * time.Millisecond, rejoin: 10 * time.Second, unused: 30 * time.Second,
	}
	set := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	set(&t.dial, def.dial)
	set(&t.head, def.head)
	set(&t.retryBase, def.retryBase)
	set(&t.retryMax, def.retryMax)
	set(&t.stable, def.stable)
	set(&t.refused, def.refused)
	set(&t.resolve, def.resolve)
	set(&t.beat, def.beat)
	set(&t.suspect, def.suspect)
	set(&t.dead, def.dead)
	set(&t.deadAlways, def.deadAlways)
	set(&t.upgrade, def.upgrade)
	set(&t.ack, def.ack)
	set(&t.duplicate, def.duplicate)
	set(&t.tick, def.tick)
	set(&t.measure, def.measure)
	set(&t.settle, def.settle)
	set(&t.forgive, def.forgive)
	set(&t.overlap, def.overlap)
	set(&t.spread, def.spread)
	set(&t.look, def.look)
	set(&t.rejoin, def.rejoin)
	set(&t.unused, def.unused)
	return t
}

func (c Config) withDefaults() Config {
	if c.Transport == "" {
		c.Transport = Auto
	}
	if c.EdgesMax == 0 {
		c.EdgesMax = 8
	}
	if c.Connections == 0 {
		c.Connections = 4
	}
	if c.EdgesMin == 0 {
		c.EdgesMin = min(2, c.EdgesMax)
	}
	if c.Proxy == nil {
		c.Proxy = func(string) (*url.URL, error) { return nil, nil }
	}
	if c.Resolve == nil {
		c.Resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	c.timing = c.timing.withDefaults()
	return c
}

func (c Config) validate() error {
	var faults []error
	if len(c.Edges) == 0 {
		faults = append(faults, errors.New("agent: Config.Edges is empty"))
	}
	for _, e := range c.Edges {
		if host, port, err := net.SplitHostPort(e); err != nil || host == "" || port == "" {
			faults = append(faults, fmt.Errorf("agent: Config.Edges: %q is not host:port", e))
		}
	}
	if c.Token == "" {
		faults = append(faults, errors.New("agent: Config.Token is empty"))
	}
	switch c.Transport {
	case Auto, OnlyQUIC, OnlyTLS:
	default:
		faults = append(faults, fmt.Errorf("agent: Config.Transport %q is none of auto, quic, tls", c.Transport))
	}
	return errors.Join(faults...)
}

// Status is what the agent is doing now.
type Status struct {
	// Ready says that the app accepts requests.
	Ready bool `json:"ready"`
	// Draining says that the agent is leaving.
	Draining bool `json:"draining"`
	// Tunnels are those open now.
	Tunnels []TunnelStatus `json:"tunnels"`
	// Totals count since the start.
	Totals Totals `json:"totals"`
	// Refused is why an edge last refused the agent for good, empty while a tunnel
	// is open.
	Refused string `json:"refused,omitempty"`
}

// Totals are what an agent has been through. They only grow.
type Totals struct {
	// Opened are the tunnels that an edge accepted.
	Opened uint64 `json:"opened"`
	// Lost are those that ended although neither side had asked for it.
	Lost uint64 `json:"lost"`
	// Failed are the attempts that opened no tunnel, refusals included.
	Failed uint64 `json:"failed"`
}

// totals count what Totals tells.
type totals struct{ opened, lost, failed atomic.Uint64 }

func (t *totals) read() Totals {
	return Totals{Opened: t.opened.Load(), Lost: t.lost.Load(), Failed: t.failed.Load()}
}

// TunnelStatus describes one tunnel.
type TunnelStatus struct {
	Node    string         `json:"node"`
	Region  string         `json:"region,omitempty"`
	Tunnel  string         `json:"tunnel"`
	Remote  string         `json:"remote"`
	Carrier tunnel.Carrier `json:"carrier"`
	Since   time.Time      `json:"since"`
	Streams int            `json:"streams"`
	Leaving bool           `json:"leaving"`
	RTT     time.Duration  `json:"rtt_ns"`
	// Connections are those that carry the tunnel; more than one while there is bulk.
	Connections int `json:"connections"`
}
