package regions

import (
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"wormhole/edge/edgetest"
)

// natsServer is built when it is first needed.
var natsServer = sync.OnceValues(func() (string, error) {
	dir := filepath.Dir(binaries.Edge)
	return dir, edgetest.BuildNATS(dir)
})

func natsDir(t *testing.T) string {
	t.Helper()
	dir, err := natsServer()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// startOnNATS starts an edge whose bus and store are elsewhere.
func startOnNATS(t *testing.T, region string, urls []string) *edge {
	t.Helper()
	port := edgetest.KeptPort(t)
	return binaries.StartClusterEdge(t, "localhost:"+port, "--https", "127.0.0.1:"+port, "--http", "", "--hostname", "localhost",
		"--region", region, "--nats", strings.Join(urls, ","))
}

// Three edges on three NATS servers of somebody else: any edge serves any site, a
// server's death is nothing, the death of all costs nobody a request, and afterwards
// everything is there.
func TestAnExternalNATSClusterCarriesBusAndStore(t *testing.T) {
	cluster := edgetest.StartNATS(t, natsDir(t), 3, true)
	var edges []*edge
	for _, region := range []string{"r1", "r2", "r3"} {
		edges = append(edges, startOnNATS(t, region, cluster.URLs))
	}
	for _, e := range edges {
		e.AwaitPeers(t, 2)
	}
	ca := filepath.Join(t.TempDir(), "ca.pem")
	copyFile(t, edges[0].Status.CA, ca)
	app := edgetest.App(t, edgetest.Named("app"))
	token := issue(t, edges[1], "app.localhost")
	work(t, ca, token, "app", app, 1, edges[2].Door).awaitTunnels(t, 1)
	c := client(t, edges[0], edges[0])
	awaitOK(t, c, "app.localhost")
	if out := edges[0].CLI(t, "cluster", "list"); !strings.Contains(out, "in step, on nats://127.0.0.1:") || strings.Contains(out, "sesame") {
		t.Errorf("cluster list says\n%s", out)
	}
	probe := edgetest.StartProbe(c, "https://app.localhost/", 5*time.Millisecond)

	cluster.Servers[0].Signal(syscall.SIGKILL)
	edgetest.Eventually(t, "tokens are issued on two servers of three", func() bool {
		_, err := edges[0].TryCLI("token", "issue", "--host", "two.localhost")
		return err == nil
	})
	for _, s := range cluster.Servers[1:] {
		s.Signal(syscall.SIGKILL)
	}
	for _, e := range edges {
		edgetest.Eventually(t, "the edge notices", func() bool { return e.Refresh() == nil && e.Status.Cluster.Store != "" })
	}
	if out, err := edges[1].TryCLI("token", "issue", "--host", "x.localhost"); err == nil || !strings.Contains(out, "store cannot be reached") {
		t.Errorf("a write without a store: %v %s", err, out)
	}
	work(t, ca, token, "late", app, 1, edges[0].Door).awaitTunnels(t, 1)
	edges[2].Signal(syscall.SIGTERM)
	edges[2].Exit(t, 20*time.Second)
	edges[2].Restart(t) // from its mirror
	time.Sleep(time.Second)
	answers := probe.Stop()
	t.Logf("%d of %d failed with all of NATS gone, p99 %s", answers.Failed(), len(answers), answers.P99())
	if answers.Failed() > 0 {
		t.Errorf("failed:%s", answers.Faults())
	}
	for i := range cluster.Servers {
		cluster.Restart(t, i)
	}
	for _, e := range edges {
		edgetest.Eventually(t, "the store is in step", func() bool { return e.Refresh() == nil && e.Status.Cluster.Store == "" })
		e.AwaitPeers(t, 2)
	}
	if list := edges[2].CLI(t, "token", "list"); !strings.Contains(list, "two.localhost") || !strings.Contains(list, "app.localhost") {
		t.Errorf("tokens are\n%s", list)
	}
	for _, e := range edges {
		if strings.Contains(e.Output(), "sesame") {
			t.Error("the password is in the log")
		}
	}
}

func TestWhatIsWrongWithAnExternalNATSClusterIsSaid(t *testing.T) {
	plain := edgetest.StartNATS(t, natsDir(t), 1, false)
	full := edgetest.StartNATS(t, natsDir(t), 1, true)
	try := func(args ...string) string {
		t.Helper()
		began := time.Now()
		p := edgetest.Start(t, nil, binaries.Edge, append([]string{
			"serve", "--data-dir", t.TempDir(), "--https", "127.0.0.1:0", "--http", "",
			"--admin", "127.0.0.1:0", "--hostname", "localhost",
		}, args...)...)
		if status := p.Exit(t, 30*time.Second); status != 78 {
			t.Errorf("%v: exit status %d, want 78", args, status)
		}
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("%v: it took %s", args, took)
		}
		if strings.Contains(p.Output(), "sesame") {
			t.Errorf("the password is shown: %s", p.Output())
		}
		return p.Output()
	}
	for _, c := range []struct {
		says string
		args []string
	}{
		{"none can be reached", []string{"--nats", "nats://wormhole:sesame-of-tests@127.0.0.1:" + edgetest.FreePort(t)}},
		{"refuse the credentials", []string{"--nats", full.Bare[0]}},
		{"refuse the credentials", []string{"--nats", strings.Replace(full.URLs[0], "sesame", "wrong-sesame", 1)}},
		{"JetStream is off", []string{"--nats", plain.URLs[0]}},
		{"is not nats://", []string{"--nats", "http://user:sesame@127.0.0.1:4222"}},
		{"leave out cluster_listen", []string{"--nats", full.URLs[0], "--cluster-listen", "127.0.0.1:0"}},
		{"nats_creds_file", []string{"--nats-creds-file", "/dev/null"}},
	} {
		if out := try(c.args...); !strings.Contains(out, c.says) {
			t.Errorf("%v: it says %s, want %q", c.args, out, c.says)
		}
	}
}
