package e2e

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"wormhole/edge/edgetest"
	"wormhole/edge/edgetest/oracle"
)

// chatHost is the site whose apps speak h2c, for gRPC; see host for the other.
const chatHost = "chat.example.com"

// oracleApp is the oracle's app as a program, built when first needed.
var oracleApp = sync.OnceValues(func() (string, error) {
	path := filepath.Join(filepath.Dir(binaries.App), "oracleapp")
	cmd := exec.Command("go", "build", "-o", path, "wormhole/edge/edgetest/oracleapp")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build oracleapp: %w\n%s", err, out)
	}
	return path, nil
})

// stage is a fleet with its apps and the log that they share.
type stage struct {
	*edgetest.Fleet
	token string
	log   string
	roots *x509.CertPool
}

func newStage(t *testing.T, edges int, args ...string) *stage {
	t.Helper()
	return newStageOf(t, binaries, edges, args...)
}

// newStageOf is newStage with programs of another version.
func newStageOf(t *testing.T, programs edgetest.Binaries, edges int, args ...string) *stage {
	t.Helper()
	f := programs.StartFleet(t, edges, []string{host, chatHost}, args...)
	return &stage{
		Fleet: f, token: f.Token(t, "--host", host, "--host", chatHost), log: filepath.Join(t.TempDir(), "oracle.log"),
		roots: edgetest.Roots(t, f.CA.File),
	}
}

// app starts a real agent around a copy of the oracle's app, with tunnels to the
// edges with these numbers.
func (s *stage) app(t *testing.T, name, site string, edges []int, more ...string) *edgetest.Process {
	t.Helper()
	return s.appOf(t, binaries, name, site, edges, more...)
}

// appOf is app with an agent of another version.
func (s *stage) appOf(t *testing.T, programs edgetest.Binaries, name, site string, edges []int, more ...string) *edgetest.Process {
	t.Helper()
	program, err := oracleApp()
	if err != nil {
		t.Fatal(err)
	}
	port := edgetest.FreePort(t)
	endpoint := "127.0.0.1:" + port
	if site == chatHost {
		endpoint = "h2c://" + endpoint
	}
	env := append(s.AgentEnv(s.token, edges, "WORMHOLE_NAME="+name, "WORMHOLE_HOST="+site, "WORMHOLE_ENDPOINT="+endpoint,
		"PORT="+port, "ORACLE_NAME="+name, "ORACLE_LOG="+s.log), more...)
	return edgetest.Start(t, env, programs.Wormhole, program)
}

// client asks the site at an address that may change.
func (s *stage) client(t *testing.T, proto, site string, addr oracle.Addr) *oracle.Client {
	t.Helper()
	c, err := oracle.NewClient(oracle.ClientConfig{Proto: proto, URL: "https://" + site, Roots: s.roots, Addr: addr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// anyReady is the address of an edge that is ready, a different one each time, as a
// client finds it that asks DNS for the live edges.
func (s *stage) anyReady() oracle.Addr {
	var mu sync.Mutex // guards next
	next := 0
	return func(context.Context) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		for range s.Edges {
			next++
			if e := s.Edges[next%len(s.Edges)]; e.IsReady() {
				return e.HTTPS, nil
			}
		}
		return "", errors.New("no edge is ready")
	}
}

// judge joins the clients' log with the apps'.
func (s *stage) judge(t *testing.T, run *oracle.Run) *oracle.Report {
	t.Helper()
	seen, err := oracle.ReadLogs(s.log)
	if err != nil {
		t.Fatal(err)
	}
	r := oracle.Judge(run, seen)
	t.Logf("%s", r)
	return r
}

// awaitOpen waits until n streams of the load are open.
func awaitOpen(t *testing.T, l *oracle.Load, n int) {
	t.Helper()
	edgetest.Eventually(t, fmt.Sprintf("%d streams are open", n), func() bool { return l.Open() == int64(n) })
}

// hold lets the load run for d.
func hold(d time.Duration) { time.Sleep(d) }
