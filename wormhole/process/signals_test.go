//go:build linux

package process

import (
	"bufio"
	"bytes"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestG3EachSignalReachesTheGroupExactlyOnce(t *testing.T) {
	passed := []syscall.Signal{
		syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH, syscall.SIGQUIT, syscall.SIGCONT,
		syscall.SIGALRM, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU, syscall.SIGIO, syscall.SIGABRT, syscall.SIGSEGV,
		37, // a real-time signal
	}
	for _, last := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(last.String(), func(t *testing.T) {
			inBothPlaces(t, func(t *testing.T, play func(string, ...string) *exec.Cmd) {
				cmd := play("agent", self(t), "role=signals", "2")
				out, err := cmd.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				lines := bufio.NewScanner(out)
				// expect reads one line of each of the two, in any order.
				expect := func(what string) {
					t.Helper()
					var got []string
					for range 2 {
						if lines.Scan() {
							got = append(got, lines.Text())
						}
					}
					slices.Sort(got)
					if want := []string{"first " + what, "second " + what}; !slices.Equal(got, want) {
						t.Fatalf("got %q, want %q", got, want)
					}
				}
				expect("ready")
				pid := agentPid(t, cmd)
				for _, sig := range append(slices.Concat(passed, passed), last) {
					if err := syscall.Kill(pid, sig); err != nil {
						t.Fatal(err)
					}
					expect(fmt.Sprint(int(sig)))
				}
				if lines.Scan() {
					t.Errorf("got %q after the last signal, want nothing", lines.Text())
				}
				if got, want := exitCode(t, cmd.Wait()), 42; got != want {
					t.Errorf("got exit code %d, want the app's own, %d", got, want)
				}
			})
		})
	}
}

func TestG5AnAppThatIgnoresTermIsKilledWithItsWholeTree(t *testing.T) {
	const grace = 300 * time.Millisecond
	script := `trap '' TERM
		setsid sh -c 'trap "" TERM; sleep 1000; :' &
		(setsid sleep 1000 &)
		sleep 1000 &
		echo ready
		while :; do sleep 1; done`
	inBothPlaces(t, func(t *testing.T, play func(string, ...string) *exec.Cmd) {
		cmd := play("agent", "-report", "-grace", grace.String(), "sh", "-c", script)
		took, code, report := stopWhenReady(t, cmd, syscall.SIGTERM)
		if code != 137 {
			t.Errorf("got exit code %d, want 137", code)
		}
		if !strings.Contains(report, "left=0\n") {
			t.Errorf("got %q, want no process left", report)
		}
		if took < grace || took > grace+2*time.Second {
			t.Errorf("stopping took %v, want little more than the grace of %v", took, grace)
		}
	})
}

func TestG4AWellBehavedAppIsNotWaitedForLonger(t *testing.T) {
	inBothPlaces(t, func(t *testing.T, play func(string, ...string) *exec.Cmd) {
		// The app ends at once, the rest of its group needs a moment, and a
		// daemon in a session of its own does not keep the agent waiting.
		cmd := play("agent", "-report", "-grace", "1m", "sh", "-c", `
			trap 'exit 3' TERM
			(setsid sleep 1000 &)
			(trap 'sleep 0.2; echo flushed >&2; exit' TERM; echo ready; while :; do sleep 0.01; done) &
			wait`)
		took, code, report := stopWhenReady(t, cmd, syscall.SIGTERM)
		if code != 3 {
			t.Errorf("got exit code %d, want the app's own, 3", code)
		}
		if want := "flushed\nleft=0\n"; !strings.HasSuffix(report, want) {
			t.Errorf("got %q, want %q at its end", report, want)
		}
		if took > 10*time.Second {
			t.Errorf("stopping took %v, want well under the grace of a minute", took)
		}
	})
}

func TestAForeignProcMisleadsNobody(t *testing.T) {
	inBothPlaces(t, func(t *testing.T, play func(string, ...string) *exec.Cmd) {
		// Process 1 of a PID namespace that sees the /proc of another, and so must
		// go by what is new on the network, which is to be its own.
		ownNetwork(t)
		foreign := func(role string, args ...string) *exec.Cmd {
			cmd := play(role, args...)
			cmd.Args = slices.DeleteFunc(cmd.Args, func(arg string) bool { return arg == "--mount-proc" })
			return cmd
		}
		cmd := foreign("agent", "-grace", "100ms", "sh", "-c", `trap '' TERM; echo ready; while :; do sleep 1; done`)
		took, code, _ := stopWhenReady(t, cmd, syscall.SIGTERM)
		if code != 137 || took > killWait {
			t.Errorf("got exit code %d after %v, want 137 soon", code, took)
		}
		cmd = foreign("ports", self(t), "role=listen", "127.0.0.1:0")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := in.Write([]byte("go\n")); err != nil {
			t.Fatal(err)
		}
		out, err := cmd.CombinedOutput()
		lines := strings.Fields(string(out))
		slices.Sort(lines) // address, address, done, found
		if err != nil || len(lines) != 4 || lines[0] != lines[1] {
			t.Errorf("got %q, %v, want the address that was found to be the one listened on", out, err)
		}
	})
}

func TestAStoppedAppIsWokenToEnd(t *testing.T) {
	s := supervise(t)
	app := start(t, s, Command{Path: "sleep", Args: []string{"1000"}})
	if err := app.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the stop to be noticed", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return app.stopped
	})
	if got, want := app.Stop(t.Context(), syscall.SIGTERM).String(), "killed by signal 15 (terminated)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if err := app.Signal(syscall.SIGHUP); err != ErrExited { //nolint:errorlint // returned as it is
		t.Errorf("signal after the end: got %v, want %v", err, ErrExited)
	}
}

func TestCloseKillsWhatRunsAndRefusesMore(t *testing.T) {
	s := supervise(t)
	app := start(t, s, Command{Path: "sleep", Args: []string{"1000"}})
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := app.Wait().ExitCode(), 137; got != want {
		t.Errorf("got exit code %d, want %d", got, want)
	}
	if _, err := s.Start(Command{Path: "true"}); err != ErrClosed { //nolint:errorlint // returned as it is
		t.Errorf("start after close: got %v, want %v", err, ErrClosed)
	}
}

// stopWhenReady runs cmd, signals the agent once the app has printed a line, and
// returns how long the agent then took, its exit code and what is on stderr.
func stopWhenReady(t *testing.T, cmd *exec.Cmd, sig syscall.Signal) (took time.Duration, code int, stderr string) {
	t.Helper()
	var report bytes.Buffer
	cmd.Stderr = &report
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := syscall.Kill(agentPid(t, cmd), sig); err != nil {
		t.Fatal(err)
	}
	code = exitCode(t, cmd.Wait())
	return time.Since(began), code, report.String()
}

// waitFor polls for a condition that nothing announces.
func waitFor(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
