package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"wormhole/edge/edgetest"
)

// edgeCommand runs the command line and returns what it printed on both streams.
func edgeCommand(args ...string) (string, error) {
	out, err := exec.Command(binaries.Edge, args...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// A backup, a machine that is lost, a restore: the same tokens open the same doors,
// the same certificates are shown, the same rules hold, and nothing is ordered.
func TestABackupRestoresAnEdge(t *testing.T) {
	p := startPebble(t, edgetest.PebbleConfig{})
	roots := p.Root(t)
	const host = "kept.example.com"
	e := binaries.StartEdge(t, p.Flags(1, "")...)
	token := strings.TrimSpace(run(t, "token", "issue", "--data-dir", e.Dir, "--host", host, "--name", "kept"))
	revoked := strings.TrimSpace(run(t, "token", "issue", "--data-dir", e.Dir, "--host", host, "--name", "gone"))
	run(t, "token", "revoke", "gone", "--data-dir", e.Dir)
	spec := filepath.Join(t.TempDir(), "site.yaml")
	if err := os.WriteFile(spec, []byte("host: "+host+"\ndeny: [192.0.2.0/24]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := edgeCommand("site", "apply", "-f", spec, "--data-dir", e.Dir); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	sites := run(t, "site", "show", host, "--json", "--data-dir", e.Dir)
	copyOf(t, e, token, "statler")
	e.AwaitReady(t, 1)
	leaf, err := insist(p.Addr(1), host, roots, 40*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	orders := p.Orders()

	dir := t.TempDir()
	online, offline := filepath.Join(dir, "online"), filepath.Join(dir, "offline")
	var made struct {
		File    string `json:"file"`
		Entries int    `json:"entries"`
	}
	if err := json.Unmarshal([]byte(run(t, "backup", "--out", online, "--json", "--data-dir", e.Dir)), &made); err != nil || made.Entries < 5 || made.File != online {
		t.Errorf("it says %+v, %v", made, err)
	}
	if info, err := os.Stat(online); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if out, err := edgeCommand("restore", online, "--force", "--data-dir", e.Dir); err == nil || !strings.Contains(out, "running") {
		t.Errorf("restored onto a running edge: %s", out)
	}
	e.Signal(syscall.SIGKILL)
	e.Exit(t, 5*time.Second)
	pass := filepath.Join(dir, "pass")
	if err := os.WriteFile(pass, []byte("correct horse battery\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := edgeCommand("backup", "--out", offline, "--passphrase-file", pass, "--data-dir", e.Dir); err != nil {
		t.Fatalf("offline: %v %s", err, out)
	}
	if out, err := edgeCommand("restore", offline, "--data-dir", e.Dir, "--passphrase-file", pass); err == nil || !strings.Contains(out, "--force") {
		t.Errorf("restored onto a directory that is not empty: %s", out)
	}
	damaged := filepath.Join(dir, "damaged")
	text, err := os.ReadFile(online)
	if err != nil {
		t.Fatal(err)
	}
	text[len(text)/2] ^= 1
	if err := os.WriteFile(damaged, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(e.Dir); err != nil { // the machine is lost
		t.Fatal(err)
	}
	if out, err := edgeCommand("restore", damaged, "--data-dir", e.Dir); err == nil || !strings.Contains(out, "not a usable backup") {
		t.Errorf("a damaged file: %s", out)
	}
	if _, err := os.Stat(e.Dir); !os.IsNotExist(err) {
		t.Errorf("it made something of a damaged file: %v", err)
	}

	for name, args := range map[string][]string{"online": {online}, "offline, encrypted": {offline, "--passphrase-file", pass}} {
		home := t.TempDir()
		if out, err := edgeCommand(append([]string{"restore", "--data-dir", home}, args...)...); err != nil {
			t.Fatalf("%s: %v %s", name, err, out)
		}
		again := binaries.StartEdgeIn(t, home, p.Flags(1, "")...)
		if again.Status.Node != e.Status.Node {
			t.Errorf("%s: the edge is %s, was %s", name, again.Status.Node, e.Status.Node)
		}
		w := copyOf(t, again, token, "statler")
		again.AwaitReady(t, 1)
		got, err := insist(p.Addr(1), host, roots, 20*time.Second)
		if err != nil || got.SerialNumber.Cmp(leaf.SerialNumber) != 0 {
			t.Errorf("%s: another certificate is shown, %v", name, err)
		}
		if s := run(t, "site", "show", host, "--json", "--data-dir", home); s != sites {
			t.Errorf("%s: the site is %s, was %s", name, s, sites)
		}
		if out := run(t, "token", "list", "--data-dir", home); !strings.Contains(out, "revoked") {
			t.Errorf("%s: tokens are %s", name, out)
		}
		refused := edgetest.Start(t, again.AgentEnv(revoked, "WORMHOLE_ENDPOINT=127.0.0.1:1"), binaries.Wormhole)
		if status := refused.Exit(t, 20*time.Second); status != 77 {
			t.Errorf("%s: a revoked token ended with %d, want 77", name, status)
		}
		w.Signal(syscall.SIGKILL)
		again.Signal(syscall.SIGTERM)
		again.Exit(t, 20*time.Second)
	}
	if n := p.Orders() - orders; n != 0 {
		t.Errorf("%d orders after the restore", n)
	}
}
