package kv

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wormhole/edge/cluster/store"
)

// blocks are the files of the server in dir that hold what was written.
func blocks(t *testing.T, dir string) (found []string) {
	t.Helper()
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".blk") {
			found = append(found, path)
		}
		return nil
	})
	if len(found) == 0 {
		t.Fatalf("no files of messages in %s", dir)
	}
	return found
}

// B13: the files of the store are cut off, by any length. Nothing that was known is
// forgotten, nothing is written to what is left, and the fault says what to do.
func TestB13ATruncatedStoreIsRefusedAndNothingForgotten(t *testing.T) {
	for _, keep := range []float64{0, 0.3, 0.9, 0.999} {
		t.Run(fmt.Sprint(keep), func(t *testing.T) {
			dir, mirror := filepath.Join(t.TempDir(), "hosted"), filepath.Join(t.TempDir(), "m")
			server, err := StartServer(dir, 0, quiet)
			if err != nil {
				t.Fatal(err)
			}
			h := &host{s: server}
			s := openStore(t, h, mirror)
			awaitFresh(t, s)
			const n = 60
			for i := range n {
				if _, err := s.Put(t.Context(), "tokens", fmt.Sprintf("k%02d", i), []byte(strings.Repeat("v", 200))); err != nil {
					t.Fatal(err)
				}
			}
			h.set(nil)
			_ = server.Close()
			for _, file := range blocks(t, dir) {
				info, err := os.Stat(file)
				if err == nil {
					err = os.Truncate(file, int64(keep*float64(info.Size())))
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			again, err := StartServer(dir, 0, quiet)
			if err != nil {
				t.Logf("the server does not start: %v", err)
				return // loud enough
			}
			t.Cleanup(func() { _ = again.Close() })
			h.set(again)
			eventually(t, "the damage is noticed", func() bool { _, fault := s.Health(); return errors.Is(fault, store.ErrCorrupt) })
			if _, fault := s.Health(); !strings.Contains(fault.Error(), "restore") {
				t.Errorf("it says %v", fault)
			}
			if list, err := s.List(context.Background(), "tokens"); err != nil || len(list) != n {
				t.Errorf("%d of %d entries are known, %v", len(list), n, err)
			}
			if _, err := s.Put(t.Context(), "tokens", "new", nil); err == nil {
				t.Error("a damaged store was written to")
			}
		})
	}
}

// B13: a byte in the middle of the store changes. The entry it belonged to stays
// known, whatever the store makes of it.
func TestB13AFlippedByteLosesNothing(t *testing.T) {
	dir, mirror := filepath.Join(t.TempDir(), "hosted"), filepath.Join(t.TempDir(), "m")
	server, err := StartServer(dir, 0, quiet)
	if err != nil {
		t.Fatal(err)
	}
	h := &host{s: server}
	s := openStore(t, h, mirror)
	awaitFresh(t, s)
	const n = 60
	for i := range n {
		if _, err := s.Put(t.Context(), "tokens", fmt.Sprintf("k%02d", i), []byte(strings.Repeat("v", 200))); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Delete(t.Context(), "tokens", "k00"); err != nil {
		t.Fatal(err)
	}
	h.set(nil)
	_ = server.Close()
	for _, file := range blocks(t, dir) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text[len(text)/2] ^= 1
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	again, err := StartServer(dir, 0, quiet)
	if err != nil {
		t.Logf("the server does not start: %v", err)
		return // loud enough
	}
	t.Cleanup(func() { _ = again.Close() })
	h.set(again)
	eventually(t, "the store is seen again", func() bool {
		_, fault := s.Health()
		return fault == nil || errors.Is(fault, store.ErrCorrupt)
	})
	_, fault := s.Health()
	t.Logf("it says %v", fault)
	if list, err := s.List(context.Background(), "tokens"); err != nil || len(list) != n-1 {
		t.Errorf("%d of %d entries are known, %v", len(list), n-1, err)
	}
}
