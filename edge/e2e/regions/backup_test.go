package regions

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"wormhole/edge/edgetest"
)

// A network whose store's host is lost comes back from a backup that another edge
// made: the edges that are left follow the restored one, and nobody issues, joins or
// applies anything anew.
func TestABackupRestoresTheStoresHost(t *testing.T) {
	edges := binaries.StartCluster(t, 3)
	ca, home := filepath.Join(t.TempDir(), "ca.pem"), t.TempDir()
	copyFile(t, edges[0].Status.CA, ca)
	app := edgetest.App(t, edgetest.Named("app"))
	token := issue(t, edges[0], "app.localhost")
	file := filepath.Join(home, "net.backup")
	edges[1].CLI(t, "backup", "--out", file)
	after := issue(t, edges[0], "after.localhost") // the backup does not know it, the others do
	edges[0].Signal(syscall.SIGKILL)
	edges[0].Exit(t, 5*time.Second)
	if out, err := edges[0].TryCLI("backup", "--out", filepath.Join(home, "offline.backup")); err != nil {
		t.Errorf("of a member that is down: %v %s", err, out)
	}
	if out, err := edges[0].TryCLI("restore", file); err == nil || !strings.Contains(out, "--force") {
		t.Errorf("restored onto a directory that is not empty: %s", out)
	}
	node := edges[0].Status.Node
	if err := os.RemoveAll(edges[0].Dir); err != nil {
		t.Fatal(err)
	}
	edges[0].CLI(t, "restore", file)
	token2 := filepath.Join(home, "join.token")
	if err := os.WriteFile(token2, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := edgetest.Start(t, nil, binaries.Edge, "serve", "--data-dir", edges[0].Dir, "--https", "127.0.0.1:0", "--http", "", "--admin", "127.0.0.1:0",
		"--hostname", "localhost", "--cluster-listen", "127.0.0.1:0", "--join", edges[1].Door, "--join-token-file", token2)
	if status := p.Exit(t, 20*time.Second); status == 0 || !strings.Contains(p.Output(), "start it without --join") {
		t.Errorf("a restored edge joined: %d %s", status, p.Output())
	}
	edges[0].Restart(t)
	if edges[0].Status.Node != node {
		t.Errorf("it is %s, was %s", edges[0].Status.Node, node)
	}
	for _, e := range edges {
		e.AwaitPeers(t, 2)
	}
	for _, e := range edges[1:] {
		edgetest.Eventually(t, "the store is in step", func() bool { return e.Refresh() == nil && e.Status.Cluster.Store == "" })
	}
	// What is written now is news to those who remember the time after the backup.
	late := issue(t, edges[2], "late.localhost")
	for i, e := range edges {
		work(t, ca, token, "old", app, 1, e.Door).awaitTunnels(t, 1)
		work(t, ca, late, "late", app, 1, e.Door).awaitTunnels(t, 1)
		work(t, ca, after, "after", app, 1, e.Door).awaitTunnels(t, 1) // signed by the same key
		list := e.CLI(t, "token", "list")
		if !strings.Contains(list, "late.localhost") || !strings.Contains(list, "app.localhost") {
			t.Errorf("edge %d knows the tokens\n%s", i+1, list)
		}
	}
	if out := edges[0].CLI(t, "status"); !strings.Contains(out, "in step, hosted here") {
		t.Errorf("status says:\n%s", out)
	}
	newcomer := binaries.JoinCluster(t, edges)
	newcomer.AwaitPeers(t, 3)
}
