package edgetest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"wormhole/edge/admin"
)

// Binaries are the real programs, built once for a test binary.
type Binaries struct{ Edge, Wormhole, App string }

// Build builds edge, wormhole and the demo app into dir.
func Build(dir string) (Binaries, error) { return BuildIn("", dir) }

// BuildIn is Build with the sources of another tree; empty is the test's own.
func BuildIn(source, dir string) (Binaries, error) {
	b := Binaries{Edge: filepath.Join(dir, "edge"), Wormhole: filepath.Join(dir, "wormhole"), App: filepath.Join(dir, "app")}
	for out, pkg := range map[string]string{b.Edge: "wormhole/edge", b.Wormhole: "wormhole/wormhole", b.App: "wormhole/deploy/demo/app"} {
		cmd := exec.Command("go", "build", "-o", out, pkg)
		cmd.Dir = source
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			return b, fmt.Errorf("build %s: %w\n%s", pkg, err, text)
		}
	}
	return b, nil
}

// Process is a real program started by a test. It is killed when the test ends.
type Process struct {
	Cmd  *exec.Cmd
	done chan struct{}

	mu       sync.Mutex // guards log, children
	log      bytes.Buffer
	children []int // processes below it that outlive its being killed
}

// Start starts a program with the environment given and nothing of the test's own
// but PATH and HOME.
func Start(tb testing.TB, env []string, name string, args ...string) *Process {
	tb.Helper()
	p := &Process{Cmd: exec.Command(name, args...), done: make(chan struct{})}
	p.Cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}, env...)
	p.Cmd.Stdout, p.Cmd.Stderr = p, p
	// What a killed agent leaves behind holds its output open; do not wait for it.
	p.Cmd.WaitDelay = 500 * time.Millisecond
	if err := p.Cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	go func() {
		_ = p.Cmd.Wait()
		close(p.done)
	}()
	tb.Cleanup(func() {
		p.noteChildren()
		_ = p.Cmd.Process.Kill()
		<-p.done
		p.killChildren()
		if tb.Failed() {
			tb.Logf("output of %s (pid %d):\n%s", filepath.Base(name), p.Cmd.Process.Pid, p.Output())
		}
	})
	return p
}

// Write collects the program's output.
func (p *Process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(b)
}

// Output is what the program has printed so far, on both streams.
func (p *Process) Output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// Signal sends a signal to the program alone.
func (p *Process) Signal(s syscall.Signal) {
	if s == syscall.SIGKILL {
		p.noteChildren()
	}
	_ = p.Cmd.Process.Signal(s)
}

// noteChildren remembers the processes below, to end them when the test ends: who
// is killed cannot do it.
func (p *Process) noteChildren() {
	if p.Exited() {
		return
	}
	pids := []int{p.Cmd.Process.Pid}
	for i := 0; i < len(pids); i++ {
		files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pids[i]))
		for _, f := range files {
			text, _ := os.ReadFile(f)
			for _, word := range strings.Fields(string(text)) {
				if pid, err := strconv.Atoi(word); err == nil {
					pids = append(pids, pid)
				}
			}
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.children = append(p.children, pids[1:]...)
}

func (p *Process) killChildren() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, pid := range p.children {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// Exit waits for the program's end and returns its exit status, -1 if a signal
// ended it.
func (p *Process) Exit(tb testing.TB, within time.Duration) int {
	tb.Helper()
	select {
	case <-p.done:
		return p.Cmd.ProcessState.ExitCode()
	case <-time.After(within):
		tb.Fatalf("%s (pid %d) did not end within %s; it printed:\n%s", p.Cmd.Path, p.Cmd.Process.Pid, within, p.Output())
		return 0
	}
}

// Exited reports whether the program has ended.
func (p *Process) Exited() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// EdgeProcess is a real edge.
type EdgeProcess struct {
	*Process
	Dir    string // its data directory
	Status admin.Status

	https atomic.Pointer[string] // Status.Addresses["https"], for clients at work
}

// StartEdge starts `edge serve` on free ports with an authority of its own. args
// come after the defaults.
func (b Binaries) StartEdge(tb testing.TB, args ...string) *EdgeProcess {
	tb.Helper()
	return b.StartEdgeIn(tb, tb.TempDir(), args...)
}

// StartEdgeIn is StartEdge on a data directory that may hold state already.
func (b Binaries) StartEdgeIn(tb testing.TB, dir string, args ...string) *EdgeProcess {
	tb.Helper()
	_ = os.Remove(filepath.Join(dir, admin.AddressFile))
	args = append([]string{
		"serve", "--data-dir", dir, "--hostname", "edge.localhost", "--https", "127.0.0.1:0", "--http", "127.0.0.1:0",
		"--admin", "127.0.0.1:0", "--access-log", "off", "--backend-header", "X-Backend", "--drain-delay", "0s", "--drain-timeout", "5s",
	}, args...)
	e := &EdgeProcess{Process: Start(tb, nil, b.Edge, args...), Dir: dir}
	Eventually(tb, "edge is up", func() bool {
		if e.Exited() {
			tb.Fatalf("edge ended at once:\n%s", e.Output())
		}
		return e.Refresh() == nil
	})
	return e
}

// Refresh reads the edge's status anew.
func (e *EdgeProcess) Refresh() error {
	client, err := admin.Connect(e.Dir, "")
	if err != nil {
		return err
	}
	var status admin.Status
	if err := client.Call(context.Background(), http.MethodGet, "/v1/status", nil, &status); err != nil {
		return err
	}
	e.Status = status
	https := status.Addresses["https"]
	e.https.Store(&https)
	return nil
}

// AwaitReady waits until exactly want backends are ready.
func (e *EdgeProcess) AwaitReady(tb testing.TB, want int) {
	tb.Helper()
	Eventually(tb, fmt.Sprintf("%d ready backends", want), func() bool {
		if e.Refresh() != nil {
			return false
		}
		ready := 0
		for _, s := range e.Status.Backends {
			if s.State == "ready" {
				ready++
			}
		}
		return ready == want
	})
}

// Token issues a token with the real command line, offline.
func (b Binaries) Token(tb testing.TB, dir string, args ...string) string {
	tb.Helper()
	cmd := exec.Command(b.Edge, append([]string{"token", "issue", "--data-dir", dir}, args...)...)
	out, err := cmd.Output()
	if err != nil {
		tb.Fatalf("edge token issue: %v", err)
	}
	return strings.TrimSpace(string(out))
}

// AgentEnv is the environment of an agent that dials the edge.
func (e *EdgeProcess) AgentEnv(token string, more ...string) []string {
	_, port, _ := net.SplitHostPort(e.Status.Addresses["https"])
	return append([]string{
		"WORMHOLE_TOKEN=" + token,
		"WORMHOLE_EDGE=" + net.JoinHostPort("localhost", port),
		"WORMHOLE_CA_FILE=" + e.Status.CA,
	}, more...)
}

// Client asks for any host by dialling the edge, over HTTP/1.1 or, with h2, HTTP/2.
func (e *EdgeProcess) Client(tb testing.TB, proto string) *http.Client {
	tb.Helper()
	return clientFor(tb, proto, e.Status.CA, func() string { return *e.https.Load() })
}

// FreePort is a port that nobody listens on now.
func FreePort(tb testing.TB) string {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// JSON unmarshals or fails the test.
func JSON(tb testing.TB, text []byte, v any) {
	tb.Helper()
	if err := json.Unmarshal(text, v); err != nil {
		tb.Fatalf("%v in %s", err, text)
	}
}
