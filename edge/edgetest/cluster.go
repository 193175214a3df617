package edgetest

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// ClusterEdge is one real edge of a cluster. It keeps its ports when it restarts.
type ClusterEdge struct {
	*EdgeProcess
	Door string // its public door, localhost:port

	bin  Binaries
	args []string
}

// StartCluster starts n real edges that joined one network, in the regions r1, r2…
// The first hosts the store. All have one authority: Status.CA of the first.
func (b Binaries) StartCluster(tb testing.TB, n int, args ...string) []*ClusterEdge {
	tb.Helper()
	var edges []*ClusterEdge
	for range n {
		edges = append(edges, b.JoinCluster(tb, edges, args...))
	}
	for _, e := range edges {
		e.AwaitPeers(tb, n-1)
	}
	return edges
}

// JoinCluster starts one more edge, the first if there is none.
func (b Binaries) JoinCluster(tb testing.TB, members []*ClusterEdge, args ...string) *ClusterEdge {
	tb.Helper()
	return b.JoinClusterIn(tb, tb.TempDir(), members, args...)
}

// JoinClusterIn is JoinCluster with a data directory of the caller's.
func (b Binaries) JoinClusterIn(tb testing.TB, dir string, members []*ClusterEdge, args ...string) *ClusterEdge {
	tb.Helper()
	port, mesh := KeptPort(tb), KeptPort(tb)
	e := &ClusterEdge{bin: b, Door: "localhost:" + port}
	e.args = append([]string{
		"--https", "127.0.0.1:" + port, "--http", "", "--hostname", "localhost", "--advertise", "localhost",
		"--cluster-listen", "127.0.0.1:" + mesh, "--region", "r" + string(rune('1'+len(members))),
	}, args...)
	start := e.args
	if len(members) > 0 {
		file := filepath.Join(tb.TempDir(), "join.token")
		if err := os.WriteFile(file, []byte(members[0].CLI(tb, "cluster", "join-token")), 0o600); err != nil {
			tb.Fatal(err)
		}
		start = append(start, "--join", members[0].Door, "--join-token-file", file)
	}
	e.EdgeProcess = b.StartEdgeIn(tb, dir, start...)
	return e
}

// StartClusterEdge starts an edge of a network that needs no join. args must name
// ports that are kept.
func (b Binaries) StartClusterEdge(tb testing.TB, door string, args ...string) *ClusterEdge {
	tb.Helper()
	return &ClusterEdge{bin: b, Door: door, args: args, EdgeProcess: b.StartEdgeIn(tb, tb.TempDir(), args...)}
}

// Restart starts the edge again where it was, with more arguments for this time.
func (e *ClusterEdge) Restart(tb testing.TB, args ...string) {
	tb.Helper()
	e.EdgeProcess = e.bin.StartEdgeIn(tb, e.Dir, slices.Concat(e.args, args)...)
}

// CLI runs a subcommand on the edge's data directory and returns what it printed.
func (e *ClusterEdge) CLI(tb testing.TB, args ...string) string {
	tb.Helper()
	out, err := e.TryCLI(args...)
	if err != nil {
		tb.Fatalf("edge %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// TryCLI is CLI for what may fail.
func (e *ClusterEdge) TryCLI(args ...string) (string, error) {
	out, err := exec.Command(e.bin.Edge, append(args, "--data-dir", e.Dir)...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// AwaitPeers waits until exactly want other edges are up and heard.
func (e *ClusterEdge) AwaitPeers(tb testing.TB, want int) {
	tb.Helper()
	Eventually(tb, "edges see each other", func() bool {
		if e.Refresh() != nil || e.Status.Cluster == nil {
			return false
		}
		up := 0
		for _, p := range e.Status.Cluster.Peers {
			if p.Health == "up" && p.HeardMillis >= 0 {
				up++
			}
		}
		return up == want
	})
}
