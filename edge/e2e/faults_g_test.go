//go:build linux

package e2e

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"wormhole/edge/edgetest"
	"wormhole/edge/edgetest/oracle"
)

// The rows of G with the real agent around real programs. What can be shown without
// tunnels, such as 500 runs for G1's exit statuses, the package wormhole/process
// shows more thoroughly.

// places are where every row is tried: the agent as process 1 of a PID namespace,
// and as any process, which has to be a subreaper.
var places = []string{"pid1", "plain"}

// launched is a real agent around an app.
type launched struct {
	*edgetest.Process
	place string
}

// launch starts the agent around a command. The environment of the app is that of
// the agent.
func launch(t *testing.T, place string, env []string, args ...string) *launched {
	t.Helper()
	args = append([]string{binaries.Wormhole}, args...)
	if place == "pid1" {
		args = append([]string{"unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "--"}, args...)
		mayUnshare(t)
	}
	return &launched{edgetest.Start(t, env, args[0], args[1:]...), place}
}

// mayUnshare skips where the user may not make PID namespaces.
func mayUnshare(t *testing.T) {
	t.Helper()
	out, err := exec.Command("unshare", "--pid", "--fork", "--mount-proc", "true").CombinedOutput()
	switch {
	case err == nil:
	case os.Getenv("CI") == "true":
		t.Fatalf("PID namespaces are needed: %v: %s", err, out)
	default:
		t.Skipf("PID namespaces are not permitted here: %v: %s", err, out)
	}
}

// children are the pids of a process's children, zombies among them.
func children(pid int) (pids []int) {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		text, _ := os.ReadFile(list)
		for _, field := range strings.Fields(string(text)) {
			if n, err := strconv.Atoi(field); err == nil {
				pids = append(pids, n)
			}
		}
	}
	return pids
}

// state is the letter in /proc that says what a process does, Z of a zombie, empty
// if there is no such process.
func state(pid int) string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, after, _ := bytes.Cut(text, []byte(") "))
	return string(after[:min(1, len(after))])
}

// agent is the agent's own pid.
func (l *launched) agent(t *testing.T) int {
	t.Helper()
	if l.place == "plain" {
		return l.Cmd.Process.Pid
	}
	pid := 0
	edgetest.Eventually(t, "unshare has a child", func() bool {
		for _, child := range children(l.Cmd.Process.Pid) {
			pid = child
		}
		return pid != 0
	})
	return pid
}

// app is the pid of the agent's first child.
func (l *launched) app(t *testing.T) int {
	t.Helper()
	pid := 0
	agent := l.agent(t)
	edgetest.Eventually(t, "the agent has a child", func() bool {
		for _, child := range children(agent) {
			pid = child
		}
		return pid != 0
	})
	return pid
}

// signal sends a signal to the agent, as docker does.
func (l *launched) signal(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(l.agent(t), sig); err != nil {
		t.Fatal(err)
	}
}

// prints waits until the agent or the app has printed a text so many times.
func (l *launched) prints(t *testing.T, text string, times int) {
	t.Helper()
	edgetest.Eventually(t, fmt.Sprintf("output %q", text), func() bool { return strings.Count(l.Output(), text) >= times })
}

// inPlaces runs a row in every place at once and judges the sum.
func inPlaces(t *testing.T, id, done, limit string, row func(t *testing.T, place string) (figure string, ok bool)) {
	t.Helper()
	var mu sync.Mutex
	var figures []string
	good := true
	t.Run("places", func(t *testing.T) {
		for _, place := range places {
			t.Run(place, func(t *testing.T) {
				figure, ok := row(t, place)
				mu.Lock()
				defer mu.Unlock()
				figures = append(figures, place+": "+figure)
				good = good && ok && !t.Failed()
			})
		}
	})
	oracle.Row{ID: id, Done: done, Figure: strings.Join(figures, "; "), Limit: limit, OK: good && len(figures) == len(places)}.Verdict(t)
}

// network is an edge and a token for host.
func network(t *testing.T, args ...string) (*edgetest.EdgeProcess, string) {
	t.Helper()
	e := binaries.StartEdge(t, args...)
	return e, binaries.Token(t, e.Dir, "--host", host)
}

func TestG1OrphansAreReaped(t *testing.T) {
	mostlyWaits(t)
	e, token := network(t)
	inPlaces(t, "G1", "1,000 double-forked orphans while the app runs (500 runs for its status: wormhole/process)", "0 zombies after 1 s, the app's status",
		func(t *testing.T, place string) (string, bool) {
			l := launch(t, place, e.AgentEnv(token), "--", "sh", "-c",
				`i=0; while [ $i -lt 1000 ]; do (: &); i=$((i+1)); done; echo forked; sleep 3; exit 7`)
			l.prints(t, "forked", 1)
			agent := l.agent(t)
			began := time.Now()
			zombies := func() (n int) {
				for _, pid := range children(agent) {
					if state(pid) == "Z" {
						n++
					}
				}
				return n
			}
			left := zombies()
			for left > 0 && time.Since(began) < 2*time.Second {
				time.Sleep(10 * time.Millisecond)
				left = zombies()
			}
			took := time.Since(began)
			code := l.Exit(t, edgetest.Patience)
			return fmt.Sprintf("%d zombies after %s, status %d", left, ms(took), code), left == 0 && took <= scaled(2*time.Second, time.Second) && code == 7
		})
}

func TestG1ASidecarThatIsProcessOneReapsOrphans(t *testing.T) {
	mayUnshare(t)
	e, token := network(t)
	l := launch(t, "pid1", e.AgentEnv(token, "WORMHOLE_ENDPOINT="+answering(t, nil)))
	e.AwaitReady(t, 1)
	agent := l.agent(t)
	// Whatever enters the namespace leaves its orphans to process 1.
	out, err := exec.Command("nsenter", "--target", strconv.Itoa(agent), "--pid", "--mount", "sh", "-c",
		`i=0; while [ $i -lt 50 ]; do (sleep 0.05 &); i=$((i+1)); done`).CombinedOutput()
	if err != nil {
		t.Fatalf("nsenter: %v: %s", err, out)
	}
	edgetest.Eventually(t, "no child is left", func() bool { return len(children(agent)) == 0 })
	l.signal(t, syscall.SIGTERM)
	if code := l.Exit(t, edgetest.Patience); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
}

func TestG2ExitCodes(t *testing.T) {
	e, token := network(t)
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, []byte("#!/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		name string
		args []string
		want int
	}{
		{"exit 0", []string{"sh", "-c", "exit 0"}, 0},
		{"exit 1", []string{"sh", "-c", "exit 1"}, 1},
		{"exit 137", []string{"sh", "-c", "exit 137"}, 137},
		{"TERM", []string{"sh", "-c", "kill -TERM $$"}, 143},
		{"KILL", []string{"sh", "-c", "kill -KILL $$"}, 137},
		{"SEGV", []string{"sh", "-c", "ulimit -c 0; kill -SEGV $$"}, 139},
		{"not found", []string{"no-such-command"}, 127},
		{"not executable", []string{plain}, 126},
	}
	inPlaces(t, "G2", fmt.Sprintf("%d ways to end", len(cases)), "the shell's codes, the agent always exits", func(t *testing.T, place string) (string, bool) {
		wrong := 0
		for _, c := range cases {
			l := launch(t, place, e.AgentEnv(token), append([]string{"--"}, c.args...)...)
			if got := l.Exit(t, edgetest.Patience); got != c.want {
				wrong++
				t.Errorf("%s: exit status %d, want %d", c.name, got, c.want)
			}
		}
		return fmt.Sprintf("%d wrong", wrong), wrong == 0
	})
}

func TestG3SignalsReachTheGroupOnce(t *testing.T) {
	e, token := network(t)
	signals := []struct {
		name string
		sig  syscall.Signal
	}{{"HUP", syscall.SIGHUP}, {"USR1", syscall.SIGUSR1}, {"USR2", syscall.SIGUSR2}, {"WINCH", syscall.SIGWINCH}, {"QUIT", syscall.SIGQUIT}}
	var script strings.Builder
	for _, s := range signals {
		fmt.Fprintf(&script, "trap 'echo $me got %s.' %s\n", s.name, s.name)
	}
	// Two shells of one group. A shell runs its traps between two sleeps, and the
	// signal ends the sleep too. Shells start what is in the background with INT and
	// QUIT ignored for good, so only the first can tell of these.
	body := script.String() + "trap 'echo $me got last.; exit 42' TERM INT\necho $me ready\nwhile :; do sleep 0.05; done\n"
	app := "me=second; (\n" + body + ") &\nme=first\n" + body
	inPlaces(t, "G3", "HUP, USR1, USR2, WINCH, QUIT twice each, then TERM or INT", "each once to each process of the group", func(t *testing.T, place string) (string, bool) {
		wrong, sent := 0, 0
		for _, last := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
			// After INT the second is left, and is killed at the end of that.
			l := launch(t, place, e.AgentEnv(token, "WORMHOLE_DRAIN_TIMEOUT=1s"), "--", "sh", "-c", app)
			l.prints(t, "first ready", 1)
			l.prints(t, "second ready", 1)
			for _, s := range append(signals, signals...) {
				sent++
				before := strings.Count(l.Output(), " got "+s.name+".")
				l.signal(t, s.sig)
				more := 2
				if s.sig == syscall.SIGQUIT {
					more = 1
				}
				l.prints(t, " got "+s.name+".", before+more)
			}
			l.signal(t, last)
			if code := l.Exit(t, edgetest.Patience); code != 42 {
				wrong++
				t.Errorf("exit status %d, want the app's 42", code)
			}
			for _, me := range []string{"first", "second"} {
				check := func(name string, sig syscall.Signal, want int) {
					if me == "second" && (sig == syscall.SIGQUIT || sig == syscall.SIGINT) {
						want = 0
					}
					if n := strings.Count(l.Output(), me+" got "+name+"."); n != want {
						wrong++
						t.Errorf("%s got %s %d times, want %d", me, name, n, want)
					}
				}
				for _, s := range signals {
					check(s.name, s.sig, 2)
				}
				check("last", last, 1)
			}
		}
		return fmt.Sprintf("%d signals, %d wrong", sent, wrong), wrong == 0
	})
}

func TestG4DockerStopUnderLoad(t *testing.T) {
	inPlaces(t, "G4", "TERM under 100 requests/s of 50 ms and a request of 1.5 s in flight, another copy stays", "below 9 s, 0 failed", func(t *testing.T, place string) (string, bool) {
		e, token := network(t)
		start := func(name string) *launched {
			return launch(t, place, e.AgentEnv(token, "WORMHOLE_NAME="+name, "SERVER_NAME="+name, "PORT="+edgetest.FreePort(t)), "--", binaries.App)
		}
		leaving := start("leaving")
		e.AwaitReady(t, 1)
		slow := make(chan string, 1)
		go func() {
			_, body, _, err := ask(e.Client(t, "h1"), "/slow?ms=1500")
			slow <- body + errText(err)
		}()
		edgetest.Eventually(t, "the slow request is in flight", func() bool { b := backend(t, e, "leaving"); return b != nil && b.InFlight == 1 })
		start("staying")
		edgetest.Eventually(t, "both copies are ready", func() bool { b := backend(t, e, "staying"); return b != nil && b.State == "ready" })
		load := edgetest.StartProbe(e.Client(t, "h1"), "https://"+host+"/slow?ms=50", 10*time.Millisecond)
		time.Sleep(500 * time.Millisecond)
		began := time.Now()
		leaving.signal(t, syscall.SIGTERM)
		code := leaving.Exit(t, 10*time.Second) // when docker kills
		took := time.Since(began)
		time.Sleep(300 * time.Millisecond)
		answers := load.Stop()
		answer := <-slow
		whole := strings.TrimSpace(answer) == "You have reached leaving, slowly"
		if !whole {
			t.Errorf("the request in flight got %q", answer)
		}
		if answers.Failed() > 0 {
			t.Error(answers.Faults())
		}
		return fmt.Sprintf("exit %d after %s, %d of %d failed, request in flight whole: %t", code, ms(took), answers.Failed(), len(answers)+1, whole),
			code == 0 && took < 9*time.Second && answers.Failed() == 0 && answers.From("leaving") > 0
	})
}

func TestG5AppIgnoresTerm(t *testing.T) {
	mostlyWaits(t)
	e, token := network(t)
	// A tree of three, one of them in a session of its own.
	app := `trap '' TERM; echo pid $$.
		setsid sh -c 'trap "" TERM; echo pid $$.; while :; do sleep 1; done' &
		sh -c 'trap "" TERM; echo pid $$.; while :; do sleep 1; done'`
	var mu sync.Mutex
	var wg sync.WaitGroup
	figures := map[string]string{}
	good := true
	mayUnshare(t)
	for _, place := range places {
		l := launch(t, place, e.AgentEnv(token), "--", "sh", "-c", app)
		l.prints(t, "pid ", 3)
		agent := l.agent(t)
		tree := members(agent)
		wg.Go(func() { // both at once: each takes the whole drain timeout
			began := time.Now()
			_ = syscall.Kill(agent, syscall.SIGTERM)
			for !l.Exited() && time.Since(began) < 10*time.Second {
				time.Sleep(5 * time.Millisecond)
			}
			took := time.Since(began)
			left := 0
			for _, pid := range tree {
				if s := state(pid); s != "" && s != "Z" {
					left++
				}
			}
			code := -1
			if l.Exited() {
				code = l.Cmd.ProcessState.ExitCode()
			}
			mu.Lock()
			defer mu.Unlock()
			figures[place] = fmt.Sprintf("exit %d after %s, %d of %d processes left", code, ms(took), left, len(tree))
			good = good && code == 137 && took <= 9*time.Second && left == 0 && len(tree) >= 3
		})
	}
	wg.Wait()
	oracle.Row{
		ID: "G5", Done: "TERM to an agent whose app and its children ignore it", Limit: "whole tree killed, 137, 9 s", OK: good,
		Figure: fmt.Sprintf("pid1: %s; plain: %s", figures["pid1"], figures["plain"]),
	}.Verdict(t)
}

// members are all descendants of a process.
func members(pid int) (pids []int) {
	for _, child := range children(pid) {
		pids = append(append(pids, child), members(child)...)
	}
	return pids
}

func TestG6AppCrashesUnderLoad(t *testing.T) {
	inPlaces(t, "G6", "kill -9 of the app under 100 requests/s with 20 more in flight, another copy stays", "withdrawn 200 ms, in flight 502 in 1 s, exit 137, others 0 failed",
		func(t *testing.T, place string) (string, bool) {
			e, token := network(t)
			start := func(name string) *launched {
				return launch(t, place, e.AgentEnv(token, "WORMHOLE_NAME="+name, "SERVER_NAME="+name, "PORT="+edgetest.FreePort(t)), "--", binaries.App)
			}
			crashing := start("crashing")
			e.AwaitReady(t, 1)
			client := e.Client(t, "h1")
			type end struct {
				status int
				at     time.Time
			}
			ends := make(chan end, 20)
			for range cap(ends) {
				go func() { // POST is not sent again
					resp, err := client.Post("https://"+host+"/slow?ms=20000", "text/plain", strings.NewReader("x"))
					if err != nil {
						ends <- end{0, time.Now()}
						return
					}
					_ = resp.Body.Close()
					ends <- end{resp.StatusCode, time.Now()}
				}()
			}
			edgetest.Eventually(t, "requests are in flight", func() bool {
				b := backend(t, e, "crashing")
				return b != nil && b.InFlight == int64(cap(ends))
			})
			start("staying")
			edgetest.Eventually(t, "both copies are ready", func() bool { b := backend(t, e, "staying"); return b != nil && b.State == "ready" })
			load := edgetest.StartProbe(e.Client(t, "h1"), "https://"+host+"/", 10*time.Millisecond)
			time.Sleep(300 * time.Millisecond)
			app := crashing.app(t)
			began := time.Now()
			if err := syscall.Kill(app, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			edgetest.Eventually(t, "the backend is withdrawn", func() bool {
				b := backend(t, e, "crashing")
				return b == nil || b.State == "draining"
			})
			withdrawn := time.Since(began)
			code := crashing.Exit(t, edgetest.Patience)
			var last time.Duration
			bad := 0
			for range cap(ends) {
				one := <-ends
				last = max(last, one.at.Sub(began))
				if one.status != 502 {
					bad++
				}
			}
			answers := load.Stop()
			if answers.Failed() > 0 {
				t.Log(answers.Faults())
			}
			return fmt.Sprintf("withdrawn after %s, %d of %d in flight other than 502, the last after %s, exit %d, load %d of %d failed",
					ms(withdrawn), bad, cap(ends), ms(last), code, answers.Failed(), len(answers)),
				withdrawn <= scaled(time.Second, 200*time.Millisecond) && bad == 0 && last <= scaled(3*time.Second, time.Second) && code == 137 && answers.Failed() == 0
		})
}

func TestG7SlowStart(t *testing.T) {
	mostlyWaits(t)
	delay := scaled(2, 20)
	inPlaces(t, "G7", fmt.Sprintf("the app listens after %d s; another never does, with --start-timeout 1s", delay), "no request before the port answers; then exit non-zero and a clear log",
		func(t *testing.T, place string) (string, bool) {
			e, token := network(t, "--park-timeout", "200ms")
			began := time.Now()
			launch(t, place, e.AgentEnv(token, "SERVER_NAME=slow", "PORT="+edgetest.FreePort(t)), "--", "sh", "-c", fmt.Sprintf("sleep %d; exec %s", delay, binaries.App))
			client := e.Client(t, "h1") // refused by the edge itself until then: no such name, then no backend
			early, asked, first := 0, 0, time.Duration(0)
			for first == 0 && time.Since(began) < edgetest.Patience+time.Duration(delay)*time.Second {
				status, body, _, err := ask(client, "/")
				asked++
				switch {
				case err == nil && status == 200 && strings.Contains(body, "slow"):
					first = time.Since(began)
				case err == nil && status != 503 && status != 404, err != nil && e.Exited():
					early++
					t.Errorf("before the app listened: status %d, %v", status, err)
				}
				time.Sleep(20 * time.Millisecond)
			}
			deaf := launch(t, place, e.AgentEnv(token, "PORT="+edgetest.FreePort(t)), "--start-timeout=1s", "--", "sleep", "60")
			code := deaf.Exit(t, edgetest.Patience)
			said := strings.Contains(deaf.Output(), "not ready in time")
			return fmt.Sprintf("first answer after %s, %d of %d requests reached the app before; never listening: exit %d, said why: %t", ms(first), early, asked-1, code, said),
				early == 0 && first >= time.Duration(delay)*time.Second && code != 0 && code != -1 && said
		})
}

func TestG8AppOutlivesTheNetwork(t *testing.T) {
	mostlyWaits(t)
	cut := scaled(8*time.Second, 10*time.Minute)
	mayUnshare(t)
	e, token := network(t, "--hostname", "")
	relay := edgetest.StartRelay(t, e.Status.Addresses["https"])
	apps := map[string]int{}
	agents := map[string]*launched{}
	for _, place := range places { // both at once
		l := launch(t, place, e.AgentEnv(token, "WORMHOLE_EDGE=localhost:"+relay.Port(), "WORMHOLE_NAME="+place, "SERVER_NAME="+place, "PORT="+edgetest.FreePort(t)), "--", binaries.App)
		agents[place], apps[place] = l, l.app(t)
	}
	e.AwaitReady(t, len(places))
	relay.Refuse(true)
	relay.DropUDP(true)
	relay.Reset()
	edgetest.Eventually(t, "the tunnels are gone", func() bool { return len(backends(t, e)) == 0 })
	time.Sleep(cut)
	untouched := 0
	for _, place := range places {
		if state(apps[place]) != "" && agents[place].app(t) == apps[place] && !agents[place].Exited() {
			untouched++
		}
	}
	if n := len(backends(t, e)); n > 0 {
		t.Errorf("%d tunnels are open through a network that is cut", n)
	}
	relay.Refuse(false)
	relay.DropUDP(false)
	began := time.Now()
	limit := 35 * time.Second // the longest wait of the back-off, and some
	back := 0
	for back < len(places) && time.Since(began) < limit {
		back = 0
		for _, b := range backends(t, e) {
			if b.State == "ready" {
				back++
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	took := time.Since(began)
	oracle.Row{
		ID: "G8", Done: fmt.Sprintf("all edges cut for %s, as pid1 and as plain process", cut),
		Figure: fmt.Sprintf("%d of %d apps untouched, %d of %d tunnels back by themselves after %s", untouched, len(places), back, len(places), ms(took)),
		Limit:  "app untouched, tunnel back by itself in 35 s",
		OK:     untouched == len(places) && back == len(places),
	}.Verdict(t)
}

func TestG9StreamsPassUntouched(t *testing.T) {
	size := scaled[int64](64<<20, 1<<30)
	e, token := network(t)
	want := sha256.New()
	_, _ = io.Copy(want, io.LimitReader(&patterned{n: 1 << 20}, 1<<20))
	inPlaces(t, "G9", fmt.Sprintf("%s through the app's stdin and stdout, its environment compared (terminals and latency: wormhole/process)", mib(size)), "byte-identical, as fast as a direct run", func(t *testing.T, place string) (string, bool) {
		run := func(args ...string) (sum string, took time.Duration, stderr string) {
			cmd := exec.Command(args[0], args[1:]...)
			cmd.Env = append(e.AgentEnv(token), "PATH="+os.Getenv("PATH"), "ODD=a=b c", "WORMHOLE_LOG_LEVEL=error")
			block := bytes.Repeat([]byte("a line of a log, of some length, with a number: 0123456789\n"), 1024)
			cmd.Stdin = io.LimitReader(repeated{block}, size)
			hash := sha256.New()
			var said bytes.Buffer
			cmd.Stdout, cmd.Stderr = hash, &said
			began := time.Now()
			if err := cmd.Run(); err != nil {
				t.Errorf("%v: %v: %s", args, err, said.String())
			}
			return fmt.Sprintf("%x", hash.Sum(nil)), time.Since(began), said.String()
		}
		script := `cat; echo ODD is "$ODD", token is "$WORMHOLE_TOKEN" >&2`
		direct, alone, _ := run("env", "-u", "WORMHOLE_TOKEN", "sh", "-c", script)
		args := []string{binaries.Wormhole, "--", "sh", "-c", script}
		if place == "pid1" {
			mayUnshare(t)
			args = append([]string{"unshare", "--pid", "--fork", "--mount-proc", "--"}, args...)
		}
		wrapped, took, said := run(args...)
		same := direct == wrapped && strings.Contains(said, "ODD is a=b c, token is \n")
		if !same {
			t.Errorf("stdout %s, want %s; stderr %q", wrapped, direct, said)
		}
		return fmt.Sprintf("identical: %t, %s, directly %s", same, ms(took), ms(alone)), same && took <= 3*alone+2*time.Second
	})
}

// repeated is a block over and over.
type repeated struct{ block []byte }

func (r repeated) Read(b []byte) (int, error) { return copy(b, r.block), nil }

func TestG10BareContainer(t *testing.T) {
	mayUnshare(t)
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("making a root of its own needs root")
		}
		t.Skip("making a root of its own needs root")
	}
	e, token := network(t)
	root := t.TempDir()
	for from, to := range map[string]string{binaries.Wormhole: "wormhole", binaries.App: "app", e.Status.CA: "ca.pem"} {
		text, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, to), text, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "etc/hosts"), []byte("127.0.0.1 localhost\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for dir := root; dir != "/" && dir != os.TempDir(); dir = filepath.Dir(dir) { // the tests' folders are private
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// No /proc, no /tmp, no /dev; nothing can be written; no privileges.
	script := `mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec setpriv --no-new-privs chroot --userspec=65532:65532 --groups= "$0" /wormhole -- /app`
	env := e.AgentEnv(token, "WORMHOLE_CA_FILE=/ca.pem", "SERVER_NAME=bare", "PORT="+edgetest.FreePort(t))
	l := &launched{edgetest.Start(t, env, "unshare", "--pid", "--mount", "--fork", "--kill-child", "--", "sh", "-c", script, root), "pid1"}
	e.AwaitReady(t, 1)
	status, body, _, err := ask(e.Client(t, "h1"), "/")
	agent := l.agent(t)
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", agent))
	bare := true
	for _, want := range []string{"Uid:\t65532\t65532\t65532\t65532", "CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1"} {
		if !strings.Contains(string(text), want) {
			bare = false
			t.Errorf("the agent's status lacks %q:\n%s", want, text)
		}
	}
	l.signal(t, syscall.SIGTERM)
	code := l.Exit(t, edgetest.Patience)
	oracle.Row{
		ID: "G10", Done: "read-only root with two programs and a CA in it, no /proc, /tmp or /dev, uid 65532, no capabilities, no new privileges",
		Figure: fmt.Sprintf("answers %d %q, exit %d after TERM", status, strings.TrimSpace(body), code), Limit: "works",
		OK: bare && err == nil && status == 200 && strings.Contains(body, "bare") && code == 0,
	}.Verdict(t)
}
