package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"wormhole/edge/config"
	"wormhole/edge/edgetest"
	"wormhole/edge/site"
)

// buildPebble builds the ACME server once, beside the other programs.
var buildPebble = sync.OnceValues(func() (string, error) {
	dir := filepath.Dir(binaries.Edge)
	return dir, edgetest.BuildPebble(dir)
})

func startPebble(t *testing.T, cfg edgetest.PebbleConfig) *edgetest.Pebble {
	t.Helper()
	bin, err := buildPebble()
	if err != nil {
		t.Fatal(err)
	}
	return edgetest.StartPebble(t, bin, cfg)
}

// long says whether the slow forms of the fault tests are asked for.
func long() bool { return os.Getenv("WORMHOLE_FAULTS") == "long" }

// delay is how many seconds the CA puts validations off, at random.
func delay() int {
	if long() {
		return 5
	}
	return 0
}

// certEdges starts n edges in this process that share one store and order from p.
func certEdges(t *testing.T, p *edgetest.Pebble, n int, change ...func(*config.Config)) []*edgetest.Node {
	t.Helper()
	shared := filepath.Join(t.TempDir(), "store")
	var nodes []*edgetest.Node
	for i := range n {
		nodes = append(nodes, p.StartNode(t, i+1, shared, change...))
	}
	return nodes
}

// configure makes hosts sites of every node.
func configure(t *testing.T, nodes []*edgetest.Node, hosts ...string) {
	t.Helper()
	for _, n := range nodes {
		for _, h := range hosts {
			if err := n.ApplySites(t.Context(), []site.Spec{{Host: h}}); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func numbered(format string, n int) []string {
	var hosts []string
	for i := range n {
		hosts = append(hosts, fmt.Sprintf(format, i))
	}
	return hosts
}

// shake completes a handshake at addr for name and returns the leaf presented.
func shake(addr, name string, roots *x509.CertPool) (*x509.Certificate, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	d := &tls.Dialer{Config: &tls.Config{ServerName: name, RootCAs: roots, NextProtos: []string{"h2", "http/1.1"}}}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0], nil
}

// visitors is how long they insist where a row counts orders and asks for no time. A
// second order for any host, which would come after a minute, is counted all the same.
const visitors = 2 * time.Minute

// insist shakes hands as a visitor does who tries again, until it works.
func insist(addr, name string, roots *x509.CertPool, within time.Duration) (leaf *x509.Certificate, err error) {
	for deadline := time.Now().Add(within); ; time.Sleep(100 * time.Millisecond) {
		leaf, err = shake(addr, name, roots)
		if err == nil || time.Now().After(deadline) {
			return leaf, err
		}
	}
}

// awaitCert waits until a node presents a certificate for name that is not old.
func awaitCert(t *testing.T, p *edgetest.Pebble, edge int, name string, roots *x509.CertPool, within time.Duration) *x509.Certificate {
	t.Helper()
	leaf, err := insist(p.Addr(edge), name, roots, within)
	if err != nil {
		t.Fatalf("edge %d has no certificate for %s within %s: %v", edge, name, within, err)
	}
	return leaf
}

// unrecognized reports whether err is the alert for a name nobody serves.
func unrecognized(err error) bool {
	return err != nil && strings.Contains(err.Error(), "unrecognized name")
}

// F1: fifty new hosts, each first asked for on three edges at once.
func TestF1FiftyNewHostsOnThreeEdgesAreFiftyOrders(t *testing.T) {
	p := startPebble(t, edgetest.PebbleConfig{NonceReject: 15, SleepMax: delay()})
	nodes := certEdges(t, p, 3)
	hosts := numbered("f1-%02d.example.com", 50)
	configure(t, nodes, hosts...)
	roots := p.Root(t)
	began := time.Now()

	var mu sync.Mutex
	serials := map[string]string{}
	var wg sync.WaitGroup
	for _, h := range hosts {
		for i := range nodes {
			wg.Go(func() {
				leaf, err := insist(p.Addr(i+1), h, roots, visitors)
				if err != nil {
					t.Errorf("%s on edge %d: %v", h, i+1, err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				if other := serials[h]; other != "" && other != leaf.SerialNumber.String() {
					t.Errorf("%s has two certificates", h)
				}
				serials[h] = leaf.SerialNumber.String()
			})
		}
	}
	wg.Wait()
	t.Logf("150 handshakes for 50 new hosts after %s, %d orders, %d certificates, %d failed validations",
		time.Since(began).Round(time.Millisecond), p.Orders(), p.Issued(), p.Invalid())
	if got := p.Orders(); got != 50 {
		t.Errorf("the CA took %d orders, want exactly 50", got)
	}
	if got := p.Issued(); got != 50 {
		t.Errorf("the CA issued %d certificates, want exactly 50", got)
	}
}
