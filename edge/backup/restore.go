package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"wormhole/edge/cluster/store"
)

// Where a restored network says, in its store, how far revisions had come: a new
// store must begin above that, or edges that outlived the old one take its entries
// for old ones.
const (
	FloorBucket = "cluster"
	FloorKey    = "revision"
)

// state are the names in a data directory that a restore replaces. What belongs to
// the machine, such as the operator's credential, stays.
var state = []string{"node.id", "ca", "store", "cluster", "certificates"}

// ErrNotEmpty says that a directory holds something already.
var ErrNotEmpty = errors.New("the data directory is not empty")

// Target is where a backup is restored to.
type Target struct {
	DataDir string
	// StoreDir is the store's directory if that is not in DataDir.
	StoreDir string
	// Force sets aside what is there.
	Force bool
}

// Restore makes the directory what the archive says. Nobody may be running on it.
// With Force, what was there is moved to the folder that is returned. An error
// before the last step leaves everything as it was, but for a new empty folder.
func (a *Archive) Restore(ctx context.Context, t Target) (aside string, err error) {
	if err := os.MkdirAll(t.DataDir, 0o700); err != nil {
		return "", err
	}
	taken, err := occupied(t)
	if err != nil {
		return "", err
	}
	if taken != "" && !t.Force {
		return "", fmt.Errorf("%w: %s exists; --force sets aside what is there", ErrNotEmpty, taken)
	}
	fresh, err := os.MkdirTemp(t.DataDir, ".restore-*")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(fresh)
	if err := a.lay(ctx, fresh, t.StoreDir == ""); err != nil {
		return "", err
	}
	if taken != "" {
		aside = filepath.Join(t.DataDir, "before-restore-"+time.Now().UTC().Format("20060102T150405Z"))
		if err := os.Mkdir(aside, 0o700); err != nil {
			return "", err
		}
		for _, name := range state {
			if err := move(filepath.Join(t.DataDir, name), filepath.Join(aside, name)); err != nil {
				return aside, err
			}
		}
		if t.StoreDir != "" {
			// Beside it, since it may be on another file system.
			if err := move(t.StoreDir, t.StoreDir+"."+filepath.Base(aside)); err != nil {
				return aside, err
			}
		}
	}
	if t.StoreDir != "" {
		_ = os.Remove(t.StoreDir) // an empty one
		if err := a.write(ctx, t.StoreDir); err != nil {
			return aside, err
		}
	}
	for _, name := range []string{"ca", "store", "node.id"} { // the last says who it is
		if err := move(filepath.Join(fresh, name), filepath.Join(t.DataDir, name)); err != nil {
			return aside, err
		}
	}
	return aside, syncDir(t.DataDir)
}

// occupied names something that is in the way, or is empty.
func occupied(t Target) (string, error) {
	for _, dir := range []string{t.DataDir, t.StoreDir} {
		if dir == "" {
			continue
		}
		list, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return "", err
		}
		for _, e := range list {
			if e.Name() != "lost+found" {
				return filepath.Join(dir, e.Name()), nil
			}
		}
	}
	return "", nil
}

// lay writes everything into an empty folder, the store only if it belongs there.
func (a *Archive) lay(ctx context.Context, dir string, withStore bool) error {
	for name, text := range a.Files {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		if err := writeSynced(path, text); err != nil {
			return err
		}
	}
	if withStore {
		if err := a.write(ctx, filepath.Join(dir, "store")); err != nil {
			return err
		}
	}
	return writeSynced(filepath.Join(dir, "node.id"), []byte(a.Node+"\n"))
}

// write makes a store of the entries.
func (a *Archive) write(ctx context.Context, path string) error {
	dir, err := store.OpenDir(path)
	if err != nil {
		return err
	}
	defer dir.Close() // it has no watches
	for _, e := range a.Entries {
		if _, err := dir.Put(ctx, e.Bucket, e.Key, e.Value); err != nil {
			return err
		}
	}
	if a.Revision > 0 {
		_, err = dir.Put(ctx, FloorBucket, FloorKey, []byte(strconv.FormatUint(a.Revision, 10)))
	}
	return err
}

func move(from, to string) error {
	err := os.Rename(from, to)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func writeSynced(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
