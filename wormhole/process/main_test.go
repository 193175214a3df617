//go:build linux

package process

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// The first thread stays with TestMain: /proc/self/net shows its network, and tests
// that leave for one of their own (ownNetwork) must not do so on it.
func init() { runtime.LockOSThread() }

// TestMain lets the test binary play other programs: its first argument may
// name a role.
func TestMain(m *testing.M) {
	roles := map[string]func(args []string){
		"role=agent":    playAgent,
		"role=statuses": playStatuses,
		"role=orphans":  playOrphans,
		"role=signals":  playSignals,
		"role=listen":   playListen,
		"role=ports":    playPorts,
		"role=weak":     playWeak,
	}
	if len(os.Args) > 1 {
		if play := roles[os.Args[1]]; play != nil {
			play(os.Args[2:])
			os.Exit(0)
		}
	}
	// Roles built with the race detector need not linger for a second at exit.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE")); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

func fatal(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "role:", err)
		os.Exit(99)
	}
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// playAgent is the least agent: [-grace D] [-report] CMD ARGS... With -report it
// says on stderr how many processes it leaves behind.
func playAgent(args []string) {
	flags := flag.NewFlagSet("agent", flag.ExitOnError)
	grace := flags.Duration("grace", 5*time.Second, "")
	report := flags.Bool("report", false, "")
	fatal(flags.Parse(args))
	s := Supervise(discard())
	app, err := s.Start(Command{Path: flags.Arg(0), Args: flags.Args()[1:]})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(ExitCode(err))
	}
	select {
	case <-app.Done():
	case sig := <-s.Lifecycle():
		ctx, cancel := context.WithTimeout(context.Background(), *grace)
		app.Stop(ctx, sig)
		cancel()
	}
	status := app.Wait()
	if *report {
		fmt.Fprintf(os.Stderr, "left=%d\n", len(descendants(os.Getpid())))
	}
	fatal(s.Close())
	os.Exit(status.ExitCode())
}

// playStatuses runs many short apps beside a storm of orphans and prints how
// many of their endings were not the expected ones.
func playStatuses(args []string) {
	var runs int
	_, err := fmt.Sscan(args[0], &runs)
	fatal(err)
	s := Supervise(discard())
	storm, err := s.Start(Command{Path: "sh", Args: []string{"-c", "while :; do (: &); done"}})
	fatal(err)
	wrong := 0
	for i := range runs {
		script, want := "exit $0", i%256
		switch i % 50 {
		case 10:
			script, want = "kill -9 $$", 137
		case 20:
			script, want = "kill -11 $$", 139
		case 30:
			script, want = "kill -15 $$", 143
		}
		app, err := s.Start(Command{Path: "sh", Args: []string{"-c", script, fmt.Sprint(want)}})
		fatal(err)
		if got := app.Wait().ExitCode(); got != want {
			wrong++
		}
	}
	if got := storm.Kill().ExitCode(); got != 137 {
		wrong++
	}
	fatal(s.Close())
	fmt.Println("wrong", wrong)
}

// playOrphans runs an app that leaves double-forked orphans, and prints the
// app's exit code and the zombies there are a second later at the latest.
func playOrphans(args []string) {
	s := Supervise(discard())
	app, err := s.Start(Command{Path: "sh", Args: []string{"-c", `i=0; while [ $i -lt $0 ]; do (: &); i=$((i+1)); done; exit 7`, args[0]}})
	fatal(err)
	status := app.Wait()
	zombies := -1
	for deadline := time.Now().Add(time.Second); zombies != 0 && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		zombies = len(descendants(os.Getpid()))
	}
	fatal(s.Close())
	fmt.Println("code", status.ExitCode(), "zombies", zombies)
}

// playSignals prints every signal it gets and ends by TERM or INT. Asked to
// ("2"), it first starts a second one in its group.
func playSignals(args []string) {
	all := make(chan os.Signal, 100)
	signal.Notify(all)
	signal.Reset(syscall.SIGURG, syscall.SIGCHLD, syscall.SIGPIPE)
	name := "first"
	if len(args) > 0 && args[0] == "2" {
		second := exec.Command(os.Args[0], "role=signals", "second")
		second.Stdout, second.Stderr = os.Stdout, os.Stderr
		fatal(second.Start())
	} else {
		name = "second"
	}
	fmt.Println(name, "ready")
	for sig := range all {
		number := int(sig.(syscall.Signal))
		fmt.Println(name, number)
		if sig == syscall.SIGTERM || sig == syscall.SIGINT {
			if name == "first" {
				os.Exit(42)
			}
			return
		}
	}
}

// playListen waits for a line on stdin, listens on each address, prints what it
// got and then waits for the end of stdin. "hide" hides its descriptors.
func playListen(args []string) {
	if args[0] == "hide" {
		fatal(unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0))
		args = args[1:]
	}
	in := bufio.NewReader(os.Stdin)
	_, err := in.ReadString('\n')
	fatal(err)
	for _, addr := range args {
		network := "tcp4"
		if strings.HasPrefix(addr, "[") {
			network = "tcp6"
		}
		l, err := net.Listen(network, addr)
		fatal(err)
		fmt.Println(l.Addr())
	}
	fmt.Println("done")
	_, _ = io.Copy(io.Discard, in)
}

// playPorts prints where the app listens, once it does. It has a listener of its
// own, which is not the app's.
func playPorts(args []string) {
	s := Supervise(discard())
	app, err := s.Start(Command{Path: args[0], Args: args[1:]})
	fatal(err)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	fatal(err)
	defer l.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	addr, err := app.WatchPort(ctx)
	fatal(err)
	fmt.Println("found", addr)
	app.Kill()
	fatal(s.Close())
}

// playWeak becomes another role without the right to look into processes that
// hide from it, as in a container.
func playWeak(args []string) {
	runtime.LockOSThread()
	if os.Getuid() == 0 {
		_ = unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_PTRACE, 0, 0, 0)
	}
	fatal(unix.Exec(os.Args[0], append([]string{os.Args[0]}, args...), os.Environ()))
}

// unshareWorks is set by the first test that asks: 1 yes, 2 no.
var unshareWorks atomic.Int32

// inBothPlaces runs test with a function that makes a role run as a plain
// process, with a subreaper, and as process 1 of a PID namespace.
func inBothPlaces(t *testing.T, test func(t *testing.T, play func(role string, args ...string) *exec.Cmd)) {
	t.Run("subreaper", func(t *testing.T) {
		test(t, func(role string, args ...string) *exec.Cmd {
			return exec.Command(self(t), append([]string{"role=" + role}, args...)...)
		})
	})
	t.Run("pid1", func(t *testing.T) {
		unshare := []string{"--pid", "--fork", "--mount-proc", "--kill-child"}
		if unshareWorks.Load() == 0 {
			if out, err := exec.Command("unshare", append(unshare, "true")...).CombinedOutput(); err != nil {
				t.Logf("unshare: %v: %s", err, out)
				unshareWorks.Store(2)
			} else {
				unshareWorks.Store(1)
			}
		}
		if unshareWorks.Load() == 2 {
			if os.Getenv("CI") == "true" {
				t.Fatal("PID namespaces are not permitted, and CI=true wants every test")
			}
			t.Skip("PID namespaces are not permitted here")
		}
		test(t, func(role string, args ...string) *exec.Cmd {
			return exec.Command("unshare", append(unshare, append([]string{self(t), "role=" + role}, args...)...)...)
		})
	})
}

func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// agentPid returns the pid of the role that cmd runs, which is below unshare.
func agentPid(t *testing.T, cmd *exec.Cmd) int {
	t.Helper()
	if cmd.Args[0] != "unshare" {
		return cmd.Process.Pid
	}
	children := appendChildren(nil, cmd.Process.Pid)
	if len(children) != 1 {
		t.Fatalf("children of unshare: got %v, want one", children)
	}
	return children[0]
}

func exitCode(t *testing.T, err error) int {
	t.Helper()
	if err == nil {
		return 0
	}
	exit, ok := err.(*exec.ExitError) //nolint:errorlint // it is what Run returns
	if !ok {
		t.Fatal(err)
	}
	return exit.ExitCode()
}

// supervise opens a Supervisor in the test's own process.
func supervise(t *testing.T) *Supervisor {
	t.Helper()
	s := Supervise(slog.New(slog.NewTextHandler(t.Output(), nil)))
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func start(t *testing.T, s *Supervisor, cmd Command) *Process {
	t.Helper()
	app, err := s.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	return app
}
