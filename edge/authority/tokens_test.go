package authority

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wormhole/edge/cluster/store"
	"wormhole/shared/protocol"
	"wormhole/shared/token"
)

func TestIssueNamesEveryFaultAtOnceAndRecordsNothing(t *testing.T) {
	a := process(t, storeDir(t))
	_, err := a.IssueToken(t.Context(), IssueRequest{
		Name: "a\nb", Hosts: []string{"10.0.0.1", "*.co.uk"}, Kinds: []string{"udp"}, Tags: map[string]string{"a b": "c"},
		AppProtocol: "gopher", MaxTunnels: -1, MaxStreams: -2, TTL: 11 * 366 * 24 * time.Hour, IssuedBy: "x\x1b",
		NotBefore: time.Now().Add(20 * 366 * 24 * time.Hour),
	})
	if err == nil {
		t.Fatal("issued")
	}
	for _, want := range []string{"name", "10.0.0.1", "*.co.uk", "udp", `"a b"`, "gopher", "tunnels", "streams", "ttl", "issued-by", "become valid"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not mention %q:\n%v", want, err)
		}
	}
	if list, err := a.List(t.Context()); err != nil || len(list) != 0 {
		t.Fatalf("List = %v, %v", list, err)
	}
}

func TestIssueRefusesWhatCannotBeUsed(t *testing.T) {
	a := process(t, storeDir(t))
	for name, req := range map[string]IssueRequest{
		"no host":         {},
		"negative ttl":    {Hosts: []string{"a.test"}, TTL: -time.Hour},
		"tiny ttl":        {Hosts: []string{"a.test"}, TTL: time.Millisecond},
		"expired already": {Hosts: []string{"a.test"}, TTL: time.Hour, NotBefore: time.Now().Add(-2 * time.Hour)},
	} {
		if issued, err := a.IssueToken(t.Context(), req); err == nil {
			t.Errorf("%s: issued %+v", name, issued.TokenInfo)
		}
	}
}

func TestIssueByClaims(t *testing.T) {
	a := process(t, storeDir(t))
	raw, err := a.Issue(t.Context(), token.Claims{Hosts: []string{"*.localhost"}, Limits: token.Limits{MaxTunnels: 2}, AppProtocol: "h2c"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	c, err := a.Verify(raw)
	if err != nil || c.Limits.MaxTunnels != 2 || c.AppProtocol != "h2c" || c.ExpiresAt.Sub(c.NotBefore) != time.Hour {
		t.Fatalf("claims are %+v, %v", c, err)
	}
}

// The form is an interface: programs read it with --json.
func TestListAsJSON(t *testing.T) {
	a := process(t, storeDir(t))
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	a.now = func() time.Time { return at }
	issued := issue(t, a, IssueRequest{
		Name: "demo", Hosts: []string{"a.test"}, Tags: map[string]string{"team": "blue"}, MaxTunnels: 2, TTL: time.Hour, IssuedBy: "ann",
	})
	if _, err := a.Revoke(t.Context(), "demo"); err != nil {
		t.Fatal(err)
	}
	list, err := a.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	want := `[{"status":"revoked","id":"` + issued.ID + `","name":"demo","hosts":["a.test"],"kinds":["http"],"tags":{"team":"blue"},` +
		`"limits":{"max_tunnels":2},"issued_at":"2026-03-01T12:00:00Z","not_before":"2026-03-01T12:00:00Z","expires_at":"2026-03-01T13:00:00Z",` +
		`"key_id":"` + issued.KeyID + `","issued_by":"ann","revoked_at":"2026-03-01T12:00:00Z"}]`
	if string(got) != want {
		t.Fatalf("got\n%s, want\n%s", got, want)
	}
}

func TestTheTokenItselfIsNeverStored(t *testing.T) {
	dir := storeDir(t)
	a := process(t, dir)
	issued := issue(t, a, IssueRequest{})
	signature := issued.Token[strings.LastIndexByte(issued.Token, '.')+1:]
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if strings.Contains(string(b), signature) {
			t.Errorf("%s holds the token", path)
		}
		if info, err := d.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v", path, info.Mode(), err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestRevokeByIDPrefixAndName(t *testing.T) {
	a := process(t, storeDir(t))
	byID, byPrefix, byName := issue(t, a, IssueRequest{}), issue(t, a, IssueRequest{}), issue(t, a, IssueRequest{Name: "web"})
	for query, want := range map[string]string{byID.ID: byID.ID, byPrefix.ID[:10]: byPrefix.ID, "web": byName.ID} {
		got, err := a.Revoke(t.Context(), query)
		if err != nil || got.ID != want || got.Status != StatusRevoked || got.RevokedAt.IsZero() {
			t.Errorf("Revoke(%q) = %+v, %v; want %s", query, got, err, want)
		}
	}
	for _, issued := range []Issued{byID, byPrefix, byName} {
		_, err := a.Verify(issued.Token)
		wantCode(t, err, protocol.CodeTokenRevoked)
	}
	first, err := a.Revoke(t.Context(), byID.ID)
	if err != nil {
		t.Fatal(err)
	}
	a.now = func() time.Time { return time.Now().Add(time.Minute) }
	if again, err := a.Revoke(t.Context(), byID.ID); err != nil || !again.RevokedAt.Equal(first.RevokedAt) {
		t.Fatalf("revoking again changed %v to %v, %v", first.RevokedAt, again.RevokedAt, err)
	}
}

func TestRevokeNeverGuesses(t *testing.T) {
	a := process(t, storeDir(t))
	one, two := issue(t, a, IssueRequest{Name: "web"}), issue(t, a, IssueRequest{Name: "web"})
	_, err := a.Revoke(t.Context(), "web")
	var ambiguous *AmbiguousError
	if !errors.As(err, &ambiguous) || len(ambiguous.Candidates) != 2 ||
		!strings.Contains(err.Error(), one.ID) || !strings.Contains(err.Error(), two.ID) {
		t.Fatalf("got %v, want both candidates", err)
	}
	for _, query := range []string{"", one.ID[:3], "we", "nothing", "../tokens", strings.Repeat("x", 100)} {
		if _, err := a.Revoke(t.Context(), query); !errors.Is(err, ErrNoSuchToken) {
			t.Errorf("Revoke(%q): %v", query, err)
		}
	}
	// Once one of them counts for nothing any more, the name means the other.
	if _, err := a.Revoke(t.Context(), one.ID); err != nil {
		t.Fatal(err)
	}
	if got, err := a.Revoke(t.Context(), "web"); err != nil || got.ID != two.ID {
		t.Fatalf("Revoke = %+v, %v; want %s", got, err, two.ID)
	}
}

func TestInspect(t *testing.T) {
	ctx, a, other := t.Context(), process(t, storeDir(t)), process(t, storeDir(t))
	good := issue(t, a, IssueRequest{Name: "good", Tags: map[string]string{"a": "b"}})
	later := issue(t, a, IssueRequest{NotBefore: time.Now().Add(time.Hour)})
	revoked := issue(t, a, IssueRequest{})
	if _, err := a.Revoke(ctx, revoked.ID); err != nil {
		t.Fatal(err)
	}
	foreign := issue(t, other, IssueRequest{Name: "foreign"})
	forged := good.Token[:len(good.Token)-20] + strings.Repeat("A", 20)
	for name, c := range map[string]struct {
		query    string
		status   Status
		code     protocol.Code
		recorded bool
		forged   bool
	}{
		"by id":         {good.ID, StatusValid, "", true, false},
		"by name":       {"good", StatusValid, "", true, false},
		"token":         {good.Token, StatusValid, "", true, false},
		"later":         {later.Token, StatusNotYetValid, protocol.CodeTokenNotYetValid, true, false},
		"later by id":   {later.ID, StatusNotYetValid, protocol.CodeTokenNotYetValid, true, false},
		"revoked":       {revoked.Token, StatusRevoked, protocol.CodeTokenRevoked, true, false},
		"revoked by id": {revoked.ID, StatusRevoked, protocol.CodeTokenRevoked, true, false},
		"foreign":       {foreign.Token, StatusRefused, protocol.CodeTokenSignature, false, true},
		"forged":        {forged, StatusRefused, protocol.CodeTokenSignature, false, true},
		"garbage":       {strings.Repeat("garbage", 100), StatusRefused, protocol.CodeTokenMalformed, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			in, err := a.Inspect(ctx, c.query)
			if err != nil {
				t.Fatal(err)
			}
			if in.Status != c.status || in.Code != c.code || in.Recorded != c.recorded || in.Forged != c.forged || (in.Code != "") != (in.Reason != "") {
				t.Fatalf("got %+v", in)
			}
			if b, err := json.Marshal(in); err != nil || strings.Contains(string(b), "eyJ") {
				t.Fatalf("the token is repeated: %s, %v", b, err)
			}
		})
	}
	if _, err := a.Inspect(ctx, "nothing"); !errors.Is(err, ErrNoSuchToken) {
		t.Fatalf("got %v", err)
	}
}

func TestRecordsOfExpiredTokensAreRemovedAfterRetention(t *testing.T) {
	a := process(t, storeDir(t))
	short, long := issue(t, a, IssueRequest{TTL: time.Hour}), issue(t, a, IssueRequest{TTL: 365 * 24 * time.Hour})
	for _, c := range []struct {
		after time.Duration
		want  int
	}{{time.Hour + Retention - time.Minute, 2}, {time.Hour + Retention + time.Minute, 1}} {
		a.now = func() time.Time { return time.Now().Add(c.after) }
		if _, err := a.prune(t.Context()); err != nil {
			t.Fatal(err)
		}
		list, err := a.List(t.Context())
		if err != nil || len(list) != c.want {
			t.Fatalf("after %v: %d records, %v; want %d", c.after, len(list), err, c.want)
		}
	}
	if _, ok := a.tokens[short.ID]; ok {
		t.Error("memory keeps the removed one")
	}
	if _, ok := a.tokens[long.ID]; !ok {
		t.Error("memory lost the other")
	}
}

func TestNoTokenLeavesWithoutARecord(t *testing.T) {
	a := process(t, storeDir(t))
	broken := errors.New("disk full")
	a.store = failing{Store: a.store, create: broken}
	if issued, err := a.IssueToken(t.Context(), IssueRequest{Hosts: []string{"a.test"}}); !errors.Is(err, broken) || issued.Token != "" {
		t.Fatalf("issued %q, %v", issued.Token, err)
	}
}

// failing is a store some of whose operations fail.
type failing struct {
	store.Store
	create error
}

func (f failing) Create(ctx context.Context, bucket, key string, value []byte) (uint64, error) {
	if f.create != nil {
		return 0, f.create
	}
	return f.Store.Create(ctx, bucket, key, value)
}
