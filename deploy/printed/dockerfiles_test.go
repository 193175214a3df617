//go:build containers

package printed_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var bases = regexp.MustCompile(`(?m)^FROM (\S+)`)

// stage is a network with an edge on it, whose name is the one that is printed.
type stage struct {
	root    string
	network string
	edge    string // its container
	door    string // where its public door is on this machine
	ca      string // file
	client  *http.Client
}

const edgeName = "edge1.example.com"

// TestDockerfilesWorkAsPrinted builds each printed Dockerfile, runs it against an
// edge, asks the app through the edge, and stops it.
func TestDockerfilesWorkAsPrinted(t *testing.T) {
	root, all := blocks(t)
	s := openStage(t, root)
	built := 0
	for _, b := range all {
		if b.Key != "build" {
			continue
		}
		built++
		t.Run(b.Value, func(t *testing.T) {
			app, known := apps[b.Value]
			if !known {
				t.Fatalf("%s: there is no app to build it with", b)
			}
			dir := t.TempDir()
			image := s.build(t, dir, b.Value, b.Text, app)
			s.try(t, dir, b.Value, func(token string) string {
				return must(t, dir, "docker", "run", "-d", "--network", s.network, "-v", s.ca+":/ca.pem:ro", "-v", token+":/token:ro",
					"-e", "WORMHOLE_EDGE="+edgeName, "-e", "WORMHOLE_TOKEN_FILE=/token", "-e", "WORMHOLE_CA_FILE=/ca.pem", image)
			})
			if b.Value == "node" {
				s.printedRun(t, image)
			}
		})
	}
	if built != len(apps) {
		t.Errorf("%d Dockerfiles are printed, and there are apps for %d", built, len(apps))
	}
}

// printedRun is the scene "container": an image that is called shop, on a machine
// on which edge1.example.com leads to an edge that the image's authorities signed.
func (s *stage) printedRun(t *testing.T, image string) {
	dir := t.TempDir()
	must(t, dir, "docker", "tag", image, "shop")
	t.Cleanup(func() { _, _ = command(t, dir, "docker", "rmi", "shop") })
	_, all := blocks(t)
	for _, b := range all {
		if b.Key != "run" || b.Value != "container" {
			continue
		}
		s.try(t, dir, "node", func(token string) string {
			copyFile(t, token, filepath.Join(dir, "app.token"))
			readable(t, filepath.Join(dir, "app.token"))
			script := fmt.Sprintf(`docker() { [ "$1" = run ] || exit 9; shift; command docker run -d --network %s -v %s:/etc/ssl/certs/ca-certificates.crt:ro "$@"; }
%s`, s.network, s.ca, b.Text)
			return must(t, dir, "bash", "-ec", script)
		})
		return
	}
	t.Error("no block of the scene container")
}

func openStage(t *testing.T, root string) *stage {
	t.Helper()
	needDocker(t, root)
	for image, file := range map[string]string{"wormhole/agent": "Dockerfile.agent", "wormhole/edge": "Dockerfile.edge"} {
		s := &stage{root: root}
		s.bases(t, string(must(t, root, "cat", file)))
		must(t, root, "docker", "build", "-q", "-f", file, "-t", image, ".")
	}
	s := &stage{root: root, network: fmt.Sprintf("wormholeprinted%d", os.Getpid()), ca: filepath.Join(t.TempDir(), "ca.pem")}
	must(t, root, "docker", "network", "create", s.network)
	t.Cleanup(func() { _, _ = command(t, root, "docker", "network", "rm", s.network) })
	s.edge = must(t, root, "docker", "run", "-d", "--network", s.network, "--network-alias", edgeName, "--sysctl", "net.ipv4.ip_unprivileged_port_start=0",
		"-p", "127.0.0.1::443/tcp", "-e", "EDGE_HTTPS=:443", "-e", "EDGE_HOSTNAME="+edgeName, "-e", "EDGE_TLS=internal", "wormhole/edge")
	t.Cleanup(func() { s.remove(t, s.edge) })
	s.door = strings.Fields(must(t, root, "docker", "port", s.edge, "443/tcp"))[0]
	await(t, "the edge serves", func() error { _, err := command(t, root, "docker", "exec", s.edge, "/edge", "status"); return err })
	must(t, root, "docker", "cp", s.edge+":/var/lib/wormhole/ca/ca.pem", s.ca)
	readable(t, s.ca)
	text, err := os.ReadFile(s.ca)
	roots := x509.NewCertPool()
	if err != nil || !roots.AppendCertsFromPEM(text) {
		t.Fatalf("no authority: %v", err)
	}
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, s.door)
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	s.client = &http.Client{Transport: transport, Timeout: 20 * time.Second}
	return s
}

// bases makes the images that a Dockerfile begins with, where none can be pulled.
func (s *stage) bases(t *testing.T, dockerfile string) {
	t.Helper()
	for _, base := range bases.FindAllStringSubmatch(dockerfile, -1) {
		s.base(t, base[1])
	}
}

func (s *stage) base(t *testing.T, image string) {
	t.Helper()
	if image != "scratch" && os.Getenv("CI") == "true" {
		must(t, s.root, "deploy/images/make-base.sh", image)
	}
}

// build makes an image of a printed Dockerfile and an app.
func (s *stage) build(t *testing.T, dir, name, dockerfile string, app map[string]string) string {
	t.Helper()
	s.bases(t, dockerfile)
	write(t, filepath.Join(dir, "Dockerfile"), dockerfile)
	for file, text := range app {
		path := filepath.Join(dir, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, path, text)
		readable(t, path)
	}
	if p, ok := prepared[name]; ok {
		s.base(t, p.image)
		must(t, dir, "docker", "run", "--rm", "--network", "none", "-v", dir+":/app", "-w", "/app", p.image, "sh", "-c", p.command)
	}
	image := "wormhole/test-printed-" + name
	must(t, dir, "docker", "build", "-t", image, ".")
	t.Cleanup(func() { _, _ = command(t, dir, "docker", "rmi", "-f", image) })
	return image
}

// try runs a container, which gets a token's file and gives its id, until its app
// has answered through the edge, and stops it.
func (s *stage) try(t *testing.T, dir, name string, run func(token string) string) {
	t.Helper()
	host := name + ".localhost"
	token := filepath.Join(dir, "token")
	write(t, token, must(t, dir, "docker", "exec", s.edge, "/edge", "token", "issue", "--host", host))
	readable(t, token)
	started := time.Now()
	id := run(token)
	t.Cleanup(func() {
		if t.Failed() {
			text, _ := command(t, dir, "docker", "logs", "--tail", "50", id)
			t.Log(text)
		}
		s.remove(t, id)
	})
	var body []byte
	await(t, "the app answers", func() error {
		response, err := s.client.Get("https://" + host + "/")
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if body, err = io.ReadAll(response.Body); err != nil || response.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s %w", response.Status, body, err)
		}
		return nil
	})
	t.Logf("answered %v after the container's start", time.Since(started).Round(10*time.Millisecond))
	if got, want := string(body), "You have reached "+name+"\n"; got != want {
		t.Errorf("the app says %q, want %q", got, want)
	}
	must(t, dir, "docker", "exec", id, "/wormhole", "--health")
	started = time.Now()
	must(t, dir, "docker", "stop", id)
	if took := time.Since(started); took > 9500*time.Millisecond {
		t.Errorf("docker stop took %v", took)
	}
	// The agent said that it goes, so nobody is sent to it any more.
	await(t, "the edge has no backend", func() error {
		var status struct{ Backends []struct{ Name string } }
		text := must(t, dir, "docker", "exec", s.edge, "/edge", "status", "--json")
		if err := json.Unmarshal([]byte(text), &status); err != nil {
			return err
		}
		if len(status.Backends) > 0 {
			return fmt.Errorf("%v", status.Backends)
		}
		return nil
	})
}

func (s *stage) remove(t *testing.T, container string) {
	_, _ = command(t, s.root, "docker", "rm", "-f", "-v", container)
}

// await tries something for a minute.
func await(t *testing.T, what string, try func() error) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within a minute: %v", what, err)
		}
		<-time.After(200 * time.Millisecond)
	}
}

// readable lets anybody read or run a file: containers have users of their own.
func readable(t *testing.T, path string) {
	t.Helper()
	for _, f := range []string{filepath.Dir(path), path} {
		if err := os.Chmod(f, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func docker(t *testing.T, dir string, args ...string) (string, error) {
	t.Helper()
	return command(t, dir, "docker", args...)
}

// must runs a command that has to succeed and returns its output, trimmed.
func must(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	var stdout bytes.Buffer
	text, err := run(t, dir, &stdout, name, args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return strings.TrimSpace(stdout.String())
}

// command runs one and returns all that it printed.
func command(t *testing.T, dir, name string, args ...string) (string, error) {
	t.Helper()
	return run(t, dir, io.Discard, name, args...)
}

func run(t *testing.T, dir string, stdout io.Writer, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var both bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, io.MultiWriter(&both, stdout), &both
	if err := cmd.Run(); err != nil {
		return both.String(), fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return both.String(), nil
}
