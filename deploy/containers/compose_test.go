//go:build containers

package containers

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"
)

const exampleHost = "app.localhost"

// example is the compose example, up and answering.
type example struct {
	*project
	ca   []byte
	port string
}

// TestComposeExample brings the example up once, and each part leaves it as the
// next expects it: three copies, all answering.
func TestComposeExample(t *testing.T) {
	e := openExample(t)
	inTurn(t, e, []part[*example]{
		{"BothNeighboursAnswerAndTheHeaderNamesThem", bothAnswer},
		{"ScalesFromOneToTenToThreeWithoutAFailedRequest", scales},
		{"DockerStopLosesNoRequestAndEndsInTime", stops},
		{"DockerKillIsForgottenWithinASecond", kills},
		{"AnAgentCutOffLeavesAndReturns", cutOff},
		{"AnEdgeThatRestartsFindsItsAgentsAgain", restarts},
	})
}

// part is one of the tests that share a running example.
type part[E any] struct {
	name string
	run  func(*testing.T, E)
}

// inTurn runs the parts one after the other, until one fails.
func inTurn[E any](t *testing.T, example E, parts []part[E]) {
	t.Helper()
	for _, p := range parts {
		if !t.Run(p.name, func(t *testing.T) { p.run(t, example) }) {
			t.Fatal("the parts that follow would prove nothing")
		}
	}
}

func openExample(t *testing.T) *example {
	t.Helper()
	https, http := freePort(t), freePort(t)
	p := newProject(t, "compose.yaml", "HTTPS_PORT="+https, "HTTP_PORT="+http)
	e := &example{project: p, port: https}
	p.run("build", "-q")
	p.run("up", "-d")
	e.ca = e.authority("edge")
	l := startLoad(t, e.visitors(t, 2)...)
	l.awaitBackends(t, 3, 30*time.Second)
	l.finish()
	return e
}

// authority is the certificate authority of a service's edge, taken as the examples say.
func (p *project) authority(service string) []byte {
	p.t.Helper()
	file := filepath.Join(p.t.TempDir(), "ca.pem")
	docker(p.t, "cp", p.containers(service)[0]+":/var/lib/wormhole/ca/ca.pem", file)
	text, err := os.ReadFile(file)
	if err != nil {
		p.t.Fatal(err)
	}
	return text
}

// visitors are n for each of HTTP/1.1 and HTTP/2.
func (e *example) visitors(t *testing.T, n int) []*visitor {
	return newVisitors(t, n, e.ca, exampleHost, e.port)
}

// scale asks for n copies of the app service beside statler and waldorf.
func (e *example) scale(n string) {
	e.run("up", "-d", "--no-deps", "--no-recreate", "--scale", "app="+n, "app")
}

func bothAnswer(t *testing.T, e *example) {
	l := startLoad(t, e.visitors(t, 1)...)
	l.awaitBackends(t, 3, 10*time.Second)
	l.finish()
	l.lostNothing(t, "while nothing happened")
	for _, name := range []string{"statler", "waldorf"} {
		if l.said[name] == 0 {
			t.Errorf("%s never answered: %v", name, l.said)
		}
	}
	if _, unnamed := l.backends[""]; unnamed || len(l.backends) != 3 {
		t.Errorf("X-Internal-Service named %v, want three copies", l.backends)
	}
}

func scales(t *testing.T, e *example) {
	l := startLoad(t, e.visitors(t, 2)...)
	e.scale("10")
	l.awaitBackends(t, 12, 30*time.Second)
	e.scale("3")
	l.awaitBackends(t, 5, 10*time.Second)
	e.scale("1")
	l.awaitBackends(t, 3, 10*time.Second)
	l.finish()
	t.Log(l.summary())
	l.lostNothing(t, "while the app was scaled")
}

func stops(t *testing.T, e *example) {
	container := e.containers("waldorf")[0]
	l := startLoad(t, e.visitors(t, 2)...)
	l.awaitBackends(t, 3, 10*time.Second)
	began := time.Now()
	docker(t, "stop", container)
	took := time.Since(began)
	l.awaitBackends(t, 2, 10*time.Second)
	l.finish()
	t.Logf("stopped in %v; %s", took.Round(time.Millisecond), l.summary())
	l.lostNothing(t, "while a copy was stopped")
	if took > 9500*time.Millisecond {
		t.Errorf("docker stop took %v", took)
	}
	// Node ends by the signal, so the agent ends with 128+15.
	if code := docker(t, "inspect", "--format", "{{.State.ExitCode}}", container); code != "143" {
		t.Errorf("exit status %s, want 143", code)
	}
	docker(t, "start", container)
	e.awaitCopies(t, 3)
}

func kills(t *testing.T, e *example) {
	container := e.containers("statler")[0]
	visitors := e.visitors(t, 2)
	l := startLoad(t, visitors...)
	l.awaitBackends(t, 3, 10*time.Second)
	killed := time.Now()
	docker(t, "kill", container)
	l.awaitBackends(t, 2, 10*time.Second)
	l.finish()
	t.Log(l.summary())
	for _, f := range l.lostOnly(t, killed, len(visitors)) {
		if f.took > 5*time.Second {
			t.Errorf("failed after waiting %v: %v", f.took, f.err)
		}
	}
	docker(t, "start", container)
	e.awaitCopies(t, 3)
}

func cutOff(t *testing.T, e *example) {
	container := e.containers("statler")[0]
	name := networkOf(t, container)
	visitors := e.visitors(t, 2)
	l := startLoad(t, visitors...)
	l.awaitBackends(t, 3, 10*time.Second)
	docker(t, "network", "disconnect", name, container)
	cut := time.Now()
	<-time.After(6 * time.Second) // the load runs on for longer than silence may go unnoticed
	l.awaitBackends(t, 2, 5*time.Second)
	l.finish()
	t.Log(l.summary())
	// Row C6 of the fault catalogue: not chosen after 5 s.
	for _, f := range append(l.failed(), l.delayed()...) {
		if f.began.Sub(cut) > 5*time.Second {
			t.Errorf("asked %v after the cut, failed or waited for %v: %v", f.began.Sub(cut), f.took, f.err)
		}
	}
	docker(t, "network", "connect", "--alias", "statler", name, container)
	e.awaitCopies(t, 3)
}

func restarts(t *testing.T, e *example) {
	container := e.containers("edge")[0]
	began := time.Now()
	docker(t, "restart", "-t", "40", container)
	t.Logf("restarted in %v", time.Since(began).Round(time.Millisecond))
	if ca := e.authority("edge"); string(ca) != string(e.ca) {
		t.Error("the certificate authority changed with the restart")
	}
	e.awaitCopies(t, 3)
}

// awaitCopies waits until n copies answer, whatever fails until then.
func (e *example) awaitCopies(t *testing.T, n int) {
	t.Helper()
	l := startLoad(t, e.visitors(t, 1)...)
	began := time.Now()
	l.awaitBackends(t, n, 30*time.Second)
	l.finish()
	t.Logf("%d copies answer after %v", n, time.Since(began).Round(10*time.Millisecond))
}

func networkOf(t *testing.T, container string) string {
	t.Helper()
	var networks map[string]json.RawMessage
	if err := json.Unmarshal([]byte(docker(t, "inspect", "--format", "{{json .NetworkSettings.Networks}}", container)), &networks); err != nil {
		t.Fatal(err)
	}
	for name := range networks {
		return name
	}
	t.Fatalf("%s is on no network", container)
	return ""
}
