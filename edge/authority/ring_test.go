package authority

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"wormhole/edge/cluster/store"
	"wormhole/shared/protocol"
)

func TestProcessesThatStartAtOnceMakeOneKey(t *testing.T) {
	dir := storeDir(t)
	const processes = 8
	opened := make([]*Authority, processes)
	var wg sync.WaitGroup
	for i := range opened {
		wg.Go(func() {
			s, err := store.OpenDir(dir)
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			if opened[i], err = Open(t.Context(), s, slog.New(slog.DiscardHandler)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	for _, a := range opened {
		keys := a.Keys()
		if len(keys) != 1 || keys[0].ID != opened[0].Keys()[0].ID || !keys[0].Active || a.Audience() != opened[0].Audience() {
			t.Fatalf("keys %+v of %s, want those of the first: %+v of %s", keys, a.Audience(), opened[0].Keys(), opened[0].Audience())
		}
	}
}

func TestNetworksDoNotTakeEachOthersTokens(t *testing.T) {
	one, two := process(t, storeDir(t)), process(t, storeDir(t))
	if one.Audience() == two.Audience() {
		t.Fatal("two networks with one id")
	}
	_, err := two.Verify(issue(t, one, IssueRequest{}).Token)
	wantCode(t, err, protocol.CodeTokenSignature)
}

// Fault H5: while keys rotate under an edge, no token is refused; the old key is
// refused once it is removed.
func TestRotationRefusesNobody(t *testing.T) {
	dir := storeDir(t)
	edge, cli := process(t, dir), process(t, dir)
	cli.settle = time.Second
	told := make(chan string, 1)
	var old Issued
	edge.OnRevoke(func(id string) {
		if id == old.ID { // those of the issuer below go too
			told <- id
		}
	})
	old = issue(t, cli, IssueRequest{})
	run(t, edge)
	oldClaims, err := edge.Verify(old.Token)
	if err != nil {
		t.Fatal(err)
	}

	rotated := make(chan error, 1)
	go func() {
		_, err := cli.Rotate(t.Context())
		rotated <- err
	}()
	issuer := process(t, dir)
	for running := true; running; {
		select {
		case err := <-rotated:
			if err != nil {
				t.Fatal(err)
			}
			running = false
		default:
		}
		for _, issued := range []Issued{old, issue(t, issuer, IssueRequest{})} {
			if _, err := edge.Verify(issued.Token); err != nil {
				t.Fatalf("token of key %s: %v", issued.KeyID, err)
			}
		}
	}
	fresh := issue(t, issuer, IssueRequest{})
	if fresh.KeyID == old.KeyID {
		t.Fatal("the old key still signs")
	}
	if _, err := edge.Verify(fresh.Token); err != nil {
		t.Fatal(err)
	}

	if _, err := cli.RemoveKey(t.Context(), fresh.KeyID); !errors.Is(err, ErrKeyActive) {
		t.Fatalf("removing the key that signs: %v", err)
	}
	removed, err := cli.RemoveKey(t.Context(), old.KeyID[:8])
	if err != nil || removed.ID != old.KeyID || removed.Tokens == 0 {
		t.Fatalf("removed %+v, %v", removed, err)
	}
	select {
	case <-told:
	case <-time.After(time.Second):
		t.Fatal("not told within a second")
	}
	_, err = edge.Verify(old.Token)
	wantCode(t, err, protocol.CodeTokenSignature)
	wantCode(t, edge.Check(oldClaims), protocol.CodeTokenSignature)
	if in, err := cli.Inspect(t.Context(), old.ID); err != nil || in.Status != StatusKeyRemoved {
		t.Fatalf("Inspect = %+v, %v", in, err)
	}
	if _, err := edge.Verify(fresh.Token); err != nil {
		t.Fatal(err)
	}
	if _, err := cli.RemoveKey(t.Context(), "k0000"); !errors.Is(err, ErrNoSuchKey) {
		t.Fatalf("got %v", err)
	}
}

func TestKeysCountTheTokensTheyCarry(t *testing.T) {
	a := process(t, storeDir(t))
	issue(t, a, IssueRequest{Name: "one"})
	issue(t, a, IssueRequest{})
	if _, err := a.Revoke(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	issue(t, a, IssueRequest{})
	keys := a.Keys()
	if len(keys) != 2 || keys[0].Active || keys[0].Tokens != 1 || !keys[1].Active || keys[1].Tokens != 1 || len(keys[0].PublicKey) != 32 {
		t.Fatalf("keys are %+v", keys)
	}
}

// Faults B13 and H4: whatever happens to the store under a running edge, it goes
// on with what it knows, and what was revoked stays revoked.
func TestARunningEdgeOutlivesTheStore(t *testing.T) {
	dir := storeDir(t)
	edge := process(t, dir)
	run(t, edge)
	good, bad := issue(t, edge, IssueRequest{}), issue(t, edge, IssueRequest{})
	if _, err := edge.Revoke(t.Context(), bad.ID); err != nil {
		t.Fatal(err)
	}
	stale := func() bool { _, ok := edge.staleSince(); return ok }
	for name, ruin := range map[string]func() error{
		"ring truncated":  func() error { return os.Truncate(filepath.Join(dir, "keys", "ring"), 50) },
		"records removed": func() error { return os.Remove(filepath.Join(dir, "tokens", bad.ID)) },
		"all gone":        func() error { return os.RemoveAll(dir) },
	} {
		if err := ruin(); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("%s: %v", name, err)
		}
	}
	eventually(t, "the edge notices that the store is gone", stale)
	if _, err := edge.Verify(good.Token); err != nil {
		t.Fatal(err)
	}
	_, err := edge.Verify(bad.Token)
	wantCode(t, err, protocol.CodeTokenRevoked)
	// The list of revocations may be an hour old, not older.
	edge.mu.Lock()
	for bucket := range edge.stale {
		edge.stale[bucket] = time.Now().Add(-MaxStale - time.Minute)
	}
	edge.mu.Unlock()
	_, err = edge.Verify(good.Token)
	wantCode(t, err, protocol.CodeBusy)
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(10 * time.Millisecond) // there is no event to wait on
	}
}

func TestADamagedRingIsAnErrorAndNotANewNetwork(t *testing.T) {
	for name, ruin := range map[string]func(ring string) error{
		"truncated": func(ring string) error { return os.Truncate(ring, 40) },
		"empty":     func(ring string) error { return os.Truncate(ring, 0) },
		"lost":      func(ring string) error { return os.RemoveAll(filepath.Dir(ring)) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := storeDir(t)
			process(t, dir)
			if err := ruin(filepath.Join(dir, "keys", "ring")); err != nil {
				t.Fatal(err)
			}
			s, err := store.OpenDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if _, err := Open(t.Context(), s, slog.New(slog.DiscardHandler)); !errors.Is(err, store.ErrCorrupt) {
				t.Fatalf("got %v, want that it is damaged", err)
			}
		})
	}
}

func TestATokenWhoseRecordIsDamagedIsRefusedAndNoOther(t *testing.T) {
	dir := storeDir(t)
	a := process(t, dir)
	hurt, well := issue(t, a, IssueRequest{}), issue(t, a, IssueRequest{})
	if err := os.Truncate(filepath.Join(dir, "tokens", hurt.ID), 10); err != nil {
		t.Fatal(err)
	}
	next := process(t, dir)
	_, err := next.Verify(hurt.Token)
	wantCode(t, err, protocol.CodeInternal)
	if _, err := next.Verify(well.Token); err != nil {
		t.Fatal(err)
	}
	list, err := next.List(t.Context())
	if len(list) != 1 || list[0].ID != well.ID || !errors.Is(err, store.ErrCorrupt) {
		t.Fatalf("List = %v, %v", list, err)
	}
	if _, err := next.Revoke(t.Context(), well.ID); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkVerify(b *testing.B) {
	a := process(b, storeDir(b))
	issued := issue(b, a, IssueRequest{})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.Verify(issued.Token); err != nil {
			b.Fatal(err)
		}
	}
}
