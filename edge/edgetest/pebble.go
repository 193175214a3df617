package edgetest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wormhole/edge/config"
	"wormhole/wormhole/agent"
	"wormhole/wormhole/forward"
)

// Pebble is a real ACME server (Let's Encrypt's own for tests), and the DNS in which
// it looks up the names that it is to certify.
type Pebble struct {
	Directory string // URL
	CAFile    string // PEM that verifies the server of Directory
	HTTPS     string // the port on which it expects tls-alpn-01
	HTTP      string // the port on which it expects http-01

	bin, dir, listen, manage, dns, dnsManage string
	cfg                                      PebbleConfig
	server                                   *Process
	earlier                                  string // output of servers before the present one
	client                                   *http.Client
}

// PebbleConfig says how Pebble behaves; its zero value is the quick way.
type PebbleConfig struct {
	Life        time.Duration // of certificates (default 90 days)
	NonceReject int           // percent of good nonces refused
	SleepMax    int           // seconds that a validation may be put off by, at random
	Edges       int           // addresses 127.0.0.1 to 127.0.0.Edges have the ports free (default 3)
}

// BuildPebble builds Pebble and its DNS into dir.
func BuildPebble(dir string) error {
	for _, name := range []string{"pebble", "pebble-challtestsrv"} {
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, name), "github.com/letsencrypt/pebble/v2/cmd/"+name)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", name, err, text)
		}
	}
	return nil
}

// StartPebble starts what BuildPebble has built into bin. Names resolve to 127.0.0.1
// until Resolve says otherwise.
func StartPebble(tb testing.TB, bin string, cfg PebbleConfig) *Pebble {
	tb.Helper()
	if cfg.Life == 0 {
		cfg.Life = 90 * 24 * time.Hour
	}
	if cfg.Edges == 0 {
		cfg.Edges = 3
	}
	p := &Pebble{
		bin: bin, dir: tb.TempDir(), cfg: cfg,
		listen: "127.0.0.1:" + KeptPort(tb), manage: "127.0.0.1:" + KeptPort(tb),
		dns: "127.0.0.1:" + KeptPort(tb), dnsManage: "127.0.0.1:" + KeptPort(tb),
		HTTPS: portOnAll(tb, cfg.Edges), HTTP: portOnAll(tb, cfg.Edges),
	}
	p.Directory = "https://" + p.listen + "/dir"
	ca := NewCA(tb)
	p.CAFile = ca.File
	cert, key := ca.Issue(tb, "localhost")
	p.client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: Roots(tb, ca.File)}, DisableKeepAlives: true,
	}}
	atoi := func(s string) (n int) { _, _ = fmt.Sscan(s, &n); return n }
	text, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": p.listen, "managementListenAddress": p.manage, "certificate": cert, "privateKey": key,
		"httpPort": atoi(p.HTTP), "tlsPort": atoi(p.HTTPS), "keyAlgorithm": "ecdsa",
		"retryAfter": map[string]int{"authz": 1, "order": 1},
		"profiles":   map[string]any{"default": map[string]any{"description": "test", "validityPeriod": int(cfg.Life / time.Second)}},
	}})
	if err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(p.dir, "pebble.json"), text, 0o600); err != nil {
		tb.Fatal(err)
	}
	Start(tb, nil, filepath.Join(bin, "pebble-challtestsrv"), "-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", "",
		"-dnsserver", p.dns, "-management", p.dnsManage, "-defaultIPv6", "")
	p.Start(tb)
	Eventually(tb, "the DNS answers", func() bool { return p.tellDNS("/set-default-ipv4", map[string]any{"ip": "127.0.0.1"}) == nil })
	return p
}

// Start starts the ACME server, again after Stop. It then has forgotten everything,
// and has another root.
func (p *Pebble) Start(tb testing.TB) {
	tb.Helper()
	env := []string{fmt.Sprintf("PEBBLE_WFE_NONCEREJECT=%d", p.cfg.NonceReject), "PEBBLE_AUTHZREUSE=0"}
	if p.cfg.SleepMax > 0 {
		env = append(env, fmt.Sprintf("PEBBLE_VA_SLEEPTIME=%d", p.cfg.SleepMax))
	} else {
		env = append(env, "PEBBLE_VA_NOSLEEP=1")
	}
	if p.server != nil {
		p.earlier += p.server.Output()
	}
	p.server = Start(tb, env, filepath.Join(p.bin, "pebble"), "-config", filepath.Join(p.dir, "pebble.json"), "-dnsserver", p.dns)
	Eventually(tb, "the ACME server answers", func() bool {
		resp, err := p.client.Get(p.Directory)
		if err == nil {
			_ = resp.Body.Close()
		}
		return err == nil
	})
}

// Stop takes the ACME server away.
func (p *Pebble) Stop(tb testing.TB) {
	tb.Helper()
	_ = p.server.Cmd.Process.Kill()
	p.server.Exit(tb, Patience)
}

// Output is all that the ACME server has logged.
func (p *Pebble) Output() string { return p.earlier + p.server.Output() }

// Orders is how many orders the ACME server has taken, by its own log.
func (p *Pebble) Orders() int { return strings.Count(p.Output(), "Added order ") }

// Issued is how many certificates it has made.
func (p *Pebble) Issued() int { return strings.Count(p.Output(), "Issued certificate serial ") }

// Invalid is how many challenges it found wrong.
func (p *Pebble) Invalid() int {
	return strings.Count(p.Output(), "set INVALID by completed challenge")
}

// Root is the authority that signs the certificates.
func (p *Pebble) Root(tb testing.TB) *x509.CertPool {
	tb.Helper()
	resp, err := p.client.Get("https://" + p.manage + "/roots/0")
	if err != nil {
		tb.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		tb.Fatalf("no root in %q", text)
	}
	return pool
}

// Resolve lets a name resolve to an address, and every other name to what it was; an
// empty host is every name that was not set.
func (p *Pebble) Resolve(tb testing.TB, host, ip string) {
	tb.Helper()
	path, what := "/add-a", map[string]any{"host": host + ".", "addresses": []string{ip}}
	if host == "" {
		path, what = "/set-default-ipv4", map[string]any{"ip": ip}
	} else if err := p.tellDNS("/clear-a", map[string]any{"host": host + "."}); err != nil {
		tb.Fatal(err)
	}
	if err := p.tellDNS(path, what); err != nil {
		tb.Fatal(err)
	}
}

// BreakDNS makes a name fail to resolve, and mends it.
func (p *Pebble) BreakDNS(tb testing.TB, host string, broken bool) {
	tb.Helper()
	path := "/set-servfail"
	if !broken {
		path = "/clear-servfail"
	}
	if err := p.tellDNS(path, map[string]any{"host": host + "."}); err != nil {
		tb.Fatal(err)
	}
}

func (p *Pebble) tellDNS(path string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	resp, err := http.Post("http://"+p.dnsManage+path, "application/json", bytes.NewReader(text))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("DNS answers %s to %s", resp.Status, path)
	}
	return nil
}

// Addr is host:port of the HTTPS door of edge i, which begins at 1. All edges have
// the same ports, each on an address of its own, as Pebble knows one port only.
func (p *Pebble) Addr(i int) string { return net.JoinHostPort(fmt.Sprintf("127.0.0.%d", i), p.HTTPS) }

// Flags are those of a real edge i that orders from this server and shares the store.
func (p *Pebble) Flags(i int, storeDir string) []string {
	return []string{
		"--tls", "acme", "--acme-directory", p.Directory, "--acme-ca-file", p.CAFile, "--store-dir", storeDir,
		"--hostname", fmt.Sprintf("edge%d.localhost", i), "--https", p.Addr(i),
		"--http", net.JoinHostPort(fmt.Sprintf("127.0.0.%d", i), p.HTTP),
	}
}

// StartNode starts edge i in this process; those with the same storeDir share
// tokens, sites and certificates.
func (p *Pebble) StartNode(tb testing.TB, i int, storeDir string, change ...func(*config.Config)) *Node {
	tb.Helper()
	return StartNode(tb, append([]func(*config.Config){func(c *config.Config) {
		c.TLS, c.ACMEDirectory, c.ACMECAFile, c.StoreDir = config.TLSACME, p.Directory, p.CAFile, storeDir
		c.Hostname = fmt.Sprintf("edge%d.localhost", i)
		c.HTTPS, c.HTTP = p.Addr(i), net.JoinHostPort(fmt.Sprintf("127.0.0.%d", i), p.HTTP)
		c.DrainTimeout = 3 * time.Second
	}}, change...)...)
}

// StartAgent starts an agent with tunnels to nodes 1 to n.
func (p *Pebble) StartAgent(tb testing.TB, c AgentConfig, nodes ...*Node) *Agent {
	tb.Helper()
	change := c.Change
	c.Change = func(cfg *agent.Config, f *forward.Config) {
		cfg.Edges = nil
		for i := range nodes {
			cfg.Edges = append(cfg.Edges, net.JoinHostPort(fmt.Sprintf("edge%d.localhost", i+1), p.HTTPS))
		}
		cfg.Resolve = func(_ context.Context, host string) ([]netip.Addr, error) {
			addr, err := netip.ParseAddr("127.0.0." + strings.TrimSuffix(strings.TrimPrefix(host, "edge"), ".localhost"))
			return []netip.Addr{addr}, err
		}
		if change != nil {
			change(cfg, f)
		}
	}
	return StartAgent(tb, c, nodes...)
}

// portOnAll is a port that is free for TCP and UDP on 127.0.0.1 to 127.0.0.n, and kept
// as KeptPort's are.
func portOnAll(tb testing.TB, n int) string {
	tb.Helper()
	for range 100 {
		port, free := fmt.Sprint(12000+rand.IntN(18000)), true
		for i := 1; i <= n && free; i++ {
			free = isFree(net.JoinHostPort(fmt.Sprintf("127.0.0.%d", i), port))
		}
		if free && claim(tb, port) {
			return port
		}
	}
	tb.Fatal("no port is free on all addresses")
	return ""
}
