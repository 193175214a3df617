package cluster

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wormhole/edge/backup"
	"wormhole/edge/cluster/identity"
	"wormhole/edge/cluster/kv"
	"wormhole/edge/cluster/store"
)

const (
	nodeA = "00000000000000aa"
	nodeB = "00000000000000bb"
)

func open(t *testing.T, cfg Config) (*Cluster, error) {
	t.Helper()
	cfg.Listen, cfg.Advertise, cfg.Version = "127.0.0.1:0", "localhost", "test"
	c, err := Open(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err == nil {
		t.Cleanup(func() { _ = c.Close() })
	}
	return c, err
}

func memberEntry(t *testing.T, m Member) backup.Entry {
	t.Helper()
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return backup.Entry{Bucket: bucketMembers, Key: m.Node, Value: text}
}

func TestEpochsOnlyGrowAndADamagedOneIsAnError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "epoch")
	for want := uint64(1); want <= 3; want++ {
		if got, err := nextEpoch(path); err != nil || got != want {
			t.Fatalf("epoch %d, %v; want %d", got, err, want)
		}
	}
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := nextEpoch(path); err == nil {
		t.Errorf("a damaged file became epoch %d", got)
	}
}

func TestARestoredBackupIsTheHostOfTheStore(t *testing.T) {
	host, other := Member{Node: nodeA, Store: true}, Member{Node: nodeB}
	left := Member{Node: nodeA, Store: true, Left: true}
	for what, c := range map[string]struct {
		self    string
		members []Member
		want    string
	}{
		"the host itself":         {nodeA, []Member{host, other}, nodeA},
		"another edge":            {nodeB, []Member{host, other}, nodeA},
		"one of two hosts":        {nodeB, []Member{host, {Node: nodeB, Store: true}}, nodeB},
		"nobody hosts it":         {nodeB, []Member{other}, nodeB},
		"the host left":           {nodeB, []Member{left, other}, nodeB},
		"no member at all":        {nodeB, nil, nodeB},
		"a record that is no one": {nodeB, []Member{{Node: "../x", Store: true}}, nodeB},
	} {
		var entries []backup.Entry
		for _, m := range c.members {
			entries = append(entries, memberEntry(t, m))
		}
		if got := Heir(c.self, entries); got != c.want {
			t.Errorf("%s: %s, want %s", what, got, c.want)
		}
	}
}

// A network that is restored keeps its authority, begins above old revisions and has
// one host; and its directory does not join another.
func TestARestoredNetworkBeginsAboveOldRevisions(t *testing.T) {
	dir := t.TempDir()
	a, err := open(t, Config{Dir: filepath.Join(dir, "first"), Node: nodeA})
	if err != nil {
		t.Fatal(err)
	}
	text, _ := json.Marshal(Member{Node: nodeB, Store: true, Joined: time.Now()})
	if _, err := a.Store().Put(t.Context(), bucketMembers, nodeB, text); err != nil {
		t.Fatal(err)
	}
	entries, revision, err := backup.Read(t.Context(), a.Store())
	if err != nil || revision == 0 {
		t.Fatalf("revision %d, %v", revision, err)
	}
	authority := identity.Fingerprint(a.id.Authority())
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	archive := &backup.Archive{Header: backup.Header{Node: nodeA, Revision: revision}, Entries: entries}
	home := filepath.Join(dir, "restored")
	if _, err := archive.Restore(t.Context(), backup.Target{DataDir: home}); err != nil {
		t.Fatal(err)
	}
	cfg := Config{Dir: filepath.Join(home, Folder), Node: nodeA, Import: filepath.Join(home, "store")}
	joining := cfg
	joining.Join = "127.0.0.1:1"
	if _, err := open(t, joining); err == nil || !strings.Contains(err.Error(), "start it without --join") {
		t.Errorf("a restored directory joins: %v", err)
	}
	again, err := open(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if got := identity.Fingerprint(again.id.Authority()); got != authority {
		t.Error("the network has another authority")
	}
	next, err := again.Store().Put(t.Context(), "tokens", "x", nil)
	if err != nil || next <= revision+afterRestore {
		t.Errorf("revision %d, %v; want above %d", next, err, revision+afterRestore)
	}
	for _, m := range again.Members() {
		if m.Store && m.Node != nodeA {
			t.Errorf("%s hosts the store, too", m.Node)
		}
	}
}

func TestAnotherNodesDirectoryIsRefused(t *testing.T) {
	dir := t.TempDir()
	a, err := open(t, Config{Dir: dir, Node: nodeA})
	if err != nil {
		t.Fatal(err)
	}
	_ = a.Close()
	if _, err := open(t, Config{Dir: dir, Node: nodeB}); err == nil || !strings.Contains(err.Error(), nodeA) {
		t.Errorf("opened as another: %v", err)
	}
}

func TestMeshAddressesAreAdvertisedOnlyWhereNeeded(t *testing.T) {
	for _, c := range []struct{ listen, advertise, want string }{
		{":7443", "fra.example.com", "fra.example.com:7443"},
		{"0.0.0.0:7443", "fra.example.com", "fra.example.com:7443"},
		{"[::]:7443", "fra.example.com", "fra.example.com:7443"},
		{"10.0.0.1:7443", "fra.example.com", ""},
		{":0", "fra.example.com", ""},
		{":7443", "", ""},
		{"", "fra.example.com", ""},
	} {
		m := &Cluster{cfg: Config{Listen: c.listen, Advertise: c.advertise}}
		if got := m.meshAdvertise(); got != c.want {
			t.Errorf("%q and %q: %q, want %q", c.listen, c.advertise, got, c.want)
		}
	}
}

func TestWithoutAHostTheStoreCannotBeDialled(t *testing.T) {
	c := &Cluster{members: map[string]Member{nodeA: {Node: nodeA, Addr: "127.0.0.1:1"}, nodeB: {Node: nodeB, Store: true, Left: true, Addr: "127.0.0.1:1"}}}
	if conn, err := c.dialStore(); err == nil {
		_ = conn.Close()
		t.Error("somebody was dialled")
	} else if !strings.Contains(err.Error(), "hosts the store") {
		t.Error(err)
	}
}

func TestANATSClusterThatIsNotThereIsNamedWithoutItsPassword(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	_, err = open(t, Config{Dir: t.TempDir(), Node: nodeA, External: &kv.External{URLs: []string{"nats://u:sesame@" + addr}}})
	if err == nil || !strings.Contains(err.Error(), addr) || strings.Contains(err.Error(), "sesame") {
		t.Errorf("it says %v", err)
	}
	if errors.Is(err, store.ErrNotFound) {
		t.Error("absence of the servers is absence of the store")
	}
}
