package systemd_test

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"wormhole/edge/edgetest"
)

// manager is what systemd is to a unit of Type=notify.
type manager struct {
	t    *testing.T
	conn *net.UnixConn
}

func newManager(t *testing.T) (*manager, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &manager{t, conn}, "NOTIFY_SOCKET=" + path
}

// hears waits for a notice with a line that begins so, and returns its rest.
func (m *manager) hears(line string) string {
	m.t.Helper()
	_ = m.conn.SetReadDeadline(time.Now().Add(edgetest.Patience))
	for buf := make([]byte, 4096); ; {
		n, err := m.conn.Read(buf)
		if err != nil {
			m.t.Fatalf("the manager does not hear %s: %v", line, err)
		}
		for got := range strings.Lines(string(buf[:n])) {
			if rest, ok := strings.CutPrefix(strings.TrimSuffix(got, "\n"), line); ok {
				return rest
			}
		}
	}
}

// The manager hears READY when the doors are open, the successor's process id after
// an upgrade (what `systemctl reload` asks for), and STOPPING at the end.
func TestEdgeTellsSystemdOfStartUpgradeAndStop(t *testing.T) {
	dir := t.TempDir()
	programs, err := edgetest.Build(dir)
	if err != nil {
		t.Fatal(err)
	}
	systemd, env := newManager(t)
	data := filepath.Join(dir, "data")
	log, err := os.Create(filepath.Join(dir, "log")) // a file, which outlives the first process
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	edge := exec.Command(programs.Edge, "serve", "--data-dir", data, "--hostname", "edge.localhost",
		"--https", "127.0.0.1:0", "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--drain-delay", "0s", "--drain-timeout", "20s")
	edge.Env, edge.Stderr = append(os.Environ(), env), log
	if err := edge.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = edge.Process.Kill()
		_ = edge.Wait()
		if text, _ := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("%s", text)
		}
	})
	systemd.hears("READY=1")
	_ = edge.Process.Signal(syscall.SIGUSR2)
	successor, err := strconv.Atoi(systemd.hears("MAINPID="))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(successor, syscall.SIGKILL) })
	if err := edge.Wait(); err != nil {
		t.Errorf("the first process ended with %v", err)
	}
	if err := syscall.Kill(successor, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	systemd.hears("STOPPING=1")
}
