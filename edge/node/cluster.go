package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"wormhole/edge/admin"
	"wormhole/edge/cluster"
	"wormhole/edge/cluster/kv"
	"wormhole/edge/cluster/relay"
	"wormhole/edge/cluster/store"
	"wormhole/edge/ingress"
	"wormhole/edge/site"
	"wormhole/shared/protocol"
)

// network is the sites as requests see them: this edge's own, or in a cluster those
// of all edges.
type network interface {
	Lookup(host string) (*site.Site, bool)
	Pattern(host string) (string, bool)
}

// openStore opens what is durable: a directory, or in a cluster the network's store.
func (n *Node) openStore(ctx context.Context) error {
	dir := n.cfg.StoreDir
	if dir == "" {
		dir = filepath.Join(n.cfg.DataDir, "store")
	}
	if n.cfg.ClusterListen != "" || len(n.cfg.NATS) > 0 {
		return n.openCluster(ctx, dir)
	}
	if _, err := os.Stat(filepath.Join(n.cfg.DataDir, cluster.Folder)); err == nil {
		return errors.New("data_dir: this edge is a member of a cluster: start it with --cluster-listen or --nats, or give it another --data-dir")
	}
	opened, err := store.OpenDir(dir)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	n.store, n.closeStore = opened, opened.Close
	return nil
}

func (n *Node) openCluster(ctx context.Context, before string) error {
	host, _ := n.advertised()
	var external *kv.External
	if len(n.cfg.NATS) > 0 {
		external = &kv.External{URLs: n.cfg.NATS, CredsFile: n.cfg.NATSCredsFile, CAFile: n.cfg.NATSCAFile}
	}
	c, err := cluster.Open(ctx, cluster.Config{
		Dir: filepath.Join(n.cfg.DataDir, cluster.Folder), Node: n.id, Region: n.cfg.Region, Version: n.version,
		Listen: n.cfg.ClusterListen, Advertise: host, Join: n.cfg.Join, JoinTokenFile: n.cfg.JoinTokenFile, External: external, Import: before,
		SessionMemory: n.memory.Part(sessionPart, relay.SessionMemory),
		// Agents that trust one edge's own authority must trust them all.
		SharedFiles: map[string]string{"internal-ca": filepath.Join(n.cfg.DataDir, "ca", "ca-key.pem")},
	}, n.logger)
	if err != nil {
		return err
	}
	n.cluster, n.store, n.closeStore = c, c.Store(), c.Close
	return nil
}

// advertised is the host, and the port if one was given, under which others reach
// this edge's public door.
func (n *Node) advertised() (host, port string) {
	if a := n.cfg.Advertise; a != "" {
		if host, port, err := net.SplitHostPort(a); err == nil {
			return host, port
		}
		return a, ""
	}
	if n.cfg.Hostname != "" {
		return n.cfg.Hostname, ""
	}
	host, _, _ = net.SplitHostPort(n.cfg.HTTPS)
	return host, ""
}

// joinNetwork makes the sites of other edges ours, if there may be any.
func (n *Node) joinNetwork() {
	n.network = n.sites
	if n.cluster != nil {
		n.network = n.cluster.Attach(n.authority, n.sites)
	}
}

// otherProtocols are those of edges among themselves.
func (n *Node) otherProtocols() []ingress.Other {
	if n.cluster == nil {
		return nil
	}
	return n.cluster.Protocols()
}

// announceEdges tells agents of the edges there are, and other edges of this one.
func (n *Node) announceEdges(ctx context.Context) {
	if n.cluster == nil {
		n.door.SetEdges(n.edges())
		return
	}
	host, port := n.advertised()
	if port == "" {
		_, port, _ = net.SplitHostPort(n.ingress.Addrs().HTTPS.String())
	}
	n.cluster.Publish(n.public())
	n.cluster.Announce(ctx, net.JoinHostPort(host, port), func(live []cluster.Live) {
		edges := make([]protocol.Edge, 0, len(live))
		for _, l := range live {
			edges = append(edges, protocol.Edge{Node: l.Node, Region: l.Region, Addr: l.Addr})
		}
		n.door.SetEdges(edges)
	})
}

var errNoCluster = &admin.Error{Status: 409, Code: "no_cluster", Message: "this edge runs alone: start it with --cluster-listen or --nats"}

// Cluster describes the network of edges; nil if this one runs alone.
func (n *Node) Cluster() *cluster.Status {
	if n.cluster == nil {
		return nil
	}
	s := n.cluster.Status()
	return &s
}

// JoinToken makes a token with which another machine may become an edge.
func (n *Node) JoinToken(ttl time.Duration) (string, time.Time, error) {
	if n.cluster == nil {
		return "", time.Time{}, errNoCluster
	}
	return n.cluster.JoinToken(ttl)
}

// PromoteCluster moves the network's store to three edges.
func (n *Node) PromoteCluster(ctx context.Context, edges []string) (*cluster.Promotion, error) {
	if n.cluster == nil {
		return nil, errNoCluster
	}
	return n.cluster.Promote(ctx, edges)
}

// ReplaceInCluster has another edge hold the network's store in place of one of three.
func (n *Node) ReplaceInCluster(ctx context.Context, lost, come string) (*cluster.Replacement, error) {
	if n.cluster == nil {
		return nil, errNoCluster
	}
	return n.cluster.Replace(ctx, lost, come)
}

// LeaveCluster makes an edge a member no more; this one if id is empty, which then
// drains.
func (n *Node) LeaveCluster(ctx context.Context, id string) error {
	if n.cluster == nil {
		return errNoCluster
	}
	self := id == "" || id == n.id
	if self {
		id = n.id
	}
	if err := n.cluster.Leave(ctx, id); err != nil {
		return err
	}
	if self {
		n.Drain()
	}
	return nil
}
