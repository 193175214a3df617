// Package cluster makes several edges one network: which edges live, which sites
// each can reach, relays of streams between them, and the state they share.
//
// Its parts are identity (who is an edge, and how one joins), kv (durable state),
// bus (who is live and reaches what) and relay (streams to other edges). This
// package keeps the list of members and puts the parts together; node asks it for
// a store, for sites and for what to tell agents.
//
// The data plane never waits for it: with every other edge and the store gone, an
// edge serves what it holds, also after a restart.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"wormhole/edge/authority"
	"wormhole/edge/cluster/bus"
	"wormhole/edge/cluster/identity"
	"wormhole/edge/cluster/kv"
	"wormhole/edge/cluster/relay"
	"wormhole/edge/cluster/store"
	"wormhole/edge/site"
)

// alpnStore is what edges offer to the one that hosts the store.
const alpnStore = "wormhole-store/1"

// alpnMoved is the same for a store that was moved. What follows is its Placement.ID.
const alpnMoved = "wormhole-store/2"

// Folder is where Config.Dir is, in an edge's data directory.
const Folder = "cluster"

// Buckets and keys of the store.
const (
	bucketMembers = "members" // Member as JSON, by node
	bucketCluster = "cluster"
	keyCA         = "ca"      // authority over edges, with its key
	filePrefix    = "file/"   // shared files, by name
	mirrorDir     = "mirror"  // in Config.Dir
	hostedDir     = "hosted"  // in Config.Dir: the network's store, if it is hosted here
	epochFile     = "epoch"   // in Config.Dir
	seedsFile     = "members" // in Config.Dir: members known at the join, to find the store by
)

// Config says how this edge takes part.
type Config struct {
	// Dir keeps certificate, mirror and epoch; made with mode 0700.
	Dir string
	// Node, Region and Version describe this edge.
	Node, Region, Version string
	// Listen is the address of the mesh, Advertise the host under which others reach
	// this edge; empty takes the one listened on.
	Listen, Advertise string
	// Join is a member's public door and JoinTokenFile names a file with the token it
	// asks for. Both are used only while this edge is no member yet: later the token
	// may have expired, the file and that member be gone.
	Join, JoinTokenFile string
	// SessionMemory bounds, in bytes, what is held of the streams that a peer carries
	// for this edge; 0 means relay.SessionMemory.
	SessionMemory int
	// External is a NATS cluster that carries bus and store, in place of Listen and of
	// a store among the edges. Whoever may use it is a member: nobody joins.
	External *kv.External
	// Import is the store of the time before the cluster, which its first edge takes
	// over. It is only read.
	Import string
	// SharedFiles are files, by name, which the first edge gives to newcomers, and
	// which newcomers write where they do not exist.
	SharedFiles map[string]string
}

// Cluster is this edge's part in the network. All methods may be called
// concurrently.
type Cluster struct {
	cfg    Config
	logger *slog.Logger
	id     *identity.Identity
	store  *kv.Store
	bus    *bus.Bus
	server *relay.Server

	authority *authority.Authority // set by Attach
	sites     *Sites

	running context.Context    // of what Open started
	stop    context.CancelFunc // ends it
	wg      sync.WaitGroup

	promoting  sync.Mutex
	settling   sync.Mutex   // guards settledAt
	settledAt  uint64       // the generation whose replaced edge was given up from here
	moving     atomic.Int64 // when the store last took no writes since it is moved, ns since 1970; 0 for not now
	placements chan Placement

	refused chan refusal
	turns   atomic.Uint64 // of Run's loop

	mu      sync.Mutex // guards below
	members map[string]Member
	addr    string // of this edge's public door
	peers   map[string]*peering
	edges   func([]Live)
	told    []Live

	placement Placement  // where the store is
	hosted    *kv.Server // nil unless it is here, whole or in part
	part      *part      // which part
	pending   *part      // of a store that may come to be
	begun     string     // the store that is being made here, by Placement.ID
	dialled   int        // times that the store was dialled
	dialledAt time.Time
	storeAt   string // the edge whose server of the store was last connected to
}

// peering is a peer whose session is kept.
type peering struct {
	*relay.Peer
	stop    context.CancelFunc
	dropped bool // its rows were forgotten; guarded by Cluster.mu
}

type refusal struct{ pattern, node string }

// Open makes this edge a member, or finds that it is one, and opens the store. Sites
// and doors come later: see Attach and Announce.
func Open(ctx context.Context, cfg Config, logger *slog.Logger) (_ *Cluster, err error) {
	fail := func(err error) (*Cluster, error) { return nil, fmt.Errorf("cluster: %w", err) }
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return fail(err)
	}
	c := &Cluster{
		cfg: cfg, logger: logger, members: map[string]Member{}, peers: map[string]*peering{},
		refused: make(chan refusal, 1024), placements: make(chan Placement, 8),
	}
	c.running, c.stop = context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			_ = c.Close()
		}
	}()
	c.id, err = identity.Load(cfg.Dir)
	first := false
	switch {
	case err == nil && c.id.Node() != cfg.Node:
		return fail(fmt.Errorf("the certificate in %s is for the node %s, and this is %s", cfg.Dir, c.id.Node(), cfg.Node))
	case err == nil:
		if cfg.Join != "" {
			logger.Info("this edge is a member already, nothing to join")
		}
	case !errors.Is(err, fs.ErrNotExist):
		return fail(err)
	case cfg.Join != "":
		if floor, err := c.floor(ctx, true); err != nil || floor > 0 {
			return fail(errors.Join(err, errors.New("this data directory was restored from a backup and begins the network anew: start it without --join")))
		}
		if err := c.join(ctx); err != nil {
			return fail(err)
		}
	default:
		first = true
	}
	if err := c.openStore(ctx, first); err != nil {
		return fail(err)
	}
	if first {
		if err := c.found(ctx); err != nil {
			return fail(err)
		}
	}
	if err := c.readMembers(ctx); err != nil {
		return fail(err)
	}
	if err := c.renew(ctx); err != nil {
		logger.Warn("node certificate not renewed", "err", err)
	}
	if err := c.openBus(); err != nil {
		return fail(err)
	}
	c.announce(false)
	c.wg.Go(c.followPlacement)
	c.wg.Go(func() {
		for {
			select {
			case p := <-c.placements:
				c.adopt(p)
			case <-c.running.Done():
				return
			}
		}
	})
	return c, nil
}

func (c *Cluster) openBus() error {
	epoch, err := nextEpoch(filepath.Join(c.cfg.Dir, epochFile))
	if err != nil {
		return err
	}
	cfg := bus.Config{
		Network: identity.Fingerprint(c.id.Authority())[:16], Epoch: epoch,
		Listen: c.cfg.Listen, Advertise: c.meshAdvertise(), Routes: c.routes(),
	}
	if c.cfg.External != nil {
		cfg.Connect = c.cfg.External.Connect
	}
	b, err := bus.Open(cfg, c.id, c.id.Routes(c.allow), c.allow, bus.Listener{
		Route: func(pattern, node string, _ bus.State) { c.sites.changed(pattern) },
		Node:  c.heardOf,
		Entry: c.store.Learn,
	}, c.logger)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bus = b
	return nil
}

// nextEpoch is one more than ever before. It is on disk before it is used.
func nextEpoch(path string) (uint64, error) {
	var epoch uint64
	text, err := os.ReadFile(path)
	if err == nil {
		if epoch, err = strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64); err != nil {
			return 0, fmt.Errorf("%s is damaged", path)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	epoch++
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return 0, err
	}
	_, err = fmt.Fprintln(f, epoch)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return 0, err
	}
	return epoch, os.Rename(path+".new", path)
}

// meshAdvertise is how others reach the mesh, empty if it is as it listens.
func (c *Cluster) meshAdvertise() string {
	host, port, err := net.SplitHostPort(c.cfg.Listen)
	if err != nil || c.cfg.Advertise == "" || port == "0" {
		return ""
	}
	if ip := net.ParseIP(host); host != "" && (ip == nil || !ip.IsUnspecified()) {
		return "" // an operator who names an address means it
	}
	return net.JoinHostPort(c.cfg.Advertise, port)
}

// routes are the meshes of the other members.
func (c *Cluster) routes() []string {
	var out []string
	for _, m := range c.Members() {
		if m.Node != c.cfg.Node && !m.Left && m.Mesh != "" {
			out = append(out, m.Mesh)
		}
	}
	return out
}

// pushed tells other edges of what is urgent, faster than their watches.
func (c *Cluster) pushed(bucket string, e store.Entry) {
	switch bucket {
	case "tokens", "keys", bucketMembers:
		c.mu.Lock()
		b := c.bus
		c.mu.Unlock()
		if b != nil {
			b.Push(bucket, e)
		}
	}
}

// Attach gives the cluster the sites of this edge and who verifies join tokens. It
// returns the sites of the whole network. Call it once, before Announce.
func (c *Cluster) Attach(a *authority.Authority, registry *site.Registry) *Sites {
	c.authority = a
	c.server = relay.NewServer(c.id, registry, c.logger)
	c.sites = newSites(c, registry)
	registry.OnPoolChange(func(s *site.Site) {
		c.bus.SetRow(s.Host(), stateOf(s))
		c.server.Changed(s.Host())
	})
	return c.sites
}

// stateOf is how this edge itself reaches a site.
func stateOf(s *site.Site) bus.State {
	state, h2c := bus.Gone, true
	for _, b := range slices.Concat(s.Pool().Near(), s.TCP().Near()) {
		if b.Draining() || !b.Ready() {
			continue
		}
		h2c = h2c && b.AppProtocol() == "h2c"
		switch {
		case !b.Suspect():
			state = bus.Ready
		case state == bus.Gone:
			state = bus.Suspect
		}
	}
	if state != bus.Gone && h2c {
		state |= bus.H2C
	}
	return state
}

// Close ends everything that Open began. It is idempotent.
func (c *Cluster) Close() error {
	if c.bus != nil {
		_ = c.bus.Close()
	}
	c.stop()
	c.wg.Wait()
	if c.store != nil {
		_ = c.store.Close()
	}
	c.mu.Lock()
	parts, hosted := []*part{c.part, c.pending}, c.hosted
	c.mu.Unlock()
	for _, s := range parts {
		if s != nil {
			s.close()
		}
	}
	if hosted != nil {
		_ = hosted.Close()
	}
	return nil
}
