package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// writeFile puts a file in place durably: whoever opens it, now or after a crash,
// finds all of the old content or all of the new.
func writeFile(dir, name string, content []byte) (err error) {
	f, err := os.CreateTemp(dir, tempPattern) // 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(content); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, name)); err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir makes renames and removals in a directory durable.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// makeDir makes a directory, and its parents, durably.
func makeDir(path string) error {
	if _, err := os.Stat(path); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(path)
	if err := makeDir(parent); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(parent)
}

// makeDir makes the bucket's directory durably, if its store is there.
func (b *bucket) makeDir() error {
	if _, err := os.Stat(b.path); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Mkdir(b.path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(filepath.Dir(b.path))
}

// lock takes the right to write to the bucket, among the goroutines of this
// process and then among processes. The kernel lets go of it when a process dies.
func (b *bucket) lock(ctx context.Context) (unlock func(), err error) {
	select {
	case b.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	pass := func() { <-b.turn }
	// Only the bucket: a store that was taken away since must not be made anew, empty.
	if err := b.makeDir(); err != nil {
		pass()
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(b.path, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		pass()
		return nil, err
	}
	unlock = func() {
		_ = f.Close() // gives the lock back
		pass()
	}
	if err := lockFd(ctx, f); err != nil {
		unlock()
		return nil, err
	}
	if !b.swept {
		if err := b.prepare(); err != nil {
			unlock()
			return nil, err
		}
		b.swept = true
	}
	return unlock, nil
}

// prepare does what the first writer of a process has to do under the lock.
func (b *bucket) prepare() error {
	b.sweep()
	if _, err := os.Stat(b.made()); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return writeFile(filepath.Dir(b.path), filepath.Base(b.made()), nil)
}

// lockFd waits for the lock by asking again, because a wait inside the kernel
// could not be ended with ctx.
func lockFd(ctx context.Context, f *os.File) error {
	const most = 10 * time.Millisecond
	for pause := time.Millisecond / 4; ; pause = min(2*pause, most) {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return fmt.Errorf("lock: %w", err)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return fmt.Errorf("another process holds the lock: %w", ctx.Err())
		}
	}
}

// sweep removes what writers that died have left. Under the lock no other writer
// is at work.
func (b *bucket) sweep() {
	entries, err := os.ReadDir(b.path)
	if err != nil {
		return
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix) {
			_ = os.Remove(filepath.Join(b.path, e.Name()))
		}
	}
}
