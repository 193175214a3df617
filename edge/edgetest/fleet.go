package edgetest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Fleet is several real edges of one network: they accept the same tokens and have
// the same certificate, and keep their ports when they restart.
type Fleet struct {
	CA    *CA
	Edges []*Member

	bin Binaries
	dir string // the data directory that tokens are issued from
}

// Member is one edge of a fleet.
type Member struct {
	*EdgeProcess
	HTTPS, Admin string // host:port

	fleet *Fleet
	bin   Binaries
	args  []string
}

// StartFleet starts n edges that serve the hosts' names. args come after the
// defaults of StartEdge.
func (b Binaries) StartFleet(tb testing.TB, n int, hosts []string, args ...string) *Fleet {
	tb.Helper()
	f := &Fleet{CA: NewCA(tb), bin: b, dir: tb.TempDir()}
	b.Token(tb, f.dir, "--host", hosts[0]) // makes the authority
	cert, key := f.CA.Issue(tb, append([]string{"edge.localhost", "localhost"}, hosts...)...)
	for range n {
		dir := tb.TempDir()
		// With its modes: an edge refuses keys that others may read.
		if out, err := exec.Command("cp", "-a", filepath.Join(f.dir, "store"), dir).CombinedOutput(); err != nil {
			tb.Fatalf("copy the store: %v\n%s", err, out)
		}
		m := &Member{fleet: f, bin: b, HTTPS: "127.0.0.1:" + KeptPort(tb), Admin: "127.0.0.1:" + KeptPort(tb)}
		m.args = append([]string{
			"--tls", "files", "--cert", cert, "--key", key, "--https", m.HTTPS, "--admin", m.Admin, "--http", "",
		}, args...)
		m.EdgeProcess = b.StartEdgeIn(tb, dir, m.args...)
		f.Edges = append(f.Edges, m)
	}
	return f
}

// Token issues a token that every edge of the fleet accepts.
func (f *Fleet) Token(tb testing.TB, args ...string) string {
	tb.Helper()
	return f.bin.Token(tb, f.dir, args...)
}

// AgentEnv is the environment of an agent that dials the edges with these numbers.
func (f *Fleet) AgentEnv(token string, edges []int, more ...string) []string {
	var addrs []string
	for _, i := range edges {
		addrs = append(addrs, f.Edges[i].HTTPS)
	}
	return append([]string{
		"WORMHOLE_TOKEN=" + token, "WORMHOLE_EDGE=" + strings.Join(addrs, ","), "WORMHOLE_CA_FILE=" + f.CA.File,
	}, more...)
}

// Stop drains the edge and waits until it has ended.
func (m *Member) Stop(tb testing.TB) {
	tb.Helper()
	m.Signal(syscall.SIGTERM)
	if code := m.Exit(tb, time.Minute); code != 0 {
		tb.Errorf("edge ended with status %d:\n%s", code, m.Output())
	}
}

// Upgrade makes Start use other programs.
func (m *Member) Upgrade(to Binaries) { m.bin = to }

// Start starts the edge again where it was.
func (m *Member) Start(tb testing.TB) {
	tb.Helper()
	m.EdgeProcess = m.bin.StartEdgeIn(tb, m.Dir, m.args...)
}

// VisitorClient asks for any host by dialling this edge.
func (m *Member) VisitorClient(tb testing.TB, proto string) *http.Client {
	tb.Helper()
	return clientFor(tb, proto, m.fleet.CA.File, func() string { return m.HTTPS })
}

// IsReady asks the edge as a balancer in front does.
func (m *Member) IsReady() bool {
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + m.Admin + "/readyz")
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// StartHAProxy starts HAProxy in front of the fleet. It passes TCP on to edges whose
// /readyz is good, and looks every 100 ms.
func (f *Fleet) StartHAProxy(tb testing.TB) (addr string) {
	tb.Helper()
	program, err := exec.LookPath("haproxy")
	if err != nil {
		program, err = exec.LookPath("/usr/sbin/haproxy")
	}
	if err != nil {
		if os.Getenv("CI") == "true" {
			tb.Fatal("haproxy is not installed")
		}
		tb.Skip("haproxy is not installed")
	}
	addr = "127.0.0.1:" + KeptPort(tb)
	conf := fmt.Sprintf(`global
	maxconn 4000
defaults
	mode tcp
	timeout connect 5s
	timeout client 1h
	timeout server 1h
	timeout check 1s
	retries 3
	option redispatch
frontend door
	bind %s
	default_backend edges
backend edges
	balance roundrobin
	option httpchk GET /readyz
	default-server check inter 100ms fall 1 rise 1
`, addr)
	for i, m := range f.Edges {
		_, port, _ := net.SplitHostPort(m.Admin)
		conf += fmt.Sprintf("\tserver e%d %s port %s\n", i, m.HTTPS, port)
	}
	file := filepath.Join(tb.TempDir(), "haproxy.cfg")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		tb.Fatal(err)
	}
	Start(tb, nil, program, "-db", "-f", file)
	Eventually(tb, "HAProxy listens", func() bool {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
	return addr
}

// KeptPort is a free port below those that the system gives to outgoing
// connections, so that a process that restarts finds it free again. No other test
// gets it, of this process or another, until this one ends.
func KeptPort(tb testing.TB) string {
	tb.Helper()
	for range 100 {
		port := fmt.Sprint(12000 + rand.IntN(18000))
		if isFree("127.0.0.1:"+port) && claim(tb, port) {
			return port
		}
	}
	tb.Fatal("no free port was found")
	return ""
}

// isFree reports whether TCP and UDP can have an address now.
func isFree(addr string) bool {
	tcp, err := net.Listen("tcp", addr)
	if err != nil {
		return false
	}
	defer tcp.Close()
	udp, err := net.ListenPacket("udp", addr)
	if err != nil {
		return false
	}
	_ = udp.Close()
	return true
}

// claim keeps a port that nobody listens on yet from other tests, and reports whether
// it could. The claim is a name of the kernel's that ends with this process at the
// latest; systems without such names go without.
func claim(tb testing.TB, port string) bool {
	tb.Helper()
	if runtime.GOOS != "linux" {
		return true
	}
	l, err := net.Listen("unix", "@wormhole-test-port-"+port)
	if err != nil {
		return false
	}
	tb.Cleanup(func() { _ = l.Close() })
	return true
}
