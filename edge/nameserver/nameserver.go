// Package nameserver answers DNS queries (RFC 1035) for the edges' common names and
// the sites below them with the addresses of the edges that live: a CNAME to a
// common name is all a site elsewhere needs. It is authoritative for its zones,
// refuses all others and never asks anybody, so that it is no open resolver.
//
// What it holds back: answers over UDP are at most 1232 bytes and limited in rate
// for each network that has not proven its address by a cookie (RFC 7873) or by
// TCP; ANY gets one small record (RFC 8482); zones are not transferred.
package nameserver

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// Config of a Server.
type Config struct {
	// Listen is the address for UDP and TCP. Listener and PacketConn, if set, are used
	// in its place, as when they were taken over from a predecessor.
	Listen     string
	Listener   net.Listener
	PacketConn net.PacketConn
	// Zones are the canonical names that are answered for, with all below them. The
	// name of a zone itself is the edges' common name.
	Zones []string
	// TTL of addresses, in whole seconds; default 30 s.
	TTL time.Duration
	// Places say where clients are; the longest prefix wins.
	Places []Place
	// Rate is how many answers a second over UDP a network (/24, /56) gets that has
	// not proven its address; default 100, with twice as many at once.
	Rate int
}

// Edge is one edge as answers name it.
type Edge struct {
	Region string
	// Hostname is its own canonical name, empty if it has none. Queries for it get this
	// edge alone, whether it lives or not.
	Hostname string
	Addrs    []netip.Addr
	// DNS says that it answers queries too, and Live that it takes requests.
	DNS, Live bool
}

// Network is what the answers are made of. Its methods are called concurrently and
// must not block.
type Network interface {
	// Edges are all edges that are known.
	Edges() []Edge
	// Pattern is the pattern of the site that a canonical host belongs to.
	Pattern(host string) (pattern string, ok bool)
	// Patterns yields the patterns of all sites, in no order.
	Patterns(yield func(string) bool)
}

const (
	maxUDP      = 1232 // payload that crosses networks unfragmented (DNS flag day 2020)
	maxQuery    = 1232 // longer datagrams are cut, and so malformed
	maxAnswers  = 16   // addresses in one answer
	maxServers  = 13   // NS records of a zone
	defaultTTL  = 30 * time.Second
	defaultRate = 100
	steadyTTL   = 3600 // seconds, of records that do not follow who lives
	lookAgain   = 250 * time.Millisecond
	indexAgain  = 2 * time.Second
)

// Server answers queries. Its methods may be called concurrently.
type Server struct {
	cfg     Config
	network Network
	logger  *slog.Logger
	ttl     uint32 // seconds
	cookies cookies
	limit   *limiter
	known   memory

	listener net.Listener
	packets  *net.UDPConn

	view    atomic.Pointer[view]
	between atomic.Pointer[map[string]struct{}] // names with names below them, and nothing else
	missed  atomic.Bool                         // a name was asked for that is not known
	panics  atomic.Uint64
	counts  [outcomes]atomic.Uint64
}

// New makes a server and binds its sockets; Run serves. Close releases the sockets
// of a server that was never run.
func New(cfg Config, network Network, logger *slog.Logger) (*Server, error) {
	if len(cfg.Zones) == 0 {
		return nil, errors.New("no zone to answer for")
	}
	if cfg.TTL == 0 {
		cfg.TTL = defaultTTL
	}
	if cfg.Rate == 0 {
		cfg.Rate = defaultRate
	}
	s := &Server{
		cfg: cfg, network: network, logger: logger, ttl: uint32(cfg.TTL / time.Second),
		limit: newLimiter(cfg.Rate, 2*cfg.Rate), listener: cfg.Listener,
	}
	_, _ = rand.Read(s.cookies.key[:]) // never fails
	s.look()
	s.index()
	if err := s.listen(); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Server) listen() error {
	addr := s.cfg.Listen
	if s.listener == nil {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return explain(err)
		}
		s.listener = l
		addr = l.Addr().String() // the same port for both
	}
	conn := s.cfg.PacketConn
	if conn == nil {
		var err error
		if conn, err = net.ListenPacket("udp", addr); err != nil {
			return explain(err)
		}
	}
	udp, ok := conn.(*net.UDPConn)
	if !ok {
		return errors.New("the packet socket is not of UDP")
	}
	s.packets = udp
	// An answer must come from the address that was asked, which matters on a machine
	// with several. One of the two fails, by the socket's family.
	err4 := ipv4.NewPacketConn(udp).SetControlMessage(ipv4.FlagDst|ipv4.FlagInterface, true)
	err6 := ipv6.NewPacketConn(udp).SetControlMessage(ipv6.FlagDst|ipv6.FlagInterface, true)
	if err4 != nil && err6 != nil {
		return err4
	}
	return nil
}

// explain says what to do about ports that cannot be bound.
func explain(err error) error {
	switch {
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%w: ports below 1024 need root or CAP_NET_BIND_SERVICE", err)
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%w: a resolver of this machine may hold it; name one public address, such as 203.0.113.1:53", err)
	}
	return err
}

// Addr is where queries are answered, UDP and TCP.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Sockets are those of TCP and UDP, to hand over to a successor.
func (s *Server) Sockets() (net.Listener, *net.UDPConn) { return s.listener, s.packets }

// Close releases the sockets. It is idempotent.
func (s *Server) Close() error {
	if s.listener != nil {
		_ = s.listener.Close()
	}
	if s.packets != nil {
		_ = s.packets.Close()
	}
	return nil
}

// Run answers until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	started := make(chan struct{})
	tcp := &dns.Server{
		Listener: newDoor(s.listener), Handler: dns.HandlerFunc(s.serveTCP), MsgAcceptFunc: accept,
		ReadTimeout: 2 * time.Second, WriteTimeout: 2 * time.Second,
		IdleTimeout:       func() time.Duration { return 5 * time.Second },
		MaxTCPQueries:     128,
		NotifyStartedFunc: func() { close(started) },
	}
	failed := make(chan error, 1)
	wg.Go(func() { failed <- tcp.ActivateAndServe() })
	// A fixed number of readers, and no goroutine for each packet: a flood is left in
	// the socket's queue, where the kernel drops what does not fit.
	for range max(2, runtime.GOMAXPROCS(0)) {
		wg.Go(s.serveUDP)
	}
	wg.Go(func() { s.follow(ctx) })
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	if err == nil {
		<-started
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		_ = tcp.ShutdownContext(last)
		cancel()
	}
	_ = s.Close()
	if err == nil {
		wg.Wait()
	}
	return err
}

// follow keeps what answers are made of current.
func (s *Server) follow(ctx context.Context) {
	look, index := time.NewTicker(lookAgain), time.NewTicker(indexAgain)
	defer look.Stop()
	defer index.Stop()
	for {
		select {
		case <-look.C:
			s.look()
		case <-index.C:
			if s.missed.Swap(false) {
				s.index()
			}
		case <-ctx.Done():
			return
		}
	}
}

// index finds the names that exist only because others are below them (RFC 8020):
// they have no address, but denying them would deny what is below.
func (s *Server) index() {
	between := map[string]struct{}{}
	add := func(name string) bool {
		zone, ok := s.zoneOf(name)
		if !ok {
			return true
		}
		for {
			_, parent, _ := strings.Cut(name, ".")
			if len(parent) <= len(zone) {
				return true
			}
			between[parent] = struct{}{}
			name = parent
		}
	}
	s.network.Patterns(add)
	for name := range s.view.Load().hosts {
		add(name)
	}
	s.between.Store(&between)
}

// zoneOf is the longest of the zones that name, canonical or a pattern, is in.
func (s *Server) zoneOf(name string) (zone string, ok bool) {
	for _, z := range s.cfg.Zones {
		if len(z) > len(zone) && (name == z || strings.HasSuffix(name, "."+z)) {
			zone = z
		}
	}
	return zone, zone != ""
}

// view is the edges at one moment.
type view struct {
	live    []Edge
	hosts   map[string][]Edge // by hostname
	servers []string          // names that answer queries
}

// look takes a new view of the edges.
func (s *Server) look() {
	v := &view{hosts: map[string][]Edge{}}
	for _, e := range s.network.Edges() {
		if e.Live && len(e.Addrs) > 0 {
			v.live = append(v.live, e)
		}
		if e.Hostname == "" {
			continue
		}
		v.hosts[e.Hostname] = append(v.hosts[e.Hostname], e)
		if e.DNS && !slices.Contains(v.servers, e.Hostname) {
			v.servers = append(v.servers, e.Hostname)
		}
	}
	slices.Sort(v.servers)
	v.servers = v.servers[:min(len(v.servers), maxServers)]
	s.view.Store(v)
}
