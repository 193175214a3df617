package regions

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"wormhole/edge/edgetest"
	"wormhole/edge/edgetest/oracle"
)

// B13: the disk of the store's host is full, then read-only, then its file is cut off.
// Nobody who asks for a site notices, writes are refused with a reason, and what was
// known stays known.
func TestB13TheStoresDiskIsFullThenReadOnlyThenTruncated(t *testing.T) {
	disk := t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=32m,mode=0700"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("no tmpfs can be mounted: %v", err)
		}
		t.Skipf("no tmpfs can be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(disk, syscall.MNT_DETACH) })
	edges := []*edge{binaries.JoinClusterIn(t, filepath.Join(disk, "edge"), nil)}
	edges = append(edges, binaries.JoinCluster(t, edges))
	for _, e := range edges {
		e.AwaitPeers(t, 1)
	}
	host, other := edges[0], edges[1]
	ca := filepath.Join(t.TempDir(), "ca.pem")
	copyFile(t, host.Status.CA, ca)
	app := edgetest.App(t, edgetest.Named("app"))
	token := issue(t, host, "app.localhost")
	var probes []*edgetest.Probe
	for _, e := range edges {
		work(t, ca, token, "app", app, 1, e.Door).awaitTunnels(t, 1)
		e.Status.CA = ca
		c := e.Client(t, "h1")
		awaitOK(t, c, "app.localhost")
		probes = append(probes, edgetest.StartProbe(c, "https://app.localhost/", 10*time.Millisecond))
	}
	acked := []string{"app.localhost"}
	try := func(name string) (string, error) { return other.TryCLI("token", "issue", "--host", name) }

	// Full.
	ballast := filepath.Join(disk, "ballast")
	fill(t, ballast)
	refusedFull, said := 0, ""
	for i := range 20 {
		name := fmt.Sprintf("full%02d.localhost", i)
		if out, err := try(name); err != nil {
			refusedFull, said = refusedFull+1, out
		} else {
			acked = append(acked, name)
		}
	}
	if refusedFull == 0 {
		t.Error("nothing was refused by a full disk")
	}
	t.Logf("full: %d of 20 writes refused, saying %s", refusedFull, said)
	// Room again.
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	edgetest.Eventually(t, "writes are taken again", func() bool {
		_, err := try("room.localhost")
		return err == nil
	})
	acked = append(acked, "room.localhost")

	// Read-only: files that are open for writing forbid it, so the host starts on it.
	edgetest.Eventually(t, "the host's own copy is written", func() bool { return strings.Contains(host.Output(), "mirror of the store is written again") })
	answers := probes[0].Stop()
	host.Signal(syscall.SIGKILL)
	host.Exit(t, 5*time.Second)
	if err := syscall.Mount("", disk, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	ro := edgetest.Start(t, nil, binaries.Edge, "serve", "--data-dir", host.Dir, "--https", "127.0.0.1:0", "--http", "", "--admin", "127.0.0.1:0",
		"--hostname", "localhost", "--cluster-listen", "127.0.0.1:0")
	if status := ro.Exit(t, 40*time.Second); status == 0 || !strings.Contains(ro.Output(), "read-only") {
		t.Errorf("on a read-only disk it ended with %d and said %s", status, ro.Output())
	}
	if out, err := try("readonly.localhost"); err == nil {
		t.Errorf("a write without the host: %s", out)
	}
	if err := syscall.Mount("", disk, "", syscall.MS_REMOUNT, "size=32m"); err != nil {
		t.Fatal(err)
	}

	// Truncated: the host's file is cut off while it is down.
	cut := 0
	_ = filepath.WalkDir(filepath.Join(host.Dir, "cluster", "hosted"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".blk") {
			if info, err := d.Info(); err == nil && info.Size() > 200 && os.Truncate(path, info.Size()*2/3) == nil {
				cut++
			}
		}
		return nil
	})
	if cut == 0 {
		t.Fatal("nothing to cut off")
	}
	host.Restart(t)
	host.Status.CA = ca
	awaitOK(t, host.Client(t, "h1"), "app.localhost")
	for _, e := range edges {
		edgetest.Eventually(t, "the damage is told", func() bool {
			return e.Refresh() == nil && strings.Contains(e.Status.Cluster.Store, "damaged")
		})
	}
	refusedCut := 0
	for i := range 5 {
		if out, err := try(fmt.Sprintf("cut%d.localhost", i)); err != nil && strings.Contains(out, "damaged") {
			refusedCut++
		}
	}
	forgotten := 0
	for _, e := range edges {
		list := e.CLI(t, "token", "list")
		for _, name := range acked {
			if !strings.Contains(list, name) {
				t.Logf("%s is not known any more", name)
				forgotten++
			}
		}
	}

	// What the fault says to do: a backup of an edge that has everything.
	file := filepath.Join(t.TempDir(), "b13.backup")
	other.CLI(t, "backup", "--out", file)
	host.Signal(syscall.SIGTERM)
	host.Exit(t, 20*time.Second)
	host.CLI(t, "restore", file, "--force")
	host.Restart(t)
	edgetest.Eventually(t, "writes are taken after the restore", func() bool {
		_, err := try("mended.localhost")
		return err == nil
	})
	failed, asked := answers.Failed(), len(answers)
	rest := probes[1].Stop()
	failed, asked = failed+rest.Failed(), asked+len(rest)
	oracle.Row{
		ID: "B13", Done: "the disk of the store's host full, read-only, its file cut off to two thirds; an edge that keeps running and the host up to its kill asked 100/s each",
		Figure: fmt.Sprintf("%d of %d requests failed, %d of 20 and %d of 5 writes refused, %d of %d acknowledged writes forgotten", failed, asked, refusedFull, refusedCut, forgotten, len(acked)),
		Limit:  "0 failed, refused, 0 forgotten",
		OK:     failed == 0 && refusedFull > 0 && refusedCut == 5 && forgotten == 0,
	}.Verdict(t)
}

// fill writes a file until the disk is full.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 64 << 10; size > 0; {
		if _, err := f.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
}
