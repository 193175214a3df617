//go:build linux

package process

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// runs is how often statuses are looked for; PROCESS_TEST_RUNS makes it more.
func runs() string {
	if n := os.Getenv("PROCESS_TEST_RUNS"); n != "" {
		return n
	}
	return "500"
}

func TestG1OrphansAreReapedAndTheAppsCodeIsKept(t *testing.T) {
	inBothPlaces(t, func(t *testing.T, play func(string, ...string) *exec.Cmd) {
		out, err := play("orphans", "1000").CombinedOutput()
		if got, want := string(out), "code 7 zombies 0\n"; err != nil || got != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	})
}

func TestG1NoStatusIsLostIn500Runs(t *testing.T) {
	inBothPlaces(t, func(t *testing.T, play func(string, ...string) *exec.Cmd) {
		out, err := play("statuses", runs()).CombinedOutput()
		if got, want := string(out), "wrong 0\n"; err != nil || got != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	})
}

func TestG2TheExitCodeIsTheShells(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	script := filepath.Join(dir, "script")
	noise := filepath.Join(dir, "noise")
	for name, file := range map[string]struct {
		text string
		mode os.FileMode
	}{
		plain:  {"#!/bin/sh\n", 0o644},
		script: {"#!/no/such/shell\n", 0o755},
		noise:  {"neither a program nor a script\n", 0o755},
	} {
		if err := os.WriteFile(name, []byte(file.text), file.mode); err != nil {
			t.Fatal(err)
		}
	}
	inBothPlaces(t, func(t *testing.T, play func(string, ...string) *exec.Cmd) {
		for _, c := range []struct {
			name string
			cmd  []string
			want int
		}{
			{"exit 0", []string{"sh", "-c", "exit 0"}, 0},
			{"exit 1", []string{"sh", "-c", "exit 1"}, 1},
			{"exit 137", []string{"sh", "-c", "exit 137"}, 137},
			{"TERM", []string{"sh", "-c", "kill -TERM $$"}, 143},
			{"KILL", []string{"sh", "-c", "kill -KILL $$"}, 137},
			{"SEGV", []string{"sh", "-c", "ulimit -c 0; kill -SEGV $$"}, 139},
			{"name not found", []string{"no-such-command"}, 127},
			{"file not found", []string{filepath.Join(dir, "missing")}, 127},
			{"below a file", []string{filepath.Join(plain, "missing")}, 127},
			{"interpreter not found", []string{script}, 127},
			{"no permission", []string{plain}, 126},
			{"directory", []string{dir}, 126},
			{"not a program", []string{noise}, 126},
		} {
			t.Run(c.name, func(t *testing.T) {
				out, err := play("agent", c.cmd...).CombinedOutput()
				if got := exitCode(t, err); got != c.want {
					t.Errorf("got exit code %d, want %d; output %q", got, c.want, out)
				}
			})
		}
	})
}
