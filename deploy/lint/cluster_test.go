package lint_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The two steps of a cluster, as values.yaml describes them.
const (
	clusterFirst = `cluster: {enabled: true}`
	clusterMore  = `{replicas: 3, cluster: {enabled: true, joinSecret: edge-join}}`
)

// TestChartsReplicasBecomeOneNetwork starts edges with the variables that the chart
// gives to its pods: the first alone, then again and with two more as an upgrade
// would, and again when the join token is gone. Only names of pods and paths are
// replaced by what exists on this machine.
func TestChartsReplicasBecomeOneNetwork(t *testing.T) {
	dir := t.TempDir()
	edge := filepath.Join(dir, "edge")
	build := exec.Command("go", "build", "-o", edge, "./edge")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	token := filepath.Join(dir, "token")
	var pods []*pod
	for i := range 3 {
		pods = append(pods, &pod{program: edge, dir: filepath.Join(dir, fmt.Sprint(i)), door: freeAddress(t), mesh: freeAddress(t), token: token, first: pods})
	}

	pods[0].start(t, clusterFirst)
	pods[0].stop(t)
	// The upgrade restarts the first, too, which is told to join itself.
	pods[0].start(t, clusterMore)
	text, err := exec.Command(edge, "cluster", "join-token", "--data-dir", pods[0].dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(token, text, 0o600); err != nil {
		t.Fatal(err)
	}
	pods[1].start(t, clusterMore)
	pods[2].start(t, clusterMore)
	for _, p := range pods {
		p.awaitPeers(t, 2)
	}
	if err := os.Remove(token); err != nil {
		t.Fatal(err)
	}
	pods[1].stop(t)
	pods[1].start(t, clusterMore)
	pods[1].awaitPeers(t, 2)
	for _, p := range pods {
		p.stop(t)
	}

	// A first replica that lost its volume must not make a network of its own.
	if err := os.RemoveAll(pods[0].dir); err != nil {
		t.Fatal(err)
	}
	cmd := pods[0].command(t, clusterMore)
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "join") {
		t.Errorf("an edge without its volume ended with %v\n%s", err, out)
	}
}

// pod is a replica as a process.
type pod struct {
	program, dir, door, mesh, token string
	first                           []*pod // empty for the first
	cmd                             *exec.Cmd
	log                             bytes.Buffer
}

func (p *pod) command(t *testing.T, text string) *exec.Cmd {
	t.Helper()
	const name = "edge-wormhole-edge-0.edge-wormhole-edge-nodes.edges.svc"
	container := dig(t, render(t, text)["statefulset.yaml"], "spec", "template", "spec", "containers").([]any)[0].(map[string]any)
	first := p
	if len(p.first) > 0 {
		first = p.first[0]
	}
	_, port, _ := net.SplitHostPort(first.door)
	replaced := strings.NewReplacer(name+":443", "localhost:"+port, "$(POD_NAME)."+strings.SplitN(name, ".", 2)[1], "localhost",
		"/etc/wormhole-join/token", p.token, ":7443", p.mesh)
	env := append(os.Environ(), "EDGE_HTTP=", "EDGE_HTTPS="+p.door, "EDGE_ADMIN=127.0.0.1:0", "EDGE_DATA_DIR="+p.dir, "EDGE_DRAIN_DELAY=0s")
	given := 0
	for _, v := range container["env"].([]any) {
		v := v.(map[string]any)
		switch key := v["name"].(string); key {
		case "EDGE_CLUSTER_LISTEN", "EDGE_ADVERTISE", "EDGE_JOIN", "EDGE_JOIN_TOKEN_FILE":
			value := replaced.Replace(v["value"].(string))
			if strings.Contains(value, ".svc") || strings.Contains(value, "POD_NAME") {
				t.Fatalf("%s is %q", key, value)
			}
			env = append(env, key+"="+value)
			given++
		}
	}
	if want := map[string]int{clusterFirst: 2, clusterMore: 4}[text]; given != want {
		t.Fatalf("%d variables of a cluster, want %d", given, want)
	}
	cmd := exec.Command(p.program, "serve")
	cmd.Env = env
	return cmd
}

func (p *pod) start(t *testing.T, text string) {
	t.Helper()
	p.cmd = p.command(t, text)
	p.cmd.Stderr = &p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cmd := p.cmd
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s:\n%s", p.dir, p.log.String())
		}
	})
	p.awaitPeers(t, -1)
}

func (p *pod) stop(t *testing.T) {
	t.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	if err := p.cmd.Wait(); err != nil {
		t.Fatalf("an edge ended with %v", err)
	}
}

// awaitPeers waits until the edge serves and, unless want is negative, so many
// others are up.
func (p *pod) awaitPeers(t *testing.T, want int) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; {
		text, err := exec.Command(p.program, "status", "--json", "--data-dir", p.dir).Output()
		var status struct {
			Cluster struct{ Peers []struct{ Health string } }
		}
		if err == nil && json.Unmarshal(text, &status) == nil {
			up := 0
			for _, peer := range status.Cluster.Peers {
				if peer.Health == "up" {
					up++
				}
			}
			if want < 0 || up == want {
				return
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v: %s", p.dir, err, text)
		}
		<-time.After(100 * time.Millisecond)
	}
}
