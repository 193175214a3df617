package regions

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"wormhole/edge/edgetest"
	"wormhole/edge/edgetest/oracle"
)

// B16: the loop that judges other edges is blocked with its lock held. The process
// says where everything stands, and ends, so that its service manager starts it
// again; one that was only suspended goes on.
func TestB16AnEdgeThatIsStuckEndsItself(t *testing.T) {
	bin := binaries
	bin.Edge = filepath.Join(t.TempDir(), "edge")
	// The obstacle is in this binary only.
	if out, err := exec.Command("go", "build", "-tags", "obstruct", "-o", bin.Edge, "wormhole/edge").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	edges := bin.StartCluster(t, 1)
	e := edges[0]
	suspended := binaries.JoinCluster(t, nil)
	suspended.Signal(syscall.SIGSTOP)

	began := time.Now()
	if err := os.WriteFile(filepath.Join(e.Dir, "cluster", "obstruct"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	status := e.Exit(t, 30*time.Second)
	took := time.Since(began)
	out := e.Output()
	dumped := strings.Contains(out, "obstruct") && strings.Contains(out, "goroutine ")

	suspended.Signal(syscall.SIGCONT)
	edgetest.Eventually(t, "the one that was suspended goes on", func() bool { return suspended.Refresh() == nil })
	time.Sleep(2 * time.Second)
	goesOn := suspended.Refresh() == nil
	oracle.Row{
		ID: "B16", Done: "the loop that judges other edges is blocked with its lock held; another edge is suspended meanwhile",
		Figure: fmt.Sprintf("exit status %d after %.1f s, stacks shown: %v; the suspended one goes on: %v", status, took.Seconds(), dumped, goesOn),
		Limit:  "stacks and exit within 10 s", OK: status == 70 && dumped && took <= 10*time.Second && goesOn,
	}.Verdict(t)
}
