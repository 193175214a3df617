//go:build containers

package printed_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"wormhole/edge/edgetest"
)

// apps are what the printed Dockerfiles find in their folders. A Dockerfile whose
// app is not here, or whose base image is neither here nor can be made here, is
// listed with the reason.
var apps = map[string]map[string]string{
	"node": {"index.js": `require('http').createServer((q, a) => a.end('You have reached node\n')).listen(8000)`},
	"go": {
		"go.mod": "module app\n\ngo 1.26\n",
		"main.go": `package main

import (
	"io"
	"net/http"
)

func main() {
	_ = http.ListenAndServe("127.0.0.1:8000", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "You have reached go\n")
	}))
}
`,
	},
}

var bases = regexp.MustCompile(`(?m)^FROM (\S+)`)

// TestDockerfilesWorkAsPrinted builds each printed Dockerfile, runs it against an
// edge, asks the app through the edge, and stops it.
func TestDockerfilesWorkAsPrinted(t *testing.T) {
	root, all := blocks(t)
	if _, err := docker(t, root, "version"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	if text, err := docker(t, root, "build", "-q", "-f", "Dockerfile.agent", "-t", "wormhole/agent", "."); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	programs, err := edgetest.Build(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	edge := programs.StartEdge(t)
	built := 0
	for _, b := range all {
		if b.Key != "build" {
			continue
		}
		t.Run(b.Value, func(t *testing.T) {
			app, known := apps[b.Value]
			if !known {
				t.Logf("%s: not built: its base image and packages come from the internet", b)
				return
			}
			for _, base := range bases.FindAllStringSubmatch(b.Text, -1) {
				if base[1] == "scratch" {
					continue
				}
				if _, err := docker(t, root, "image", "inspect", base[1]); err != nil && os.Getenv("CI") == "true" {
					if text, err := command(t, root, "deploy/images/make-base.sh", base[1]); err != nil {
						t.Fatalf("%v\n%s", err, text)
					}
				}
			}
			built++
			runDockerfile(t, programs, edge, b.Value, b.Text, app)
		})
	}
	if built < len(apps) {
		t.Errorf("%d Dockerfiles built, %d apps", built, len(apps))
	}
}

func runDockerfile(t *testing.T, programs edgetest.Binaries, edge *edgetest.EdgeProcess, name, dockerfile string, app map[string]string) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "Dockerfile"), dockerfile)
	for file, text := range app {
		write(t, filepath.Join(dir, file), text)
		if err := os.Chmod(filepath.Join(dir, file), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	image := "wormhole/test-printed-" + name
	if text, err := docker(t, dir, "build", "-t", image, "."); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	host := name + ".localhost"
	token := programs.Token(t, edge.Dir, "--host", host)
	// The edge listens on loopback, so the container shares the machine's network.
	ca := filepath.Join(dir, "ca.pem")
	copyFile(t, edge.Status.CA, ca)
	for _, f := range []string{dir, ca} {
		if err := os.Chmod(f, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	args := []string{"run", "-d", "--network", "host", "-v", ca + ":/ca.pem:ro"}
	for _, v := range edge.AgentEnv(token) {
		if !strings.HasPrefix(v, "WORMHOLE_CA_FILE=") {
			args = append(args, "-e", v)
		}
	}
	id, err := docker(t, dir, append(args, "-e", "WORMHOLE_CA_FILE=/ca.pem", image)...)
	if err != nil {
		t.Fatalf("%v\n%s", err, id)
	}
	id = strings.TrimSpace(id)
	t.Cleanup(func() {
		if t.Failed() {
			text, _ := command(t, dir, "docker", "logs", id)
			t.Log(text)
		}
		_, _ = exec.Command("docker", "rm", "-f", "-v", id).CombinedOutput()
		_, _ = exec.Command("docker", "rmi", "-f", image).CombinedOutput()
	})
	edge.AwaitReady(t, 1)
	response, err := edge.Client(t, "h1").Get("https://" + host + "/")
	if err != nil {
		t.Fatal(err)
	}
	body := make([]byte, 100)
	n, _ := response.Body.Read(body)
	_ = response.Body.Close()
	if got, want := string(body[:n]), fmt.Sprintf("You have reached %s\n", name); got != want {
		t.Errorf("the app says %q, want %q", got, want)
	}
	if text, err := docker(t, dir, "exec", id, "/wormhole", "--health"); err != nil {
		t.Errorf("--health: %v: %s", err, text)
	}
	started := time.Now()
	if text, err := docker(t, dir, "stop", id); err != nil || time.Since(started) > 9500*time.Millisecond {
		t.Errorf("docker stop took %v: %v %s", time.Since(started), err, text)
	}
	edge.AwaitReady(t, 0)
}

func docker(t *testing.T, dir string, args ...string) (string, error) {
	t.Helper()
	return command(t, dir, "docker", args...)
}

func command(t *testing.T, dir, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return string(out), nil
}
