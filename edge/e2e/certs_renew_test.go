package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wormhole/certs"
	"wormhole/edge/edgetest"
)

// F5: certificates are renewed under load, once each, and every edge presents the
// new one.
func TestF5RenewalUnderLoadFailsNothing(t *testing.T) {
	t.Parallel() // it mostly waits
	life, renewals := 18*time.Second, 1
	if long() {
		life, renewals = 10*time.Minute, 2
	}
	const name = "f5.example.com"
	p := startPebble(t, edgetest.PebbleConfig{Life: life})
	nodes := certEdges(t, p, 3)
	p.StartAgent(t, edgetest.AgentConfig{Token: nodes[0].Token(t, name), Endpoint: edgetest.App(t, edgetest.Named("statler"))}, nodes...)
	for _, n := range nodes {
		n.AwaitBackends(t, 1)
	}
	roots := p.Root(t)
	for i := range nodes {
		awaitCert(t, p, i+1, name, roots, 30*time.Second)
	}

	var sent, failed atomic.Int64
	halt := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	for i := range nodes {
		dial := func() *http.Client { // a handshake for every request
			return &http.Client{Timeout: 15 * time.Second, Transport: &http.Transport{
				DisableKeepAlives: true,
				TLSClientConfig:   &tls.Config{RootCAs: roots, ServerName: name},
			}}
		}
		for range 2 {
			wg.Go(func() {
				client := dial()
				tick := time.NewTicker(20 * time.Millisecond)
				defer tick.Stop()
				for {
					select {
					case <-halt:
						return
					case <-tick.C:
					}
					sent.Add(1)
					req, _ := http.NewRequest(http.MethodGet, "https://"+p.Addr(i+1)+"/", nil)
					req.Host = name
					resp, err := client.Do(req)
					if err == nil {
						_, err = io.Copy(io.Discard, resp.Body)
						resp.Body.Close()
					}
					if err != nil || resp.StatusCode != http.StatusOK {
						failed.Add(1)
						t.Errorf("request failed: %v", err)
					}
				}
			})
		}
	}
	defer close(halt)

	serial := func(i int) string { return awaitCert(t, p, i, name, roots, time.Second).SerialNumber.String() }
	current := serial(1)
	var slowest time.Duration
	for range renewals {
		var seen [3]string
		var first time.Time
		for deadline := time.Now().Add(life); ; time.Sleep(50 * time.Millisecond) {
			fresh := 0
			for i := range nodes {
				seen[i] = serial(i + 1)
				if seen[i] != current {
					fresh++
				}
			}
			if fresh > 0 && first.IsZero() {
				first = time.Now()
			}
			if fresh == 3 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("no renewal on all edges within a life of %s: %v, before %s", life, seen, current)
			}
		}
		if seen[0] != seen[1] || seen[1] != seen[2] {
			t.Errorf("the edges present different certificates: %v", seen)
		}
		slowest = max(slowest, time.Since(first))
		current = seen[0]
	}
	t.Logf("%d renewals, %d orders, all edges on the new serial after %s, %d of %d requests failed",
		renewals, p.Orders(), slowest.Round(time.Millisecond), failed.Load(), sent.Load())
	if got, want := p.Orders(), 1+renewals; got != want {
		t.Errorf("%d orders, want %d: one at first and one for each renewal", got, want)
	}
	if slowest > time.Minute {
		t.Errorf("the edges agreed after %s", slowest)
	}
}

// F6: the store is gone at boot, or slow.
func TestF6AStoreThatIsGoneOrSlowStopsNoHandshake(t *testing.T) {
	p := startPebble(t, edgetest.PebbleConfig{})
	dir, mirror := filepath.Join(t.TempDir(), "store"), filepath.Join(t.TempDir(), "mirror")
	hosts := numbered("f6-%02d.example.com", 5)
	first := newRig(t, p, dir, mirror)
	first.plain(t, p)
	first.serve(hosts...)
	for _, h := range hosts {
		first.await(t, h, certs.StateValid)
	}
	edgetest.Eventually(t, "copies on disk", func() bool { return copies(t, mirror) >= len(hosts) })
	ask := func(r *rig, h string) time.Duration {
		began := time.Now()
		c, err := r.GetCertificate(&tls.ClientHelloInfo{ServerName: h})
		if err != nil || c.Leaf.VerifyHostname(h) != nil {
			t.Errorf("%s: %v", h, err)
		}
		return time.Since(began)
	}
	orders := p.Orders()

	// 10 s slow: nobody waits.
	first.fault.Store(int64(10 * time.Second))
	var slowest time.Duration
	for range 1000 {
		slowest = max(slowest, ask(first, hosts[0]))
	}
	t.Logf("slowest of 1,000 handshakes with a store of 10 s: %s", slowest)
	if slowest > 50*time.Millisecond {
		t.Errorf("a handshake waited %s for the store", slowest)
	}
	first.fault.Store(0)
	first.stop()

	// Gone at boot: what is on this disk is served, and nothing ordered.
	second := newRig(t, p, dir, mirror, func(*certs.ACMEConfig) {})
	second.fault.Store(-1)
	second.serve(append(hosts, "new.example.com")...)
	edgetest.Eventually(t, "certificates from this disk", func() bool { return len(second.Hosts()) >= len(hosts) })
	for _, h := range hosts {
		ask(second, h)
	}
	second.await(t, "new.example.com", certs.StateBlocked)
	if _, err := second.GetCertificate(&tls.ClientHelloInfo{ServerName: "new.example.com"}); err == nil || errors.Is(err, certs.ErrUnknownName) {
		t.Errorf("a new host without a store: %v", err)
	}
	if got := p.Orders(); got != orders {
		t.Errorf("%d orders without a store", got-orders)
	}
}

func copies(t *testing.T, mirror string) (n int) {
	t.Helper()
	_ = filepath.WalkDir(mirror, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasSuffix(d.Name(), ".example.com") {
			n++
		}
		return nil
	})
	return n
}

// F6, too: the directory of the store vanishes under running edges.
func TestF6EdgesServeOnWhenTheirStoreVanishes(t *testing.T) {
	p := startPebble(t, edgetest.PebbleConfig{})
	shared := filepath.Join(t.TempDir(), "store")
	n := p.StartNode(t, 1, shared)
	configure(t, []*edgetest.Node{n}, "f6.example.com")
	roots := p.Root(t)
	awaitCert(t, p, 1, "f6.example.com", roots, 30*time.Second)
	orders := p.Orders()
	if err := os.Rename(shared, shared+".away"); err != nil {
		t.Fatal(err)
	}
	for range 50 {
		if _, err := shake(p.Addr(1), "f6.example.com", roots); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(shared+".away", shared); err != nil {
		t.Fatal(err)
	}
	if p.Orders() != orders {
		t.Errorf("%d orders while the store was away", p.Orders()-orders)
	}
}

// F7: a client that can only do RSA makes no second order.
func TestF7RSAOnlyClientMakesNoOrder(t *testing.T) {
	p := startPebble(t, edgetest.PebbleConfig{})
	n := certEdges(t, p, 1)
	configure(t, n, "f7.example.com", "f7-new.example.com")
	roots := p.Root(t)
	leaf := awaitCert(t, p, 1, "f7.example.com", roots, 30*time.Second)
	awaitCert(t, p, 1, "f7-new.example.com", roots, 30*time.Second)
	if leaf.PublicKeyAlgorithm != x509.ECDSA {
		t.Errorf("the key is %s, want ECDSA", leaf.PublicKeyAlgorithm)
	}
	orders := p.Orders()
	for _, name := range []string{"f7.example.com", "f7-new.example.com"} {
		conn, err := tls.Dial("tcp", p.Addr(1), &tls.Config{
			ServerName: name, RootCAs: roots, MaxVersion: tls.VersionTLS12,
			CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384},
		})
		if err == nil {
			conn.Close()
			t.Errorf("%s: an RSA-only handshake succeeded", name)
		}
	}
	if got := p.Orders(); got != orders {
		t.Errorf("%d orders for RSA", got-orders)
	}
}

// F9: an entry of the store is damaged.
func TestF9DamagedEntryIsAnErrorAndNoMiss(t *testing.T) {
	p := startPebble(t, edgetest.PebbleConfig{})
	dir := filepath.Join(t.TempDir(), "store")
	const name = "f9.example.com"
	r := newRig(t, p, dir, "")
	r.plain(t, p)
	r.serve(name)
	r.await(t, name, certs.StateValid)
	r.stop()
	orders := p.Orders()

	flip(t, entryFile(t, dir, name))
	second := newRig(t, p, dir, "")
	second.plainTo(t, r)
	second.serve(name)
	h := second.await(t, name, certs.StateBlocked)
	if !strings.Contains(h.Error, "damaged") {
		t.Errorf("the alarm says %q", h.Error)
	}
	for range 20 {
		if _, err := second.GetCertificate(&tls.ClientHelloInfo{ServerName: name}); err == nil {
			t.Error("a damaged certificate was served")
		}
	}
	if got := second.Stats().ByState[certs.StateBlocked]; got != 1 {
		t.Errorf("the metric shows %d blocked hosts, want 1", got)
	}
	if got := p.Orders(); got != orders {
		t.Fatalf("%d orders for a damaged entry", got-orders)
	}
	// An operator mends it.
	if err := second.Retry(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	second.await(t, name, certs.StateValid)
	if got := p.Orders(); got != orders+1 {
		t.Errorf("%d orders after the retry, want 1", got-orders)
	}
}

func entryFile(t *testing.T, dir, name string) (found string) {
	t.Helper()
	_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Name() == name && strings.HasSuffix(filepath.Dir(path), "-cert") {
			found = path
		}
		return nil
	})
	if found == "" {
		t.Fatalf("no certificate of %s in %s", name, dir)
	}
	return found
}

func flip(t *testing.T, file string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text[len(text)/2] ^= 1
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// F8: the edge that orders is killed in the middle.
func TestF8AnotherEdgeFinishesForOneThatIsKilled(t *testing.T) {
	t.Parallel() // it mostly waits
	rounds := 1
	if long() {
		rounds = 20
	}
	p := startPebble(t, edgetest.PebbleConfig{SleepMax: 4})
	shared := filepath.Join(t.TempDir(), "store")
	start := func(i int) *edgetest.EdgeProcess { return binaries.StartEdge(t, p.Flags(i, shared)...) }
	edges := []*edgetest.EdgeProcess{start(1), start(2), start(3)}
	roots := p.Root(t)
	for round := range rounds {
		name := fmt.Sprintf("f8-%02d.example.com", round)
		orders := p.Orders()
		spec := filepath.Join(t.TempDir(), "site.yaml")
		if err := os.WriteFile(spec, []byte("host: "+name+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, e := range edges {
			run(t, "site", "apply", "--data-dir", e.Dir, "-f", spec)
		}
		for i := range edges { // visitors hurry the order
			go func() { _, _ = shake(p.Addr(i+1), name, roots) }()
		}
		edgetest.Eventually(t, "an order", func() bool { return p.Orders() > orders })
		victim := -1
		edgetest.Eventually(t, "its edge", func() bool {
			for i, e := range edges {
				if strings.Contains(e.Output(), `"certificate order begins","host":"`+name) {
					victim = i
				}
			}
			return victim >= 0
		})
		// The CA is to look at an edge that lives.
		p.Resolve(t, "", fmt.Sprintf("127.0.0.%d", 1+(victim+1)%3))
		if err := edges[victim].Cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		killed := time.Now()
		edges[victim].Exit(t, edgetest.Patience)
		for i := range edges {
			if i == victim {
				continue
			}
			if _, err := insist(p.Addr(i+1), name, roots, 2*time.Minute); err != nil {
				t.Fatalf("round %d: edge %d has no certificate 2 minutes after edge %d was killed: %v", round, i+1, victim+1, err)
			}
		}
		t.Logf("round %d: edge %d killed while ordering, certificate from another edge after %s, %d orders",
			round, victim+1, time.Since(killed).Round(time.Millisecond), p.Orders()-orders)
		if extra := p.Orders() - orders - 1; extra > 1 {
			t.Errorf("round %d: %d extra orders, want at most 1", round, extra)
		}
		if round+1 < rounds {
			edges[victim] = start(victim + 1)
		}
	}
}

// run calls the real command line and returns what it printed.
func run(t *testing.T, args ...string) string {
	t.Helper()
	p := edgetest.Start(t, nil, binaries.Edge, args...)
	if code := p.Exit(t, edgetest.Patience); code != 0 {
		t.Fatalf("edge %s exits with %d: %s", strings.Join(args, " "), code, p.Output())
	}
	return p.Output()
}

// F10: keys at rest can be read by nobody else, and are nowhere else.
func TestF10KeysStayInPrivateFiles(t *testing.T) {
	p := startPebble(t, edgetest.PebbleConfig{})
	shared := filepath.Join(t.TempDir(), "store")
	e := binaries.StartEdge(t, append(p.Flags(1, shared), "--log-level", "debug")...)
	spec := filepath.Join(t.TempDir(), "site.yaml")
	if err := os.WriteFile(spec, []byte("host: f10.example.com\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "site", "apply", "--data-dir", e.Dir, "-f", spec)
	awaitCert(t, p, 1, "f10.example.com", p.Root(t), 30*time.Second)

	keys := 0
	for _, dir := range []string{shared, e.Dir} {
		err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil || !strings.Contains(string(text), "PRIVATE KEY") {
				return err
			}
			keys++
			info, err := d.Info()
			if err == nil && info.Mode().Perm() != 0o600 {
				t.Errorf("%s holds a key and has mode %04o", path, info.Mode().Perm())
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if keys < 4 { // account, certificate, its copy, the authority for localhost
		t.Errorf("%d files with keys found, want 4 or more: the search proves little", keys)
	}
	list := run(t, "cert", "list", "--json", "--data-dir", e.Dir)
	var rows []struct{ Host, Issuer, Serial, State string }
	edgetest.JSON(t, []byte(list), &rows)
	if len(rows) != 1 || rows[0].Host != "f10.example.com" || rows[0].State != "valid" || rows[0].Serial == "" || !strings.Contains(rows[0].Issuer, "Pebble") {
		t.Errorf("edge cert list prints %+v", rows)
	}
	resp, err := http.Get("http://" + e.Status.Addresses["admin"] + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	metrics, _ := io.ReadAll(resp.Body)
	if !strings.Contains(string(metrics), `wormhole_edge_certificates{state="valid"} 1`) {
		t.Error("the metrics do not count the certificate")
	}
	// The PEM's lines of the key in the store, and its marks.
	secrets := []string{"PRIVATE KEY"}
	text, err := os.ReadFile(entryFile(t, shared, "f10.example.com"))
	if err != nil {
		t.Fatal(err)
	}
	_, key, _ := strings.Cut(string(text), `PRIVATE KEY-----\n`)
	secrets = append(secrets, key[:60])
	for where, said := range map[string]string{"the log": e.Output(), "edge cert list": list, "the metrics": string(metrics)} {
		for _, secret := range secrets {
			if strings.Contains(said, secret) {
				t.Errorf("%s shows a key", where)
			}
		}
	}
}

// plainTo opens the port for http-01 unless the rig before has it open already.
func (r *rig) plainTo(t *testing.T, before *rig) {
	t.Helper()
	before.next.Store(r)
}
