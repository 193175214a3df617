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
	"wormhole/edge/edgetest/oracle"
	"wormhole/wormhole/agent"
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

// deafen makes e drop what comes from others, or hear all again.
func (e *island) deafen(t *testing.T, on bool, others ...*island) {
	t.Helper()
	rules := "delete table inet cut"
	if on {
		rules = "add table inet cut; add chain inet cut in { type filter hook input priority 0; }"
		for _, o := range others {
			rules += "; add rule inet cut in ip saddr " + o.ip + " drop"
		}
	}
	command(t, "ip", "netns", "exec", e.ns, "nft", rules)
}

// serve starts an agent for host with a tunnel to each of the edges.
func serve(t *testing.T, ca, host, app string, edges ...*island) *worker {
	t.Helper()
	token, err := exec.Command(binaries.Edge, "token", "issue", "--host", host, "--data-dir", edges[0].Dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range edges {
		names = append(names, e.name+":443")
	}
	w := workWith(t, agent.Config{
		Edges: names, Token: strings.TrimSpace(string(token)), Name: host, RootCAs: edgetest.Roots(t, ca), Transport: agent.OnlyTLS,
		EdgesMax: len(edges), EdgesMin: len(edges),
		Resolve: func(_ context.Context, name string) ([]netip.Addr, error) {
			for _, e := range edges {
				if e.name == name {
					return []netip.Addr{netip.MustParseAddr(e.ip)}, nil
				}
			}
			return nil, fmt.Errorf("no edge is called %s", name)
		},
	}, app)
	w.awaitTunnels(t, len(edges))
	return w
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
	hold, every := 2*time.Second, 10*time.Millisecond
	if oracle.Long() {
		hold, every = 2*time.Minute, 20*time.Millisecond
	}
	e := islands(t, 3)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	copyFile(t, e[0].Status.CA, ca)
	app := edgetest.App(t, edgetest.Named("app"))
	for i, at := range e {
		serve(t, ca, fmt.Sprintf("s%d.localhost", i+1), app, at)
	}
	clients := make([]*http.Client, 3)
	for i, at := range e {
		clients[i] = at.client(t, ca)
		for j := range e {
			awaitOK(t, clients[i], fmt.Sprintf("s%d.localhost", j+1))
		}
	}
	for _, c := range []struct {
		id, name string
		cut      func(on bool)
	}{
		{"B3", "both ways", func(on bool) { e[0].deafen(t, on, e[2]); e[2].deafen(t, on, e[0]) }},
		{"B4", "one way", func(on bool) { e[2].deafen(t, on, e[0]) }},
	} {
		name, cut := c.name, c.cut
		var probes []*edgetest.Probe
		for i, host := range []string{"s1.localhost", "s2.localhost", "s3.localhost"} {
			probes = append(probes, edgetest.StartProbe(clients[i], "https://"+host+"/", every))
		}
		// What e2 has is reached from both sides of the cut.
		probes = append(probes, edgetest.StartProbe(clients[0], "https://s2.localhost/", every),
			edgetest.StartProbe(clients[2], "https://s2.localhost/", every))
		cut(true)
		edgetest.Eventually(t, "the cut is noticed", func() bool { return e[0].up() == 1 && e[2].up() == 1 })
		slowest, wrong, refused := time.Duration(0), 0, 0
		for since := time.Now(); refused < 6 || time.Since(since) < hold; time.Sleep(hold / 20) {
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
				took := time.Since(began)
				slowest, refused = max(slowest, took), refused+1
				if resp.StatusCode != 503 || !strings.Contains(string(text), "cannot be reached") {
					wrong++
					t.Logf("%s: %s: %d after %s: %.200s", name, c.host, resp.StatusCode, took, text)
				}
			}
		}
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
				t.Logf("%s: failed:%s", name, answers.Faults())
			}
		}
		oracle.Row{
			ID: c.id, Done: fmt.Sprintf("two of three edges cut off from each other %s for %s; each asked for its own site, and the third's", name, hold),
			Figure: fmt.Sprintf("%d of %d failed; beyond the cut %d of %d other than 503 with the reason, the slowest after %s; converged %s after it healed",
				failed, asked, wrong, refused, slowest.Round(time.Millisecond), took.Round(time.Millisecond)),
			Limit: "0 failed, 503 within 2 s, converged in 5 s", OK: failed == 0 && wrong == 0 && slowest <= 2*time.Second && took <= 5*time.Second,
		}.Verdict(t)
	}
}
