package kv

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"wormhole/edge/cluster/store"
)

// An edge that ends does not wait for a mirror with much to write, and loses nothing
// of what was written before.
func TestTheMirrorEndsWithMuchToWrite(t *testing.T) {
	m, err := openMirror(filepath.Join(t.TempDir(), "m"), quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	m.last = 20 * time.Millisecond
	const n = 20_000
	for i := range n {
		m.put("b", store.Entry{Key: fmt.Sprint("k", i), Value: []byte("v"), Revision: uint64(i + 1)})
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	began := time.Now()
	m.run(ended)
	took := time.Since(began)
	written := 0
	if err := m.load(func(_ string, e store.Entry) {
		if string(e.Value) != "v" {
			t.Errorf("%s is %q", e.Key, e.Value)
		}
		written++
	}); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d of %d written in %s", written, n, took)
	if left := len(m.todo); written == n || written+left != n {
		t.Errorf("%d written and %d left of %d", written, left, n)
	}
	if took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
}
