package kv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Fault B13 on one of three: its disk is full. Writes go on with the other two, and
// when there is room again it takes part again.
func TestB13OneOfThreeDisksIsFull(t *testing.T) {
	point := t.TempDir()
	if err := syscall.Mount("tmpfs", point, "tmpfs", 0, "size=32m,mode=0700"); err != nil {
		if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) {
			t.Log("mounting is not permitted here; nothing else shows this")
			return
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(point, syscall.MNT_DETACH) })
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	r := startTrioIn(t, filepath.Join(point, "part"), t.TempDir(), t.TempDir())
	full := r.at(0)
	tending, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { full.Tend(tending) })
	t.Cleanup(func() { stop(); wg.Wait() })
	if err := r.at(0).Begin(ctx, 0); err != nil {
		t.Fatal(err)
	}
	s := openTrioStore(t, r)
	within(t, 20*time.Second, "in step", func() bool { _, fault := s.Health(); return fault == nil })
	n := 0
	write := func() error {
		n++
		_, err := s.Put(ctx, "b", fmt.Sprint("k", n), make([]byte, 100_000))
		return err
	}
	ballast, err := os.Create(filepath.Join(point, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	for size := 1 << 20; size > 0; {
		if _, err := ballast.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
	_ = ballast.Close()
	refused := 0
	took := within(t, 40*time.Second, "40 writes with one disk full", func() bool {
		for range 40 {
			if err := write(); err != nil {
				refused++
				return false
			}
		}
		return true
	})
	t.Logf("40 writes in a row %s after the disk was full, %d refused", took, refused)
	if err := os.Remove(ballast.Name()); err != nil {
		t.Fatal(err)
	}
	took = within(t, 40*time.Second, "its part is complete", full.Whole)
	t.Logf("whole again %s after there was room", took)
	// It counts again: with another gone, two are left.
	r.stop(1)
	within(t, 40*time.Second, "writes with it and one other", func() bool { return write() == nil })
}
