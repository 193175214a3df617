//go:build containers

package containers

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"wormhole/deploy/rig"
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
	for _, part := range []struct {
		name string
		run  func(*testing.T, *example)
	}{
		{"BothNeighboursAnswerAndTheHeaderNamesThem", bothAnswer},
		{"ScalesFromOneToTenToThreeWithoutAFailedRequest", scales},
		{"DockerStopLosesNoRequestAndEndsInTime", stops},
		{"DockerKillIsForgottenWithinASecond", kills},
		{"AnAgentCutOffLeavesAndReturns", cutOff},
		{"AnEdgeThatRestartsFindsItsAgentsAgain", restarts},
	} {
		if !t.Run(part.name, func(t *testing.T) { part.run(t, e) }) {
			t.Fatal("the parts that follow would prove nothing")
		}
	}
}

func openExample(t *testing.T) *example {
	t.Helper()
	https, err := rig.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	http, err := rig.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	_, httpsPort, _ := net.SplitHostPort(https)
	_, httpPort, _ := net.SplitHostPort(http)
	p := newProject(t, filepath.Join(projectRoot(t), "deploy", "compose"), "HTTPS_PORT="+httpsPort, "HTTP_PORT="+httpPort)
	e := &example{project: p, port: httpsPort}
	p.run("build", "-q")
	p.run("up", "-d")
	e.ca = e.authority()
	l := startLoad(t, e.visitors(t, 2)...)
	l.awaitBackends(t, 3, 30*time.Second)
	l.finish()
	return e
}

// authority is the edge's certificate authority, taken as the example says.
func (e *example) authority() []byte {
	e.t.Helper()
	file := filepath.Join(e.t.TempDir(), "ca.pem")
	docker(e.t, "cp", e.containers("edge")[0]+":/var/lib/wormhole/ca/ca.pem", file)
	text, err := os.ReadFile(file)
	if err != nil {
		e.t.Fatal(err)
	}
	return text
}

// visitors are n for each of HTTP/1.1 and HTTP/2.
func (e *example) visitors(t *testing.T, n int) []*visitor {
	var all []*visitor
	for range n {
		all = append(all,
			newVisitor(t, e.ca, exampleHost, e.port, false),
			newVisitor(t, e.ca, exampleHost, e.port, true))
	}
	return all
}

// scale asks for n copies of the app service beside statler and waldorf.
func (e *example) scale(n string) {
	e.run("up", "-d", "--no-deps", "--no-recreate", "--scale", "app="+n, "app")
}

func bothAnswer(t *testing.T, e *example) {
	l := startLoad(t, e.visitors(t, 1)...)
	l.awaitBackends(t, 3, 10*time.Second)
	l.finish()
	if len(l.failed()) > 0 {
		t.Error(l.summary())
	}
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
	if n := len(l.failed()); n > 0 {
		t.Errorf("%d requests failed while the app was scaled", n)
	}
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
	if n := len(l.failed()); n > 0 {
		t.Errorf("%d requests failed while a copy was stopped", n)
	}
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
	// What a killed copy was answering may be lost, one request a visitor; nothing
	// may be lost after.
	failures := l.failed()
	if len(failures) > len(visitors) {
		t.Errorf("%d requests failed, want at most the %d in flight", len(failures), len(visitors))
	}
	for _, f := range failures {
		if f.began.Sub(killed) > time.Second || f.took > 5*time.Second {
			t.Errorf("failed %v after the kill, after waiting %v: %v", f.began.Sub(killed), f.took, f.err)
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
	if ca := e.authority(); string(ca) != string(e.ca) {
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

// printedCommand finds the lines in compose.yaml that a person is told to type.
var printedCommand = regexp.MustCompile(`(?m)^#   (\S.*)$`)

// TestCommandsPrintedInTheComposeFileWork types them one after the other.
func TestCommandsPrintedInTheComposeFileWork(t *testing.T) {
	dir := filepath.Join(projectRoot(t), "deploy", "compose")
	text, err := os.ReadFile(filepath.Join(dir, "compose.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	matches := printedCommand.FindAllStringSubmatch(string(text), -1)
	if len(matches) < 3 {
		t.Fatalf("found %d commands in compose.yaml", len(matches))
	}
	for _, port := range []string{"8443", "8080"} {
		listener, err := net.Listen("tcp", "127.0.0.1:"+port)
		if err != nil {
			t.Fatalf("the commands need port %s of this machine: %v", port, err)
		}
		_ = listener.Close()
	}
	p := newProject(t, dir)
	t.Cleanup(func() { _ = os.Remove(filepath.Join(dir, "ca.pem")) })
	var said []string
	for _, match := range matches {
		t.Log(match[1])
		said = append(said, p.shell(match[1]))
	}
	last := said[len(said)-1]
	if !strings.Contains(last, "You have reached") || !slices.ContainsFunc(strings.Split(last, "\n"), func(line string) bool {
		return strings.HasPrefix(strings.ToLower(line), "x-internal-service: ")
	}) {
		t.Errorf("the last command printed %q", last)
	}
}
