// Package node builds every part of one edge, opens its listeners, starts the
// parts in order and drains them in reverse. It decides nothing about requests.
package node

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"wormhole/edge/admin"
	"wormhole/edge/agents"
	"wormhole/edge/authority"
	"wormhole/edge/cluster"
	"wormhole/edge/cluster/store"
	"wormhole/edge/config"
	"wormhole/edge/dashboard"
	"wormhole/edge/handover"
	"wormhole/edge/ingress"
	"wormhole/edge/middleware"
	"wormhole/edge/nameserver"
	"wormhole/edge/proxy"
	"wormhole/edge/rawtcp"
	"wormhole/edge/site"
	"wormhole/edge/upstream"
	"wormhole/edge/usage"
	"wormhole/shared/memory"
	"wormhole/shared/notify"
	"wormhole/shared/protocol"
)

// Node is one edge. Make it with New, which opens everything, then Run it once.
type Node struct {
	cfg     config.Config
	version string
	id      string
	logger  *slog.Logger
	started time.Time

	store      store.Store
	authority  *authority.Authority
	certs      certificates
	cluster    *cluster.Cluster // nil unless there may be other edges
	sites      *site.Registry
	network    network
	keeper     *site.Keeper
	door       *agents.Door
	proxy      *proxy.Proxy
	log        *middleware.AccessLog // nil unless the access log is a file
	logFile    *os.File              // of log
	ingress    *ingress.Ingress
	dns        *nameserver.Server // nil unless this edge answers queries
	raw        *rawtcp.Server
	metrics    *metrics
	usage      *usage.Meter
	closeStore func() error
	manager    notify.Manager // who started this process
	memory     *memory.Ceiling

	adminListener net.Listener
	adminServer   *http.Server

	inherited *handover.Sockets // nil unless this process succeeds another
	succeeded atomic.Bool       // a successor has taken over
	upgrading sync.Mutex        // held while one is started; guards successor
	successor *handover.Successor

	draining  atomic.Bool
	drainOnce sync.Once
	drain     chan struct{} // closed to begin the drain
	ready     chan struct{} // closed when every door is open
}

// New builds a node: state is read and every address bound, so that what is wrong
// with the configuration or the machine is in the error, all of it at once where
// one fault does not hide another. Nothing is served before Run.
func New(ctx context.Context, cfg config.Config, version string, logger *slog.Logger) (*Node, error) {
	return Succeed(ctx, cfg, version, nil, logger)
}

// Succeed is New with the sockets of a predecessor, which take the place of
// addresses; nil is none.
func Succeed(ctx context.Context, cfg config.Config, version string, inherited *handover.Sockets, logger *slog.Logger) (_ *Node, err error) {
	n := &Node{
		cfg: cfg, version: version, logger: logger, started: time.Now(), inherited: inherited,
		drain: make(chan struct{}), ready: make(chan struct{}),
		manager: notify.To(os.Getenv(notify.Variable)), memory: memory.NewCeiling(),
	}
	defer func() {
		if err != nil {
			n.closeAll()
		}
	}()
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("data_dir: %w", err)
	}
	if n.id, err = nodeID(filepath.Join(cfg.DataDir, "node.id")); err != nil {
		return nil, fmt.Errorf("data_dir: %w", err)
	}
	if err := n.openStore(ctx); err != nil {
		return nil, err
	}
	if n.authority, err = authority.Open(ctx, n.store, logger); err != nil {
		return nil, err
	}
	credential, err := admin.Credential(cfg.DataDir)
	if err != nil {
		return nil, fmt.Errorf("data_dir: %w", err)
	}
	if err := n.openSites(ctx); err != nil {
		return nil, err
	}
	n.joinNetwork()
	if err := n.openCertificates(); err != nil {
		return nil, err
	}
	n.door, err = agents.New(agents.Config{
		Node: n.id, Region: cfg.Region, Version: version,
		Upstream: upstream.Config{Buffers: new(upstream.Buffers)}, // one set for all tunnels
		Full:     n.memory.Full, SessionMemory: n.memory.Part(sessionPart, agents.SessionMemory),

		Connections: cfg.TunnelConnections, Congestion: cfg.TunnelCongestion,
	}, n.authority, n.sites, logger)
	if err != nil {
		return nil, err
	}
	n.authority.OnRevoke(n.door.Revoke)
	n.metrics = newMetrics(n)
	n.usage = usage.New(usage.Config{Interval: cfg.UsageInterval}, n.store, logger)

	visitor, err := n.visitors()
	if err != nil {
		return nil, err
	}
	n.ingress, err = ingress.New(n.ingressConfig(), &n.certs, ingress.Handlers{
		Visitor:   visitor,
		Plain:     n.answerChallenges(n.plain(visitor)),
		Agent:     n.door.ServeTLS,
		AgentQUIC: n.door.ServeQUIC,
		Others:    n.otherProtocols(),
	}, logger)
	if err != nil {
		return nil, err
	}
	// Both are tried, so that an operator learns of every taken port in one go.
	doors := n.ingress.Listen()
	var adminErr error
	if inherited != nil && inherited.Admin != nil {
		n.adminListener = inherited.Admin
	} else if n.adminListener, adminErr = net.Listen("tcp", cfg.Admin); adminErr != nil {
		adminErr = fmt.Errorf("--admin: %w", adminErr)
	}
	if err := errors.Join(doors, adminErr, n.openDNS()); err != nil {
		return nil, err
	}
	n.openRawTCP()
	n.announceEdges(ctx)
	guard := admin.NewGuard(credential, n.adminListener.Addr(), cfg.Hostname)
	n.adminServer = &http.Server{
		Handler: admin.API(guard, n, admin.Local{Authority: n.authority},
			promhttp.HandlerFor(n.metrics.registry, promhttp.HandlerOpts{}), dashboard.Handler()),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       75 * time.Second,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
	return n, nil
}

// Run serves until ctx ends or a drain is asked for, then drains: readiness turns
// false, agents are told to go, requests in flight finish, everything closes. The
// error is nil after a clean stop.
func (n *Node) Run(ctx context.Context) error {
	defer n.closeAll()
	// Parts outlive ctx by the drain, so they get a context of their own.
	parts, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var wg sync.WaitGroup
	failed := make(chan error, 8)
	run := func(name string, f func(context.Context) error) {
		wg.Go(func() {
			if err := f(parts); err != nil && parts.Err() == nil {
				failed <- fmt.Errorf("%s: %w", name, err)
			}
		})
	}
	run("memory", func(ctx context.Context) error { n.memory.Run(ctx, n.tellMemory); return nil })
	wg.Go(func() { n.guard().run(parts) })
	run("authority", n.authority.Run)
	run("sites", n.keeper.Run)
	run("usage", n.usage.Run)
	run("agents", n.door.Run)
	if n.cluster != nil {
		run("followed sites", n.keeper.Follow)
		run("cluster", n.cluster.Run)
	}
	n.runCertificates(run)
	if n.dns != nil {
		run("dns", n.dns.Run)
	}
	if n.log != nil {
		run("access log", n.log.Run)
	}
	run("ingress", n.ingress.Serve)
	run("raw tcp", n.raw.Run)
	run("admin", func(context.Context) error {
		if err := n.adminServer.Serve(n.adminListener); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	if err := n.writeAddress(); err != nil {
		n.logger.Warn("the command line will not find this edge by its data directory", "err", err)
	}
	n.announce()
	close(n.ready)
	n.tellReady()
	if n.inherited != nil {
		if err := n.inherited.Opened(); err != nil {
			n.logger.Warn("the predecessor does not learn that it can go", "err", err)
		}
	}

	var err error
	select {
	case <-ctx.Done():
	case <-n.drain:
	case err = <-failed:
		n.logger.Error("a part failed, stopping", "err", err)
	}
	n.leave(err == nil)
	stop()
	wg.Wait()
	n.logger.Info("edge stopped", "node", n.id)
	return err
}

// acceptLast is how long a door takes to serve those in its queue and stop.
const acceptLast = 50 * time.Millisecond

// lastAnswer is how long the operator's calls in flight have at the very end.
const lastAnswer = 500 * time.Millisecond

// leave takes the node out of service. When orderly, balancers in front are given
// time to notice and agents and requests to finish.
func (n *Node) leave(orderly bool) {
	n.draining.Store(true)
	deadline := n.cfg.DrainTimeout
	if !orderly {
		deadline = 0
	}
	n.logger.Info("edge drains", "node", n.id, "deadline", deadline)
	if n.cluster != nil {
		n.cluster.Drain()
	}
	if n.succeeded.Load() {
		// Agents that come back to the same address must meet the successor, and so
		// must the operator.
		n.ingress.StopAccepting()
		n.raw.StopAccepting()
		_ = n.adminServer.Close()
		time.Sleep(acceptLast)
	} else {
		n.tellStopping(deadline)
		_ = os.Remove(filepath.Join(n.cfg.DataDir, admin.AddressFile))
		if orderly {
			time.Sleep(n.cfg.DrainDelay)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	n.door.GoAway(deadline)
	n.raw.StopAccepting()
	err := n.ingress.Shutdown(ctx)
	upgraded, raw := n.proxy.Drain(ctx), n.raw.Shutdown(ctx)
	if err != nil || upgraded > 0 || raw > 0 {
		n.logger.Warn("requests were cut at the drain deadline", "err", err, "upgraded", upgraded, "raw_tcp", raw)
	}
	if n.cluster != nil {
		if err := n.cluster.EndRelays(ctx); err != nil {
			n.logger.Warn("requests of other edges were cut at the drain deadline", "err", err)
		}
	}
	n.writeUsage()
	// Whoever asked for the drain is told that it has begun, however soon it is over.
	last, stop := context.WithTimeout(context.Background(), lastAnswer)
	defer stop()
	if n.adminServer.Shutdown(last) != nil {
		_ = n.adminServer.Close()
	}
}

// closeAll releases what New opened; every step is safe twice and on a node that
// was only half built.
func (n *Node) closeAll() {
	if n.ingress != nil {
		_ = n.ingress.Close()
	}
	if n.raw != nil {
		n.raw.Close()
	}
	if n.door != nil {
		_ = n.door.Close()
	}
	if n.dns != nil {
		_ = n.dns.Close()
	}
	if n.adminListener != nil {
		_ = n.adminListener.Close()
	}
	if n.logFile != nil {
		_ = n.logFile.Close()
	}
	if n.certs.mirror != nil {
		_ = n.certs.mirror.Close()
	}
	if n.closeStore != nil {
		_ = n.closeStore()
	}
}

// Opened is closed when every door is open.
func (n *Node) Opened() <-chan struct{} { return n.ready }

// Authority is the node's authority over tokens.
func (n *Node) Authority() *authority.Authority { return n.authority }

// CAFile is the PEM file of the internal authority, or empty.
func (n *Node) CAFile() string {
	if n.certs.internal == nil {
		return ""
	}
	return n.certs.internal.CAPath()
}

func (n *Node) openSites(ctx context.Context) error {
	rules := site.DefaultRules()
	rules.BackendHeader = http.CanonicalHeaderKey(n.cfg.BackendHeader)
	rules.ParkingWait = n.cfg.ParkTimeout
	rules.TrustedProxies = n.cfg.Prefixes()
	n.sites = site.New(rules)
	var err error
	if n.keeper, err = site.NewKeeper(ctx, n.sites, n.store, n.logger); err != nil {
		return err
	}
	// Sites of the configuration file win over those applied before.
	for _, spec := range n.cfg.Sites {
		err = errors.Join(err, n.sites.Apply(spec))
	}
	return err
}

// edges is what agents are told: this node, under the name it has for the outside.
func (n *Node) edges() []protocol.Edge {
	if n.cfg.Hostname == "" {
		return nil
	}
	_, port, err := net.SplitHostPort(n.ingress.Addrs().HTTPS.String())
	if err != nil {
		return nil
	}
	return []protocol.Edge{{Node: n.id, Region: n.cfg.Region, Addr: net.JoinHostPort(n.cfg.Hostname, port)}}
}

// announce logs where the doors are; addresses may have been asked for with port 0.
func (n *Node) announce() {
	addrs := n.addresses()
	n.logger.Info("edge serves", "node", n.id, "https", addrs["https"], "http", addrs["http"], "admin", addrs["admin"], "dns", addrs["dns"],
		"hostname", n.cfg.Hostname, "region", n.cfg.Region, "version", n.version, "data_dir", n.cfg.DataDir)
}

func (n *Node) writeAddress() error {
	path := filepath.Join(n.cfg.DataDir, admin.AddressFile)
	tmp := path + ".new"
	if err := os.WriteFile(tmp, []byte(n.adminListener.Addr().String()+"\n"), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// nodeID reads the node's id from path, or makes one that stays.
func nodeID(path string) (string, error) {
	if text, err := os.ReadFile(path); err == nil {
		id := strings.TrimSpace(string(text))
		if len(id) != 16 {
			return "", fmt.Errorf("%s is damaged: remove it to be a new node", path)
		}
		return id, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	id := hex.EncodeToString(b[:])
	return id, os.WriteFile(path, []byte(id+"\n"), 0o600)
}
