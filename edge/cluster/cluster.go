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
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
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
	// Join is a member's public door and JoinToken what it asks for; both are used
	// only while this edge is no member yet.
	Join, JoinToken string
	// Import is the store of the time before the cluster, which its first edge takes
	// over. It is only read.
	Import string
	// SharedFiles are files, by name, which the first edge gives to newcomers, and
	// which newcomers write where they do not exist.
	SharedFiles map[string]string
}

// Member is one edge of the network, as the store has it.
type Member struct {
	Node   string `json:"node"`
	Region string `json:"region,omitempty"`
	// Addr is its public door, Mesh that of its mesh, host:port; empty until it has
	// started once.
	Addr string `json:"addr,omitempty"`
	Mesh string `json:"mesh,omitempty"`
	// Store says that it hosts the store.
	Store  bool      `json:"store,omitempty"`
	Joined time.Time `json:"joined"`
	// Left says that it is a member no more; its certificate is worth nothing.
	Left bool `json:"left,omitempty"`
}

// Cluster is this edge's part in the network. All methods may be called
// concurrently.
type Cluster struct {
	cfg    Config
	logger *slog.Logger
	id     *identity.Identity
	hosted *kv.Server // nil unless the store is here
	store  *kv.Store
	bus    *bus.Bus
	server *relay.Server

	authority *authority.Authority // set by Attach
	sites     *Sites

	stop context.CancelFunc // ends what Open started
	wg   sync.WaitGroup

	refused chan refusal

	mu      sync.Mutex // guards below
	members map[string]Member
	addr    string // of this edge's public door
	peers   map[string]*peering
	edges   func([]Live)
	told    []Live
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
		refused: make(chan refusal, 1024),
	}
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
	return c, nil
}

// join gets this edge a certificate from a member.
func (c *Cluster) join(ctx context.Context) error {
	pin, err := authority.PeekJoin(c.cfg.JoinToken)
	if err != nil {
		return err
	}
	id, grant, err := identity.Join(ctx, c.cfg.Join, pin, identity.Request{
		Token: strings.TrimSpace(c.cfg.JoinToken), Node: c.cfg.Node, Region: c.cfg.Region,
	})
	if err != nil {
		return err
	}
	for name, path := range c.cfg.SharedFiles {
		text, ok := grant.Files[name]
		if !ok {
			continue
		}
		if err := writeNew(path, text); err != nil {
			return err
		}
	}
	seeds, err := json.Marshal(grant.Members)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(c.cfg.Dir, seedsFile), seeds, 0o600); err != nil {
		return err
	}
	if err := id.Save(c.cfg.Dir); err != nil {
		return err
	}
	c.id = id
	c.logger.Info("edge joined the network", "network", grant.Network, "members", len(grant.Members))
	return nil
}

// writeNew writes a file that does not exist yet.
func writeNew(path string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	} else if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Sync(), f.Close())
}

// openStore opens the mirror and connects to the store, which it hosts if that is
// this edge's part.
func (c *Cluster) openStore(ctx context.Context, first bool) error {
	hosted := filepath.Join(c.cfg.Dir, hostedDir)
	_, statErr := os.Stat(hosted)
	here := first || statErr == nil
	dial := c.dialStore
	if here {
		server, err := kv.StartServer(hosted, c.logger)
		if err != nil {
			return err
		}
		c.hosted = server
		dial = server.InProcessConn
	} else {
		c.readSeeds()
	}
	var err error
	c.store, err = kv.Open(kv.Config{Dial: dial, Mirror: filepath.Join(c.cfg.Dir, mirrorDir), Pushed: c.pushed}, c.logger)
	if err != nil {
		return err
	}
	// The store must be followed before anything that reads it can be opened.
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	c.stop = stop
	c.wg.Go(func() { _ = c.store.Run(running) })

	patience := time.Second
	if here || c.store.Empty() {
		patience = 20 * time.Second
	}
	select {
	case <-c.store.Fresh():
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(patience):
		if here || c.store.Empty() {
			fault, _ := c.store.Health()
			return fmt.Errorf("the network's store did not answer within %s, and this edge knows nothing of it yet: %w", patience, fault)
		}
		c.logger.Warn("store cannot be reached, starting from the mirror")
	}
	return nil
}

// found makes this edge the first of a network.
func (c *Cluster) found(ctx context.Context) error {
	if err := c.takeOver(ctx); err != nil {
		return err
	}
	ca, err := c.ca(ctx)
	if errors.Is(err, store.ErrNotFound) {
		if ca, err = identity.NewCA(c.cfg.Node); err != nil {
			return err
		}
		text, err := ca.PEM()
		if err != nil {
			return err
		}
		if _, err := c.store.Create(ctx, bucketCluster, keyCA, text); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	cert, err := ca.Issue(c.cfg.Node, public)
	if err != nil {
		return err
	}
	if c.id, err = identity.New(key, cert, ca.Certificate()); err != nil {
		return err
	}
	return c.id.Save(c.cfg.Dir)
}

// takeOver copies the store of the time before the cluster, once.
func (c *Cluster) takeOver(ctx context.Context) error {
	if _, err := os.Stat(c.cfg.Import); err != nil {
		return nil // there was none
	}
	old, err := store.OpenDir(c.cfg.Import)
	if err != nil {
		return err
	}
	defer old.Close() //nolint:errcheck // read only
	names, err := old.Buckets()
	if err != nil {
		return err
	}
	n := 0
	for _, name := range names {
		entries, err := old.List(ctx, name)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if _, err := c.store.Create(ctx, name, e.Key, e.Value); err != nil && !errors.Is(err, store.ErrExists) {
				return err
			}
			n++
		}
	}
	c.logger.Info("store taken over", "entries", n)
	return nil
}

func (c *Cluster) ca(ctx context.Context) (*identity.CA, error) {
	e, err := c.store.Get(ctx, bucketCluster, keyCA)
	if err != nil {
		return nil, err
	}
	return identity.ParseCA(e.Value)
}

// renew replaces a node certificate in the second half of its life.
func (c *Cluster) renew(ctx context.Context) error {
	if !c.id.Old(time.Now()) {
		return nil
	}
	ca, err := c.ca(ctx)
	if err != nil {
		return err
	}
	id, err := c.id.Renewed(ca)
	if err != nil {
		return err
	}
	c.id = id
	return id.Save(c.cfg.Dir)
}

// readSeeds takes in the members that were known at the join.
func (c *Cluster) readSeeds() {
	text, err := os.ReadFile(filepath.Join(c.cfg.Dir, seedsFile))
	var list []Member
	if err != nil || json.Unmarshal(text, &list) != nil {
		return
	}
	for _, m := range list {
		c.members[m.Node] = m
	}
}

func (c *Cluster) readMembers(ctx context.Context) error {
	entries, err := c.store.List(ctx, bucketMembers)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if m, ok := decodeMember(e); ok {
			c.members[m.Node] = m
		}
	}
	return nil
}

func decodeMember(e store.Entry) (Member, bool) {
	var m Member
	err := json.Unmarshal(e.Value, &m)
	return m, err == nil && m.Node == e.Key && identity.ValidNode(m.Node)
}

// dialStore connects to the edge that hosts the store.
func (c *Cluster) dialStore() (net.Conn, error) {
	var errs []error
	for _, m := range c.Members() {
		if !m.Store || m.Left || m.Addr == "" {
			continue
		}
		d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 2 * time.Second}, Config: c.id.Client(alpnStore, m.Node)}
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		conn, err := d.DialContext(ctx, "tcp", m.Addr)
		cancel()
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return nil, errors.New("no edge is known that hosts the store")
	}
	return nil, errors.Join(errs...)
}

func (c *Cluster) openBus() error {
	epoch, err := nextEpoch(filepath.Join(c.cfg.Dir, epochFile))
	if err != nil {
		return err
	}
	c.bus, err = bus.Open(bus.Config{
		Network: identity.Fingerprint(c.id.Authority())[:16], Epoch: epoch,
		Listen: c.cfg.Listen, Advertise: c.meshAdvertise(), Routes: c.routes(),
	}, c.id, c.id.Routes(c.allow), c.allow, bus.Listener{
		Route: func(pattern, node string, _ bus.State) { c.sites.changed(pattern) },
		Node:  c.heardOf,
		Entry: c.store.Learn,
	}, c.logger)
	return err
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

// allow refuses nodes that are no members.
func (c *Cluster) allow(node string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, ok := c.members[node]
	switch {
	case !ok:
		return fmt.Errorf("the edge %s is not known here", node)
	case m.Left:
		return fmt.Errorf("the edge %s has left the network", node)
	}
	return nil
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

// Members lists the edges that are or were members, by id.
func (c *Cluster) Members() []Member {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]Member, 0, len(c.members))
	for _, m := range c.members {
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b Member) int { return strings.Compare(a.Node, b.Node) })
	return out
}

// Store is the network's state.
func (c *Cluster) Store() store.Store { return c.store }

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
	for _, b := range s.Pool().Near() {
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
	if c.stop != nil {
		c.stop()
	}
	c.wg.Wait()
	if c.store != nil {
		_ = c.store.Close()
	}
	if c.hosted != nil {
		_ = c.hosted.Close()
	}
	return nil
}
