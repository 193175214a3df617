//go:build containers

package printed_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// plainDocker is put before printed lines where compose is a program of its own.
const plainDocker = `docker() { if [ "$1" = compose ]; then shift; command docker-compose "$@"; else command docker "$@"; fi; }
`

// dockerShell begins every script with printed lines that use Docker.
func dockerShell() string {
	script := "set -euo pipefail\n"
	if exec.Command("docker", "compose", "version").Run() != nil {
		script += plainDocker
	}
	return script
}

// TestComposeCommandsWorkAsPrinted is the scene "compose": a fresh checkout on a
// machine with Docker. Two commands, and two containers have answered.
func TestComposeCommandsWorkAsPrinted(t *testing.T) {
	root, all := blocks(t)
	needDocker(t, root)
	dir := checkout(t, root)
	script, lines := dockerShell(), 0
	for _, b := range all {
		if b.Key == "run" && b.Value == "compose" {
			script += b.Text
			lines += strings.Count(b.Text, "\n")
		}
	}
	if lines != 2 {
		t.Errorf("%d commands from a clone to an answer, want 2", lines)
	}
	write(t, filepath.Join(dir, "script"), script)
	project := fmt.Sprintf("COMPOSE_PROJECT_NAME=wormholeprinted%d", os.Getpid())
	t.Cleanup(func() {
		down := exec.Command("bash", "-c", dockerShell()+"docker compose -f deploy/compose/compose.yaml down -v -t 10")
		down.Dir, down.Env = dir, append(os.Environ(), project)
		if text, err := down.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, text)
		}
	})
	cmd := exec.CommandContext(t.Context(), "bash", "script")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), project)
	said, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	names := map[string]int{}
	for line := range strings.Lines(string(said)) {
		if name, ok := strings.CutPrefix(line, "You have reached "); ok {
			names[strings.TrimSpace(name)]++
		}
	}
	t.Logf("answered: %v", names)
	if len(names) < 2 {
		t.Errorf("%d containers answered, want two and more: %s", len(names), said)
	}
}

func needDocker(t *testing.T, root string) {
	t.Helper()
	if _, err := docker(t, root, "version"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}
