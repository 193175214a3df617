package regions

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wormhole/edge/edgetest"
	"wormhole/wormhole/agent"
	"wormhole/wormhole/forward"
)

// island is an edge in a network namespace of its own.
type island struct {
	*edgetest.EdgeProcess
	ns, ip, name string
}

func command(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v %s", strings.Join(args, " "), err, out)
	}
}

// islands starts n edges of one network, each in a namespace, joined by a bridge in
// another. Nothing of it reaches beyond; all goes with the namespaces.
func islands(t *testing.T, n int) []*island {
	t.Helper()
	tag := fmt.Sprintf("wh%d", os.Getpid()%100000)
	if out, err := exec.Command("ip", "netns", "add", tag+"b").CombinedOutput(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("no network namespaces: %v %s", err, out)
		}
		t.Skipf("no network namespaces here: %v %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", tag+"b").Run() })
	command(t, "ip", "-n", tag+"b", "link", "add", "br0", "type", "bridge")
	command(t, "ip", "-n", tag+"b", "link", "set", "br0", "up")
	subnet := fmt.Sprintf("10.213.%d", os.Getpid()%250)
	join := func(dev, ns, ip string) {
		peer := dev + "p"
		command(t, "ip", "link", "add", dev, "type", "veth", "peer", "name", peer)
		command(t, "ip", "link", "set", peer, "netns", tag+"b")
		command(t, "ip", "-n", tag+"b", "link", "set", peer, "master", "br0", "up")
		where := []string{"ip"}
		if ns != "" {
			command(t, "ip", "link", "set", dev, "netns", ns)
			where = append(where, "-n", ns)
		}
		command(t, append(where, "addr", "add", ip+"/24", "dev", dev)...)
		command(t, append(where, "link", "set", dev, "up")...)
	}
	join(tag+"h", "", subnet+".254")
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", tag+"h").Run() })
	var list []*island
	for i := range n {
		e := &island{ns: fmt.Sprintf("%s%d", tag, i+1), ip: fmt.Sprintf("%s.%d", subnet, i+1), name: fmt.Sprintf("e%d.localhost", i+1)}
		command(t, "ip", "netns", "add", e.ns)
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", e.ns).Run() })
		command(t, "ip", "-n", e.ns, "link", "set", "lo", "up")
		join(e.ns, e.ns, e.ip)
		dir := t.TempDir()
		args := []string{
			"netns", "exec", e.ns, binaries.Edge, "serve", "--data-dir", dir, "--https", e.ip + ":443", "--http", "", "--admin", e.ip + ":7080",
			"--hostname", e.name, "--advertise", e.ip, "--cluster-listen", e.ip + ":7443", "--access-log", "off", "--drain-delay", "0s", "--region", fmt.Sprint(i),
		}
		if i > 0 {
			token, err := exec.Command(binaries.Edge, "cluster", "join-token", "--data-dir", list[0].Dir).Output()
			file := filepath.Join(dir, "join.token")
			if err == nil {
				err = os.WriteFile(file, token, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			args = append(args, "--join", list[0].ip+":443", "--join-token-file", file)
		}
		e.EdgeProcess = &edgetest.EdgeProcess{Process: edgetest.Start(t, nil, "ip", args...), Dir: dir}
		edgetest.Eventually(t, "edge is up", func() bool { return e.Refresh() == nil })
		list = append(list, e)
	}
	for _, e := range list {
		e.awaitPeers(t, n-1)
	}
	return list
}

func (e *island) up() int {
	n := 0
	if e.Refresh() == nil {
		for _, p := range e.Status.Cluster.Peers {
			if p.Health == "up" && p.HeardMillis >= 0 && p.HeardMillis < 4000 {
				n++
			}
		}
	}
	return n
}

func (e *island) awaitPeers(t *testing.T, want int) {
	t.Helper()
	edgetest.Eventually(t, fmt.Sprintf("%s sees %d edges", e.name, want), func() bool { return e.up() == want })
}

// deafen makes e drop what comes from other, or hear it again.
func (e *island) deafen(t *testing.T, other *island, on bool) {
	t.Helper()
	if !on {
		command(t, "ip", "netns", "exec", e.ns, "nft", "delete", "table", "inet", "cut")
		return
	}
	command(t, "ip", "netns", "exec", e.ns, "nft", "add", "table", "inet", "cut")
	command(t, "ip", "netns", "exec", e.ns, "nft", "add", "chain", "inet", "cut", "in", "{ type filter hook input priority 0; }")
	command(t, "ip", "netns", "exec", e.ns, "nft", "add", "rule", "inet", "cut", "in", "ip", "saddr", other.ip, "drop")
}

func (e *island) serve(t *testing.T, ca, host, app string) {
	t.Helper()
	token, err := exec.Command(binaries.Edge, "token", "issue", "--host", host, "--data-dir", e.Dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	where, err := forward.ParseEndpoint(app)
	if err != nil {
		t.Fatal(err)
	}
	a, err := agent.New(agent.Config{
		Edges: []string{e.name + ":443"}, Token: strings.TrimSpace(string(token)), RootCAs: edgetest.Roots(t, ca), Transport: agent.OnlyTLS,
		EdgesMax: 1, EdgesMin: 1,
		Resolve: func(context.Context, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr(e.ip)}, nil
		},
	}, forward.New(forward.Config{Endpoint: where}), edgetest.Logger(t))
	if err != nil {
		t.Fatal(err)
	}
	a.SetReady(true, "")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = a.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	edgetest.Eventually(t, "a tunnel", func() bool { return len(a.Status().Tunnels) == 1 })
}

func (e *island) client(t *testing.T, ca string) *http.Client {
	t.Helper()
	e.Status.CA = ca
	c := e.Client(t, "h1")
	c.Timeout = 10 * time.Second
	return c
}

// B3 and B4: e1 and e3 are cut off from each other, both ways and one way, while
// both see e2. Local sites notice nothing; what is beyond the cut is refused soon,
// never sent in a circle; all is well soon after the cut heals.
func TestB4PartialPartitions(t *testing.T) {
	e := islands(t, 3)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	copyFile(t, e[0].Status.CA, ca)
	app := edgetest.App(t, edgetest.Named("app"))
	for i, at := range e {
		at.serve(t, ca, fmt.Sprintf("s%d.localhost", i+1), app)
	}
	clients := make([]*http.Client, 3)
	for i, at := range e {
		clients[i] = at.client(t, ca)
		for j := range e {
			awaitOK(t, clients[i], fmt.Sprintf("s%d.localhost", j+1))
		}
	}
	for name, cut := range map[string]func(on bool){
		"both ways": func(on bool) { e[0].deafen(t, e[2], on); e[2].deafen(t, e[0], on) },
		"one way":   func(on bool) { e[2].deafen(t, e[0], on) },
	} {
		var probes []*edgetest.Probe
		for i, host := range []string{"s1.localhost", "s2.localhost", "s3.localhost"} {
			probes = append(probes, edgetest.StartProbe(clients[i], "https://"+host+"/", 10*time.Millisecond))
		}
		// What e2 has is reached from both sides of the cut.
		probes = append(probes, edgetest.StartProbe(clients[0], "https://s2.localhost/", 10*time.Millisecond),
			edgetest.StartProbe(clients[2], "https://s2.localhost/", 10*time.Millisecond))
		cut(true)
		edgetest.Eventually(t, "the cut is noticed", func() bool { return e[0].up() == 1 && e[2].up() == 1 })
		for range 3 {
			for _, c := range []struct {
				client *http.Client
				host   string
			}{{clients[0], "s3.localhost"}, {clients[2], "s1.localhost"}} {
				began := time.Now()
				resp, err := c.client.Get("https://" + c.host + "/")
				if err != nil {
					t.Fatal(err)
				}
				text, _ := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if took := time.Since(began); resp.StatusCode != 503 || took > 2*time.Second {
					t.Errorf("%s: %s: %d after %s: %.200s", name, c.host, resp.StatusCode, took, text)
				}
			}
		}
		time.Sleep(2 * time.Second)
		cut(false)
		began := time.Now()
		for _, at := range e {
			at.awaitPeers(t, 2)
		}
		awaitOK(t, clients[0], "s3.localhost")
		awaitOK(t, clients[2], "s1.localhost")
		took := time.Since(began)
		failed, asked := 0, 0
		for _, p := range probes {
			answers := p.Stop()
			asked += len(answers)
			if failed += answers.Failed(); answers.Failed() > 0 {
				t.Errorf("%s: failed:%s", name, answers.Faults())
			}
		}
		t.Logf("%s: %d of %d failed; converged %s after it healed", name, failed, asked, took)
		if took > 5*time.Second {
			t.Errorf("%s: converged after %s, want 5 s", name, took)
		}
	}
}
