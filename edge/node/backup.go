package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"wormhole/edge/backup"
	"wormhole/edge/cluster"
	"wormhole/edge/cluster/kv"
	"wormhole/edge/cluster/store"
)

// Backup takes everything durable of the edge, or of its whole network.
func (n *Node) Backup(ctx context.Context) (*backup.Archive, error) {
	source, ok := n.store.(backup.Source)
	if !ok {
		return nil, errors.New("this store cannot be read whole")
	}
	return takeBackup(ctx, source, n.cfg.DataDir, n.id, n.version, n.cluster != nil)
}

// BackupOf is Backup of a data directory on which nobody runs. storeDir is where its
// store is, if that is not inside. In a cluster the edge's copy is taken, which may
// lack what was written in the last moments before a crash.
func BackupOf(ctx context.Context, dataDir, storeDir, version string) (*backup.Archive, error) {
	id, err := os.ReadFile(filepath.Join(dataDir, "node.id"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is not the data directory of an edge: it has no node.id", dataDir)
	} else if err != nil {
		return nil, err
	}
	node, err := nodeID(filepath.Join(dataDir, "node.id"))
	if err != nil {
		return nil, fmt.Errorf("node.id %.40q: %w", id, err)
	}
	folder := filepath.Join(dataDir, cluster.Folder)
	if _, err := os.Stat(folder); err == nil {
		mirror, err := kv.OpenMirror(cluster.MirrorDir(folder))
		if err != nil {
			return nil, err
		}
		defer mirror.Close() // it has no watches
		return takeBackup(ctx, mirror, dataDir, node, version, true)
	}
	if storeDir == "" {
		storeDir = filepath.Join(dataDir, "store")
	}
	if _, err := os.Stat(storeDir); err != nil {
		return nil, err // opening would make one
	}
	dir, err := store.OpenDir(storeDir)
	if err != nil {
		return nil, err
	}
	defer dir.Close() // it has no watches
	return takeBackup(ctx, dir, dataDir, node, version, false)
}

func takeBackup(ctx context.Context, source backup.Source, dataDir, node, version string, clustered bool) (*backup.Archive, error) {
	entries, revision, err := backup.Read(ctx, source)
	if err != nil {
		return nil, fmt.Errorf("the store cannot be read whole: %w", err)
	}
	if len(entries) == 0 {
		return nil, errors.New("the store is empty: there is nothing to back up")
	}
	a := &backup.Archive{
		Header:  backup.Header{Created: time.Now().UTC().Truncate(time.Second), Node: node, Edge: version},
		Entries: entries, Files: map[string][]byte{},
	}
	if clustered {
		a.Node, a.Revision = cluster.Heir(node, entries), revision
	}
	for _, name := range backup.FileNames() {
		text, err := os.ReadFile(filepath.Join(dataDir, filepath.FromSlash(name)))
		if err == nil {
			a.Files[name] = text
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return a, nil
}
