//go:build containers

package containers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"wormhole/deploy/rig"
)

const (
	edgeImage  = "wormhole/edge:latest"
	agentImage = "wormhole/agent:latest"
	debian     = "debian:bookworm-slim"
	golang     = "golang:1.26-bookworm"
)

var baseImages = []string{debian, "node:20-bookworm-slim", golang}

func TestMain(m *testing.M) {
	if reason := prepare(); reason != nil {
		if os.Getenv("CI") == "true" {
			fmt.Fprintln(os.Stderr, "container tests cannot run:", reason)
			os.Exit(1)
		}
		fmt.Fprintln(os.Stderr, "container tests skipped:", reason)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// prepare makes sure of the engine, the base images and the project's images.
func prepare() error {
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	defer cancel()
	root, err := rig.Root()
	if err != nil {
		return err
	}
	if _, err := output(ctx, root, "docker", "info", "--format", "{{.ServerVersion}}"); err != nil {
		return fmt.Errorf("no Docker engine: %w", err)
	}
	// A machine of CI reaches no registry; anybody else's pulls what it lacks.
	if os.Getenv("CI") == "true" {
		if _, err := output(ctx, root, "deploy/images/make-base.sh", baseImages...); err != nil {
			return err
		}
	}
	for image, file := range map[string]string{edgeImage: "Dockerfile.edge", agentImage: "Dockerfile.agent"} {
		if _, err := output(ctx, root, "docker", "build", "-q", "-f", file, "-t", image, "."); err != nil {
			return err
		}
	}
	return nil
}

// output runs a command in dir and returns what it printed on stdout.
func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	command := exec.CommandContext(ctx, name, args...)
	command.Dir = dir
	command.Cancel = func() error { return command.Process.Signal(os.Interrupt) }
	command.WaitDelay = 20 * time.Second
	var stderr bytes.Buffer
	command.Stderr = &stderr
	text, err := command.Output()
	if err != nil {
		return string(text), fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, lastBytes(stderr.Bytes(), 2000))
	}
	return strings.TrimSpace(string(text)), nil
}

func lastBytes(b []byte, n int) []byte { return b[max(0, len(b)-n):] }

// docker runs the docker command and fails the test when it fails.
func docker(t *testing.T, args ...string) string {
	t.Helper()
	text, err := output(t.Context(), projectRoot(t), "docker", args...)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// exitOf runs a container to its end and returns its exit status and output.
func exitOf(t *testing.T, args ...string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, "docker", append([]string{"run", "--rm"}, args...)...)
	var both bytes.Buffer
	command.Stdout, command.Stderr = &both, &both
	err := command.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return command.ProcessState.ExitCode(), both.String()
}

// agentOn returns an image made of base and the one line that adds the agent.
func agentOn(t *testing.T, base string) string {
	t.Helper()
	tag := "wormhole/test-" + strings.NewReplacer(":", "-", "/", "-").Replace(base)
	build := exec.CommandContext(t.Context(), "docker", "build", "-q", "-t", tag, "-")
	build.Stdin = strings.NewReader("FROM " + base + "\nCOPY --from=" + agentImage + " /wormhole /wormhole\n")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", tag, err, text)
	}
	return tag
}

// fileOf copies one file out of an image.
func fileOf(t *testing.T, image, path string) []byte {
	t.Helper()
	container := docker(t, "create", image)
	defer docker(t, "rm", "-f", container)
	to := filepath.Join(t.TempDir(), "file")
	docker(t, "cp", container+":"+path, to)
	text, err := os.ReadFile(to)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func projectRoot(t *testing.T) string {
	t.Helper()
	root, err := rig.Root()
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// freePort is a port of loopback that nothing listens on.
func freePort(t *testing.T) string {
	t.Helper()
	addr, err := rig.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// project is one compose project; its containers, networks and volumes are
// removed when the test ends.
type project struct {
	t       *testing.T
	command []string // docker compose, or docker-compose where that is what there is
	file    string
	name    string
	dir     string
	env     []string
}

// newProject is of a file in deploy/compose.
func newProject(t *testing.T, file string, env ...string) *project {
	t.Helper()
	p := &project{t: t, command: []string{"docker", "compose"}, dir: filepath.Join(projectRoot(t), "deploy", "compose"), file: file}
	if exec.Command("docker", "compose", "version").Run() != nil {
		p.command = []string{"docker-compose"}
	}
	p.name = fmt.Sprintf("wormholetest%d", os.Getpid())
	p.env = append(os.Environ(), append(env, "COMPOSE_PROJECT_NAME="+p.name)...)
	t.Cleanup(func() {
		if t.Failed() {
			text, _ := p.try(context.Background(), "logs", "--no-color", "--tail", "40")
			t.Logf("the containers said:\n%s", lastBytes([]byte(text), 12000))
		}
		if _, err := p.try(context.Background(), "down", "-v", "--remove-orphans", "-t", "10"); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	return p
}

func (p *project) run(args ...string) string {
	p.t.Helper()
	text, err := p.try(p.t.Context(), args...)
	if err != nil {
		p.t.Fatal(err)
	}
	return text
}

func (p *project) try(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, p.command[0], slices.Concat(p.command[1:], []string{"-f", p.file}, args)...)
	command.Dir, command.Env = p.dir, p.env
	var stderr bytes.Buffer
	command.Stderr = &stderr
	text, err := command.Output()
	if err != nil {
		return string(text), fmt.Errorf("compose %s: %w\n%s", strings.Join(args, " "), err, lastBytes(stderr.Bytes(), 4000))
	}
	return strings.TrimSpace(string(text)), nil
}

// shell runs a line as a person would type it, in the project's folder.
func (p *project) shell(line string) string {
	p.t.Helper()
	if p.command[0] != "docker" {
		line = "docker() { if [ \"$1\" = compose ]; then shift; command docker-compose \"$@\"; else command docker \"$@\"; fi; }\n" + line
	}
	command := exec.CommandContext(p.t.Context(), "bash", "-c", line)
	command.Dir, command.Env = p.dir, p.env
	var both bytes.Buffer
	command.Stdout, command.Stderr = &both, &both
	if err := command.Run(); err != nil {
		p.t.Fatalf("%s: %v\n%s", line, err, lastBytes(both.Bytes(), 4000))
	}
	return both.String()
}

// containers are the ids of a service's running copies.
func (p *project) containers(service string) []string {
	p.t.Helper()
	return strings.Fields(p.run("ps", "-q", service))
}
