package authority

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"wormhole/edge/cluster/store"
	"wormhole/shared/protocol"
	"wormhole/shared/token"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// process opens the authority as another process would: with a store of its own
// on the same directory.
func process(t testing.TB, dir string) *Authority {
	t.Helper()
	s, err := store.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	a, err := Open(t.Context(), s, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	a.settle = 0
	return a
}

func storeDir(t testing.TB) string { return filepath.Join(t.TempDir(), "store") }

// run runs the authority until the test ends.
func run(t testing.TB, a *Authority) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func issue(t testing.TB, a *Authority, req IssueRequest) Issued {
	t.Helper()
	if len(req.Hosts) == 0 {
		req.Hosts = []string{"app.example.com"}
	}
	issued, err := a.IssueToken(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return issued
}

// wantCode fails unless err refuses a token with code.
func wantCode(t testing.TB, err error, code protocol.Code) {
	t.Helper()
	var refused *token.Error
	if !errors.As(err, &refused) || refused.Code != code {
		t.Fatalf("got %v, want a refusal with code %s", err, code)
	}
}

func TestIssuedTokensVerifyInEveryProcess(t *testing.T) {
	dir := storeDir(t)
	cli := process(t, dir)
	issued := issue(t, cli, IssueRequest{Name: "demo", Hosts: []string{"App.Example.COM"}})
	c, err := process(t, dir).Verify(issued.Token)
	if err != nil {
		t.Fatal(err)
	}
	if c.ID != issued.ID || !c.AllowsHost("app.example.com") || c.ExpiresAt.Sub(c.IssuedAt) != 720*time.Hour {
		t.Fatalf("claims are %+v", c)
	}
}

func TestRevocationReachesAnotherProcessWithinASecond(t *testing.T) {
	dir := storeDir(t)
	edge, cli := process(t, dir), process(t, dir)
	told := make(chan string, 8)
	edge.OnRevoke(func(id string) { told <- id })
	run(t, edge)
	issued := issue(t, cli, IssueRequest{})
	c, err := edge.Verify(issued.Token)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cli.Revoke(t.Context(), issued.ID); err != nil {
		t.Fatal(err)
	}
	select {
	case id := <-told:
		if id != issued.ID {
			t.Fatalf("told of %s, want %s", id, issued.ID)
		}
	case <-time.After(time.Second):
		t.Fatal("not told within a second")
	}
	_, err = edge.Verify(issued.Token)
	wantCode(t, err, protocol.CodeTokenRevoked)
	wantCode(t, edge.Check(c), protocol.CodeTokenRevoked)
}
