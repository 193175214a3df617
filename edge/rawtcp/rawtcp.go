// Package rawtcp is the edge's raw TCP ports. A site may have one: every connection
// to it becomes one stream to one of the site's backends, byte for byte.
//
// TCP itself cannot say that a connection ended too early, and raw bytes do not say
// it either. So a client sees a proper end (FIN) only when the app made one and the
// agent has reported so; whatever else ends a connection resets it, the edge's own
// death by a signal included.
package rawtcp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/time/rate"

	"wormhole/edge/site"
	"wormhole/edge/usage"
)

// Config says where to listen, and the limits. Zero values take the defaults.
type Config struct {
	// Host is where a site's port listens that names no address; empty is everywhere.
	Host string
	// Own are the edge's other ports and what they are for, such as "--https".
	Own map[int]string
	// MaxConnections bounds the connections of all sites together; default a
	// sixteenth of the descriptors the process may have, 10,000 at most.
	MaxConnections int
	// Inherited are open listeners by host, which take the place of addresses. Those
	// that no site wants are closed when Run begins.
	Inherited map[string]net.Listener
	// Usage counts what each site uses. Nil counts nothing.
	Usage *usage.Meter
	// Quiet leaves out the log line of each connection.
	Quiet bool
}

const (
	// retryInterval is how often a port that could not be had is tried again.
	retryInterval = 2 * time.Second
	// acceptLast is for whoever waits in the kernel when a port closes.
	acceptLast = 20 * time.Millisecond
)

// Sites are those of the whole network.
type Sites interface {
	Lookup(host string) (*site.Site, bool)
}

// Rules are the sites that this edge has rules for.
type Rules interface {
	Site(pattern string) (*site.Site, bool)
}

// Status is one site's port.
type Status struct {
	Host string
	// Address is where it listens, or should.
	Address string
	// Err is why it does not listen, nil if it does.
	Err error
	// Connections are open now; those of a port that the site had before count too.
	Connections int64
}

// Server holds the ports. All methods may be called concurrently.
type Server struct {
	cfg    Config
	rules  Rules
	sites  Sites
	logger *slog.Logger
	noise  *rate.Limiter // of lines that a stranger can cause

	ctx  context.Context // of connections
	cut  context.CancelFunc
	work sync.WaitGroup // accept loops and connections

	open                  atomic.Int64
	carried, cutOff, away atomic.Uint64

	mu      sync.Mutex // guards what follows
	doors   map[string]*door
	claims  map[string]*claim
	state   state
	emptied chan struct{} // closed when the last connection has ended; nil while nobody waits
}

type state uint8

const (
	waiting state = iota // before Run
	serving
	stopped // accepts nobody any more
)

// door is one site's port.
type door struct {
	host     string
	listen   string // what the rules say; empty if they ceased to
	listener *net.TCPListener
	err      error // why listener is nil
	open     atomic.Int64
}

// claim is a port that was bound before the rules that want it are in force.
type claim struct {
	listen   string
	listener *net.TCPListener
}

// New makes a server without ports; see Sync. It starts nothing.
func New(cfg Config, rules Rules, sites Sites, logger *slog.Logger) *Server {
	if cfg.MaxConnections == 0 {
		cfg.MaxConnections = 1000
		var limit syscall.Rlimit
		if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) == nil {
			cfg.MaxConnections = int(max(16, min(limit.Cur/16, 10_000)))
		}
	}
	s := &Server{
		cfg: cfg, rules: rules, sites: sites, logger: logger, noise: rate.NewLimiter(1, 5),
		doors: map[string]*door{}, claims: map[string]*claim{},
	}
	s.ctx, s.cut = context.WithCancel(context.Background())
	return s
}

// Claim binds the port that rules would give to host, so that they can be refused
// before they are stored; Sync then uses it. release gives up a claim that was not
// used, and does nothing otherwise. The error says what to do.
func (s *Server) Claim(host string, rules site.TCPRules) (release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.doors[host]
	if rules.Listen == "" || s.state == stopped || d != nil && d.listener != nil && (d.listen == rules.Listen || samePort(d, rules.Listen)) {
		return func() {}, nil
	}
	l, err := s.bind(host, rules.Listen)
	if err != nil {
		return nil, err
	}
	c := &claim{rules.Listen, l}
	s.dropClaim(host)
	s.claims[host] = c
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.claims[host] == c {
			s.dropClaim(host)
		}
	}, nil
}

// samePort reports whether a port stays and only its address changes: then the old
// one must close before the new one can be bound.
func samePort(d *door, listen string) bool {
	_, port, _ := net.SplitHostPort(listen)
	_, now, _ := net.SplitHostPort(d.listener.Addr().String())
	return port == now
}

func (s *Server) dropClaim(host string) {
	if c := s.claims[host]; c != nil {
		_ = c.listener.Close()
		delete(s.claims, host)
	}
}

// Sync makes the port of a site what its rules say now. Open connections stay, also
// when the port closes. A port that cannot be had is logged, shown in Status, and
// tried again.
func (s *Server) Sync(host string) {
	listen := ""
	s.mu.Lock()
	defer s.mu.Unlock()
	if known, ok := s.rules.Site(host); ok {
		listen = known.Rules().TCP.Listen
	}
	d := s.doors[host]
	switch {
	case s.state == stopped:
		return
	case d == nil && listen == "":
		s.dropClaim(host)
		return
	case d == nil:
		d = &door{host: host}
		s.doors[host] = d
	case d.listen == listen && d.listener != nil:
		s.dropClaim(host)
		return
	}
	if d.listener != nil {
		s.logger.Info("raw TCP port closes", "site", host, "address", d.listener.Addr().String())
		_ = d.listener.Close()
		d.listener = nil
	}
	d.listen, d.err = listen, nil
	if listen == "" {
		s.dropClaim(host)
		s.forget(d)
		return
	}
	s.openDoor(d)
	if d.err != nil {
		s.logger.Error("raw TCP port cannot be had, trying again", "site", host, "err", d.err)
	}
}

// forget drops a door that is not wanted any more, once it is empty; s.mu is held.
func (s *Server) forget(d *door) {
	if d.listen == "" && d.open.Load() == 0 && s.doors[d.host] == d {
		delete(s.doors, d.host)
	}
}

// openDoor binds the door's port, or takes a listener that has it; s.mu is held.
func (s *Server) openDoor(d *door) {
	var l *net.TCPListener
	if c := s.claims[d.host]; c != nil && c.listen == d.listen {
		l = c.listener
		delete(s.claims, d.host)
	}
	s.dropClaim(d.host)
	if old, ok := s.cfg.Inherited[d.host].(*net.TCPListener); ok {
		delete(s.cfg.Inherited, d.host)
		_, port, _ := net.SplitHostPort(d.listen)
		if _, has, _ := net.SplitHostPort(old.Addr().String()); l == nil && (port == "0" || port == has) {
			l = old
		} else {
			_ = old.Close()
		}
	}
	if l == nil {
		if l, d.err = s.bind(d.host, d.listen); d.err != nil {
			return
		}
	}
	d.listener, d.err = l, nil
	s.logger.Info("raw TCP port opens", "site", d.host, "address", l.Addr().String())
	if s.state == serving {
		s.work.Go(func() { s.accept(d, l) })
	}
}

// bind listens, unless the port is somebody's; s.mu is held.
func (s *Server) bind(host, listen string) (*net.TCPListener, error) {
	address, port, err := net.SplitHostPort(listen)
	if err != nil {
		return nil, fmt.Errorf("tcp.listen: %w", err)
	}
	if address == "" {
		address = s.cfg.Host
	}
	for number, flag := range s.cfg.Own {
		if port == fmt.Sprint(number) && port != "0" {
			return nil, fmt.Errorf("tcp.listen: port %s is the edge's own (%s): choose another", port, flag)
		}
	}
	for _, other := range s.doors {
		if other.host == host || port == "0" {
			continue
		}
		if _, taken, _ := net.SplitHostPort(other.address()); taken == port {
			return nil, fmt.Errorf("tcp.listen: port %s is taken by the site %s: choose another", port, other.host)
		}
	}
	for other, c := range s.claims {
		if _, taken, _ := net.SplitHostPort(c.listener.Addr().String()); other != host && taken == port {
			return nil, fmt.Errorf("tcp.listen: port %s is taken by the site %s: choose another", port, other)
		}
	}
	l, err := net.Listen("tcp", net.JoinHostPort(address, port))
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("tcp.listen: port %s is taken by another program on this machine: choose another", port)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("tcp.listen: %s is no address of this machine: leave it out to listen where --https does", address)
	case err != nil:
		return nil, fmt.Errorf("tcp.listen: %w", err)
	}
	return l.(*net.TCPListener), nil
}

// address is where the door listens, or should; s.mu is held.
func (d *door) address() string {
	if d.listener != nil {
		return d.listener.Addr().String()
	}
	return d.listen
}

// Run serves until ctx ends, and then closes everything at once; for a gentle end
// call Shutdown first.
func (s *Server) Run(ctx context.Context) error {
	s.mu.Lock()
	if s.state == waiting {
		s.state = serving
		for _, d := range s.doors {
			if l := d.listener; l != nil {
				s.work.Go(func() { s.accept(d, l) })
			}
		}
		for host, l := range s.cfg.Inherited {
			_ = l.Close()
			delete(s.cfg.Inherited, host)
		}
	}
	s.mu.Unlock()
	tick := time.NewTicker(retryInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			s.Close()
			return nil
		case <-tick.C:
			s.retry()
		}
	}
}

// retry tries ports that could not be had.
func (s *Server) retry() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.doors {
		if s.state == serving && d.listener == nil && d.listen != "" {
			s.openDoor(d)
		}
	}
}

// Status lists the ports by host.
func (s *Server) Status() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Status, 0, len(s.doors))
	for _, d := range s.doors {
		st := Status{Host: d.host, Address: d.address(), Err: d.err, Connections: d.open.Load()}
		if d.listener == nil && d.err == nil {
			st.Err = errors.New("closed")
		}
		out = append(out, st)
	}
	slices.SortFunc(out, func(a, b Status) int { return strings.Compare(a.Host, b.Host) })
	return out
}

// Counts are the connections that ended properly, those that were cut, and those
// that found no place or no backend.
func (s *Server) Counts() (ended, cut, refused uint64) {
	return s.carried.Load(), s.cutOff.Load(), s.away.Load()
}

// Open counts the connections open now.
func (s *Server) Open() int64 { return s.open.Load() }

// Listeners are the open ports by host, to be passed to a successor process.
func (s *Server) Listeners() map[string]net.Listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]net.Listener{}
	for _, d := range s.doors {
		if d.listener != nil {
			out[d.host] = d.listener
		}
	}
	return out
}

// StopAccepting takes those who wait in the kernel's queues and then nobody any
// more. It does not wait.
func (s *Server) StopAccepting() {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.state
	s.state = stopped
	for _, d := range s.doors {
		switch {
		case d.listener == nil:
		case was == waiting:
			_ = d.listener.Close()
		default: // accept closes it
			_ = d.listener.SetDeadline(time.Now().Add(acceptLast))
		}
	}
	for host := range s.claims {
		s.dropClaim(host)
	}
	for host, l := range s.cfg.Inherited {
		_ = l.Close()
		delete(s.cfg.Inherited, host)
	}
}

// Shutdown accepts nobody any more, lets connections go on until ctx ends, and then
// resets those that are left. It returns how many those were.
func (s *Server) Shutdown(ctx context.Context) int64 {
	s.StopAccepting()
	gone := make(chan struct{})
	go func() { // ends with the connections, which the lines below see to
		s.work.Wait()
		close(gone)
	}()
	left := int64(0)
	select {
	case <-gone:
	case <-ctx.Done():
		left = s.open.Load()
	}
	s.cut()
	<-gone
	return left
}

// Close ends everything at once and waits. It is idempotent.
func (s *Server) Close() {
	s.StopAccepting()
	s.cut()
	s.work.Wait()
}
