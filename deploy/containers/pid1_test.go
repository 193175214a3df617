//go:build containers

package containers

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// alone is an agent without an edge to reach: it keeps dialing and the app lives
// on. What these tests look at is the agent as PID 1 of a container.
func alone(t *testing.T) []string {
	t.Helper()
	code, token := exitOf(t, "--network", "none", edgeImage, "token", "issue", "--host", "app.localhost")
	if code != 0 {
		t.Fatalf("token issue ended with %d: %s", code, token)
	}
	return []string{
		"--network", "none", "-e", "WORMHOLE_TOKEN=" + strings.TrimSpace(token),
		"-e", "WORMHOLE_EDGE=127.0.0.1:9", "-e", "PORT=8000",
	}
}

func TestG2ExitCodesAsPID1(t *testing.T) {
	image, environment := agentOn(t, debian), alone(t)
	for _, c := range []struct {
		name    string
		command []string
		want    int
	}{
		{"success", []string{"true"}, 0},
		{"failure", []string{"sh", "-c", "exit 1"}, 1},
		{"any status", []string{"sh", "-c", "exit 137"}, 137},
		{"killed by TERM", []string{"sh", "-c", "kill -TERM $$; sleep 5"}, 143},
		{"killed by KILL", []string{"sh", "-c", "kill -KILL $$; sleep 5"}, 137},
		{"killed by SEGV", []string{"sh", "-c", "kill -SEGV $$; sleep 5"}, 139},
		{"not found", []string{"/no/such/program"}, 127},
		{"not executable", []string{"/etc/passwd"}, 126},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := slices.Concat(environment, []string{image, "/wormhole"}, c.command)
			if got, text := exitOf(t, args...); got != c.want {
				t.Errorf("got %d, want %d\n%s", got, c.want, text)
			}
		})
	}
}

func TestG1OrphansAreReapedByPID1(t *testing.T) {
	image := agentOn(t, debian)
	// Orphans whose parent is gone at once; then count zombies among all processes.
	script := `i=0; while [ $i -lt 300 ]; do (sleep 0.01 & ); i=$((i+1)); done; sleep 1.5
		echo zombies: $(cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z ')
		echo orphans: $i; exit 7`
	args := append(alone(t), image, "/wormhole", "sh", "-c", script)
	code, text := exitOf(t, args...)
	if code != 7 || !strings.Contains(text, "zombies: 0\n") || !strings.Contains(text, "orphans: 300\n") {
		t.Errorf("exit status %d, want 7 and no zombies of 300 orphans:\n%s", code, text)
	}
}

func TestG5AnAppThatIgnoresTermIsKilledInTime(t *testing.T) {
	image := agentOn(t, debian)
	args := append(append([]string{"run", "-d"}, alone(t)...), image, "/wormhole", "sh", "-c",
		`trap '' TERM; echo deaf; while :; do sleep 1; done`)
	container := docker(t, args...)
	defer docker(t, "rm", "-f", container)
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(docker(t, "logs", container), "deaf"); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the app does not run after 10 s")
		}
	}
	began := time.Now()
	docker(t, "stop", "-t", "10", container)
	took := time.Since(began)
	code, err := strconv.Atoi(docker(t, "inspect", "--format", "{{.State.ExitCode}}", container))
	if err != nil {
		t.Fatal(err)
	}
	// Docker's own KILL after 10 s would give 137 as well, so time tells them apart.
	if code != 137 || took > 9500*time.Millisecond {
		t.Errorf("ended with %d after %v, want 137 by the agent within 9.5 s", code, took)
	}
}
