package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"wormhole/edge/admin"
	"wormhole/edge/edgetest"
	"wormhole/edge/edgetest/oracle"
)

// otherHost is the site of a tenant who has nothing to do with what goes wrong.
const otherHost = "other.example.net"

// sidecar starts a real agent for an app that is there already.
func sidecar(t *testing.T, e *edgetest.EdgeProcess, token, app, name string, more ...string) *edgetest.Process {
	t.Helper()
	env := append(e.AgentEnv(token, "WORMHOLE_NAME="+name, "WORMHOLE_ENDPOINT="+app), more...)
	return edgetest.Start(t, env, binaries.Wormhole)
}

// sitesFile is a configuration file of an edge with rules for host.
func sitesFile(t *testing.T, rules string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "edge.yaml")
	text := fmt.Sprintf("sites:\n- {host: %s, %s}\n", host, rules)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// backends are what an edge says of its backends now.
func backends(t *testing.T, e *edgetest.EdgeProcess) []admin.Backend {
	t.Helper()
	client, err := admin.Connect(e.Dir, "")
	var s admin.Status
	if err == nil {
		err = client.Call(context.Background(), http.MethodGet, "/v1/status", nil, &s)
	}
	if err != nil {
		t.Fatalf("status of the edge: %v", err)
	}
	return s.Backends
}

// backend is the backend with a name, nil if there is none.
func backend(t *testing.T, e *edgetest.EdgeProcess, name string) *admin.Backend {
	t.Helper()
	for _, b := range backends(t, e) {
		if b.Name == name {
			return &b
		}
	}
	return nil
}

// awaitState waits until the backend with a name is in a state.
func awaitState(t *testing.T, e *edgetest.EdgeProcess, name, state string) {
	t.Helper()
	edgetest.Eventually(t, name+" is "+state, func() bool {
		b := backend(t, e, name)
		return b != nil && b.State == state
	})
}

// awaitGone waits until no backend has a name and returns how long it took.
// Meanwhile, if not nil, is called again and again.
func awaitGone(t *testing.T, e *edgetest.EdgeProcess, name string, within time.Duration, meanwhile func()) time.Duration {
	t.Helper()
	began := time.Now()
	for backend(t, e, name) != nil {
		if time.Since(began) > within {
			t.Fatalf("backend %s is still there after %s", name, within)
		}
		if meanwhile != nil {
			meanwhile()
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(began)
}

// disturbed reports whether p99 is more than ratio times that of the control, which
// was measured at the same time where nothing goes wrong, so that whatever else the
// machine does counts on both sides. Times below the floor prove nothing.
func disturbed(control, got edgetest.Answers, ratio float64) bool {
	floor := scaled(100*time.Millisecond, 10*time.Millisecond)
	return got.P99() > max(floor, time.Duration(ratio*float64(control.P99())))
}

// control is a network of its own with the same app, for comparison.
func control(t *testing.T, app, proto string) *http.Client {
	t.Helper()
	e := binaries.StartEdge(t)
	sidecar(t, e, binaries.Token(t, e.Dir, "--host", otherHost), app, "control")
	e.AwaitReady(t, 1)
	return e.Client(t, proto)
}

// scaled is short, or long in the long form.
func scaled[T any](short, long T) T {
	if oracle.Long() {
		return long
	}
	return short
}

// answering is an app that says hello, and takes the other paths from more.
func answering(t *testing.T, more map[string]http.HandlerFunc) (addr string) {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 1<<10)) })
	for path, h := range more {
		mux.HandleFunc(path, h)
	}
	return edgetest.App(t, mux)
}

// mostlyWaits lets the short form run a test beside others that mostly wait too.
func mostlyWaits(t *testing.T) {
	if !oracle.Long() {
		t.Parallel()
	}
}

func ms(d time.Duration) string { return d.Round(time.Millisecond).String() }

func mib(bytes int64) string { return fmt.Sprintf("%d MiB", bytes>>20) }
