package cluster

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"wormhole/edge/cluster/bus"
	"wormhole/edge/cluster/identity"
	"wormhole/edge/cluster/kv"
)

// Placement says which edges hold the network's store. There is none, generation 0,
// as long as the first edge holds it and it was never moved. Whoever hears of a later
// generation believes it: one comes to be when it is on the disk of the one edge that
// held the store before, which takes no writes from then on, or when an entry of the
// store that three hold says so (Replace); its ID is the same then.
type Placement struct {
	Generation uint64 `json:"generation"`
	// ID tells the store's files and connections from those of others that were
	// begun: 32 hexadecimal digits.
	ID string `json:"id"`
	// Nodes are one edge or three, in order.
	Nodes []string `json:"nodes"`
	// Servers are what the store's servers on Nodes are called: as their nodes if it
	// is nil, else as the node and the generation with which it took another's place.
	Servers []string `json:"servers,omitempty"`
}

func (p *Placement) valid() bool {
	id, err := hex.DecodeString(p.ID)
	return err == nil && len(id) == 16 && p.Generation > 0 && (len(p.Nodes) == 1 || len(p.Nodes) == kv.Replicas) &&
		slices.IsSorted(p.Nodes) && len(slices.Compact(slices.Clone(p.Nodes))) == len(p.Nodes) &&
		!slices.ContainsFunc(p.Nodes, func(n string) bool { return !identity.ValidNode(n) }) && p.validServers()
}

func (p *Placement) validServers() bool {
	if p.Servers == nil {
		return true
	}
	if len(p.Servers) != len(p.Nodes) || len(p.Nodes) != kv.Replicas {
		return false
	}
	for i, name := range p.Servers {
		node, since, late := strings.Cut(name, "-")
		if n, err := strconv.ParseUint(since, 10, 64); node != p.Nodes[i] || late && (err != nil || n > p.Generation || strconv.FormatUint(n, 10) != since) {
			return false
		}
	}
	return true
}

// keyPlacement is where the store itself says where it is, for backups.
const keyPlacement = "placement"

// placementFile is in Config.Dir.
const placementFile = "placement.json"

// announced is what an edge says of the store on the bus.
type announced struct {
	Placement
	Moving bool `json:"moving,omitempty"`
}

func loadPlacement(dir string) (p Placement, err error) {
	path := filepath.Join(dir, placementFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	} else if err != nil {
		return p, err
	}
	if json.Unmarshal(text, &p) != nil || !p.valid() {
		return p, fmt.Errorf("%s is damaged: copy it from another edge of the network", path)
	}
	return p, nil
}

// savePlacement returns when p is on the disk.
func savePlacement(dir string, p Placement) error {
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return writeSynced(filepath.Join(dir, placementFile), append(text, '\n'))
}

// writeSynced replaces a file, and returns when that is on the disk.
func writeSynced(path string, text []byte) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// placed is where the store is, and the server of it that runs here, nil if none.
func (c *Cluster) placed() (Placement, *kv.Server) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.placement, c.hosted
}

// holders are the edges that hold the store, as far as this one knows.
func (c *Cluster) holders() []string {
	var out []string
	for _, m := range c.Members() {
		if m.Store && !m.Left {
			out = append(out, m.Node)
		}
	}
	return out
}

// announce says on the bus where the store is.
func (c *Cluster) announce(moving bool) {
	c.mu.Lock()
	a := announced{c.placement, moving}
	c.mu.Unlock()
	if a.Generation == 0 && !moving {
		return
	}
	text, err := json.Marshal(a)
	if err != nil {
		return
	}
	c.bus.Describe(func(i *bus.Info) { i.Store = text })
}

// heardOfStore hears what another edge says of the store. It does not block.
func (c *Cluster) heardOfStore(text json.RawMessage) {
	var a announced
	if len(text) == 0 || json.Unmarshal(text, &a) != nil {
		return
	}
	if a.Moving {
		c.noteMoving(true)
	} else if a.Generation > 0 {
		c.noteMoving(false)
	}
	c.offer(a.Placement)
}

// noteMoving notes that the store is being moved, or that it is not.
func (c *Cluster) noteMoving(moving bool) {
	if moving {
		c.moving.Store(time.Now().UnixNano())
	} else {
		c.moving.Store(0)
	}
}

// offer has a placement adopted if it is newer than what is known. It does not block.
func (c *Cluster) offer(p Placement) {
	if known, _ := c.placed(); p.valid() && p.Generation > known.Generation {
		select {
		case c.placements <- p:
		default: // it is said again
		}
	}
}

// adopt goes over to a newer generation of the store that another edge decided on.
func (c *Cluster) adopt(p Placement) {
	known, server := c.placed()
	if p.Generation <= known.Generation {
		return
	}
	c.logger.Info("the network's store is elsewhere now", "generation", p.Generation, "edges", p.Nodes)
	if err := savePlacement(c.cfg.Dir, p); err != nil {
		c.logger.Warn("where the store is was not written down; it is asked for again after a restart", "err", err)
	}
	c.mu.Lock()
	part, pending := c.part, c.pending
	c.placement, c.pending = p, nil
	c.hosted, c.part = nil, nil
	if slices.Contains(p.Nodes, c.cfg.Node) {
		switch {
		case pending != nil && pending.id() == p.ID:
			c.hosted, c.part, pending = pending.server, pending, nil
		case part != nil && part.id() == p.ID:
			c.hosted, c.part, part, server = server, part, nil, nil
		}
	}
	held := c.part
	apart := known.ID != p.ID || c.storeAt != "" && !slices.Contains(p.Nodes, c.storeAt)
	c.mu.Unlock()
	if held != nil {
		if err := held.follow(p, c.cfg.Node); err != nil {
			c.logger.Warn("who holds the store was not written down", "err", err)
		}
	}
	if late, _ := p.newest(); held == nil && late == c.cfg.Node {
		c.wg.Go(func() { c.take(p) })
	}
	c.announce(false)
	if apart {
		c.store.Reconnect()
	}
	if pending != nil {
		pending.remove()
	}
	switch { // what was held here is of the past: a backup was restored elsewhere, or another edge holds it instead
	case part != nil:
		part.close()
		c.setAside(part.dir)
	case server != nil:
		_ = server.Close()
		c.setAside(filepath.Join(c.cfg.Dir, hostedDir))
	}
}

// setAside renames files of a store that is none any more. They are not deleted, since
// nobody here knows whether all of it is where the store is now.
func (c *Cluster) setAside(dir string) {
	if err := os.Rename(dir, filepath.Join(c.cfg.Dir, "replaced-"+time.Now().UTC().Format("20060102T150405.000"))); err != nil {
		c.logger.Warn("the former store's files are still there", "err", err)
	}
}
