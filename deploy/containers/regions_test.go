//go:build containers

package containers

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// regions is the example of three edges, up and answering.
type regions struct {
	*project
	ca    []byte
	ports map[string]string // by edge
}

// nextEdge is the image that replaces the edges'.
const nextEdge = "wormhole/edge:test-next"

var threeEdges = []string{"yyz", "fra", "sin"}

// TestThreeRegions brings the example up once, and each part leaves it whole.
func TestThreeRegions(t *testing.T) {
	r := openRegions(t)
	inTurn(t, r, []part[*regions]{
		{"EveryEdgeServesWhatOthersHave", relays},
		{"RollingRestartOfAllEdgesFailsNobody", rolls},
		{"EdgesCutOffFromEachOtherServe", partsFromEdges},
		{"AnEdgeCutOffFromItsRegionIsReplacedByTheOthers", partsFromRegion},
		{"AnEdgeNeedsItsJoinTokenOnce", restartsAlone},
		{"TheEdgesImageIsReplacedUnderLoad", replaces},
	})
}

func openRegions(t *testing.T) *regions {
	t.Helper()
	r := &regions{ports: map[string]string{}}
	var env []string
	for _, edge := range threeEdges {
		r.ports[edge] = freePort(t)
		env = append(env, strings.ToUpper(edge)+"_PORT="+r.ports[edge])
	}
	t.Cleanup(func() { _ = exec.Command("docker", "rmi", "-f", nextEdge).Run() }) // after the containers
	r.project = newProject(t, "regions.yaml", env...)
	r.run("build", "-q")
	r.run("up", "-d")
	r.ca = r.authority("yyz")
	r.awaitWhole(t)
	return r
}

// at are n visitors for each of HTTP/1.1 and HTTP/2 who know these edges, and dial
// them in this order.
func (r *regions) at(t *testing.T, n int, edges ...string) []*visitor {
	var ports []string
	for _, edge := range edges {
		ports = append(ports, r.ports[edge])
	}
	return newVisitors(t, n, r.ca, exampleHost, ports...)
}

// everywhere are visitors who know all edges; each edge is the first of some.
func (r *regions) everywhere(t *testing.T) []*visitor {
	var all []*visitor
	for i, edge := range threeEdges {
		all = append(all, r.at(t, 1, edge, threeEdges[(i+1)%3], threeEdges[(i+2)%3])...)
	}
	return all
}

// awaitWhole waits until every edge hears both others and has two tunnels.
func (r *regions) awaitWhole(t *testing.T) {
	t.Helper()
	began := time.Now()
	for expired := time.After(45 * time.Second); ; {
		whole, last := 0, ""
		for _, name := range threeEdges {
			ids := r.containers(name)
			if len(ids) == 0 {
				continue
			}
			text, err := output(t.Context(), r.dir, "docker", "exec", ids[0], "/edge", "status", "--json")
			var status struct {
				Backends []struct{ State string }
				Cluster  struct {
					Peers []struct {
						Health      string
						HeardMillis int64 `json:"heard_ms"`
					}
				}
			}
			if err != nil || json.Unmarshal([]byte(text), &status) != nil {
				continue
			}
			ready, up := 0, 0
			for _, b := range status.Backends {
				if b.State == "ready" {
					ready++
				}
			}
			for _, p := range status.Cluster.Peers {
				if p.Health == "up" && p.HeardMillis >= 0 {
					up++
				}
			}
			if last = text; ready >= 2 && up == 2 {
				whole++
			}
		}
		if whole == len(threeEdges) {
			t.Logf("whole after %v", time.Since(began).Round(10*time.Millisecond))
			return
		}
		select {
		case <-expired:
			t.Fatalf("%d edges have two tunnels and hear both others; one says %s", whole, last)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// relays stops the two apps that have tunnels to yyz: what yyz then answers came
// from another region.
func relays(t *testing.T, r *regions) {
	for _, edge := range threeEdges {
		l := startLoad(t, r.at(t, 1, edge)...)
		l.awaitBackends(t, 2, 10*time.Second)
		l.finish()
		l.lostNothing(t, "at "+edge)
	}
	near := []string{r.containers("statler")[0], r.containers("app")[0]}
	l := startLoad(t, r.at(t, 2, "yyz")...)
	docker(t, append([]string{"stop"}, near...)...)
	l.awaitBackends(t, 1, 10*time.Second)
	l.finish()
	t.Log(l.summary())
	l.lostNothing(t, "when only another region had the app")
	if l.said["waldorf"] == 0 {
		t.Errorf("%v answered, want the app of another region", l.said)
	}
	docker(t, append([]string{"start"}, near...)...)
	r.awaitWhole(t)
}

// rolls restarts the edges one by one. Visitors who know all edges lose nothing,
// and neither do those at the two edges that stay.
func rolls(t *testing.T, r *regions) {
	all := startLoad(t, r.everywhere(t)...)
	for i, edge := range threeEdges {
		neighbours := startLoad(t, append(r.at(t, 1, threeEdges[(i+1)%3]), r.at(t, 1, threeEdges[(i+2)%3])...)...)
		began := time.Now()
		docker(t, "restart", "-t", "40", r.containers(edge)[0])
		t.Logf("%s restarted in %v", edge, time.Since(began).Round(10*time.Millisecond))
		r.awaitWhole(t)
		neighbours.finish()
		neighbours.lostNothing(t, "at the edges that stayed while "+edge+" restarted")
	}
	all.finish()
	t.Log(all.summary())
	all.lostNothing(t, "while the edges were restarted one by one")
}

// partsFromEdges cuts one edge off from the others, not from its visitors and apps.
func partsFromEdges(t *testing.T, r *regions) {
	container := r.containers("fra")[0]
	name := r.network(t, "backbone")
	visitors := append(r.at(t, 1, "fra"), append(r.at(t, 1, "yyz"), r.at(t, 1, "sin")...)...)
	l := startLoad(t, visitors...)
	docker(t, "network", "disconnect", name, container)
	<-time.After(6 * time.Second) // for longer than silence may go unnoticed
	docker(t, "network", "connect", "--alias", "fra", name, container)
	r.awaitWhole(t)
	l.finish()
	t.Log(l.summary())
	l.lostNothing(t, "though every edge had apps of its own")
}

// partsFromRegion cuts one edge off from its visitors and apps.
func partsFromRegion(t *testing.T, r *regions) {
	container := r.containers("fra")[0]
	name := r.network(t, "fra")
	visitors := r.everywhere(t)
	l := startLoad(t, visitors...)
	<-time.After(500 * time.Millisecond)
	docker(t, "network", "disconnect", name, container)
	cut := time.Now()
	<-time.After(8 * time.Second)
	docker(t, "network", "connect", "--alias", "fra", name, container)
	r.awaitWhole(t)
	l.finish()
	t.Log(l.summary())
	l.lostOnly(t, cut, len(visitors))
}

// restartsAlone takes the join tokens away and the first edge down: another edge
// restarts all the same, from what it has.
func restartsAlone(t *testing.T, r *regions) {
	const invite = "wormhole/compose-invite:latest"
	volume := docker(t, "inspect", "--format", `{{range .Mounts}}{{if eq .Destination "/join"}}{{.Name}}{{end}}{{end}}`, r.containers("fra")[0])
	if code, text := exitOf(t, "-v", volume+":/join", "--network", "none", invite, "rm", "/join/token"); code != 0 {
		t.Fatal(text)
	}
	first := r.containers("yyz")[0]
	docker(t, "stop", "-t", "40", first)
	docker(t, "restart", "-t", "40", r.containers("fra")[0])
	l := startLoad(t, r.at(t, 1, "fra", "sin")...)
	l.awaitBackends(t, 2, 20*time.Second)
	l.finish()
	l.lostNothing(t, "after the restart")
	docker(t, "start", first)
	r.awaitWhole(t)
}

// replaces brings the example up again with another image of the edge, as an
// operator does. Compose replaces the first edge and waits for its health, then the
// two others at once.
func replaces(t *testing.T, r *regions) {
	build := exec.CommandContext(t.Context(), "docker", "build", "-q", "-t", nextEdge, "-")
	build.Stdin = strings.NewReader("FROM " + edgeImage + "\nLABEL next=yes\n")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	r.env = append(r.env, "WORMHOLE_TAG=test-next")
	all := startLoad(t, r.everywhere(t)...)
	one := startLoad(t, r.at(t, 1, "sin")...)
	r.run("up", "-d", "--no-build")
	r.awaitWhole(t)
	all.finish()
	one.finish()
	for _, edge := range threeEdges {
		if got := docker(t, "inspect", "--format", "{{.Config.Image}}", r.containers(edge)[0]); got != nextEdge {
			t.Errorf("%s runs %s", edge, got)
		}
	}
	t.Logf("visitors who know three edges: %s", all.summary())
	all.lostNothing(t, "of visitors who know three edges, while the image was replaced")
	// Nobody can serve those who know one edge while it is not there: this is how long.
	if f := one.failed(); len(f) > 0 {
		t.Logf("visitors who know one edge: refused for %v; %s", f[len(f)-1].began.Sub(f[0].began).Round(10*time.Millisecond), one.summary())
	} else {
		t.Error("visitors who know one edge noticed nothing: was it replaced?")
	}
}

// network is the name of one of the project's networks.
func (r *regions) network(t *testing.T, name string) string {
	t.Helper()
	found := strings.Fields(docker(t, "network", "ls", "--format", "{{.Name}}",
		"--filter", "label=com.docker.compose.network="+name, "--filter", "label=com.docker.compose.project="+r.name))
	if len(found) != 1 {
		t.Fatalf("networks %v", found)
	}
	return found[0]
}
