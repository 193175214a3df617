package store

import (
	"errors"
	"path/filepath"
	"syscall"
	"testing"
)

// Fault B13 on real file systems, where the test may mount them.
func TestFullAndReadOnlyFileSystems(t *testing.T) {
	point := t.TempDir()
	if err := syscall.Mount("tmpfs", point, "tmpfs", 0, "size=1m,mode=0700"); err != nil {
		if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) {
			t.Log("mounting is not permitted here; other tests show the same by other means")
			return
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(point, syscall.MNT_DETACH) })
	d, ctx := openDir(t, filepath.Join(point, "store")), t.Context()
	must(t)(d.Put(ctx, "b", "k", []byte("kept")))
	var err error
	for i := 0; err == nil && i < 100; i++ {
		_, err = d.Put(ctx, "b", "fill"+string(rune('a'+i%26))+string(rune('a'+i/26)), make([]byte, 100_000))
	}
	wantErr(t, err, syscall.ENOSPC)
	if err := syscall.Mount("", point, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	_, err = d.Put(ctx, "b", "k", nil)
	wantErr(t, err, syscall.EROFS)
	again := openDir(t, d.Path())
	if e, err := again.Get(ctx, "b", "k"); err != nil || string(e.Value) != "kept" {
		t.Fatalf("Get = %q, %v", e.Value, err)
	}
}
