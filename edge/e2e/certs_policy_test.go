package e2e

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wormhole/certs"
	"wormhole/edge/config"
	"wormhole/edge/edgetest"
	"wormhole/edge/site"
	"wormhole/shared/hostname"
	"wormhole/wormhole/agent"
	"wormhole/wormhole/forward"
)

// oneTicket is a session cache that offers the last ticket to every name.
type oneTicket struct {
	mu    sync.Mutex
	state *tls.ClientSessionState
}

func (c *oneTicket) Get(string) (*tls.ClientSessionState, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state, c.state != nil
}

func (c *oneTicket) Put(_ string, s *tls.ClientSessionState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s != nil {
		c.state = s
	}
}

// E5: a session ticket is good for the name it was given under, and no other.
func TestE5TicketsNeverCrossSites(t *testing.T) {
	n := edgetest.StartNode(t, func(c *config.Config) { c.ParkTimeout = 0 })
	configure(t, []*edgetest.Node{n}, "a.example.com", "b.example.com")
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			tickets := &oneTicket{}
			visit := func(name string) (resumed bool) {
				t.Helper()
				conn, err := tls.Dial("tcp", n.Addr("https"), &tls.Config{
					ServerName: name, MinVersion: version, MaxVersion: version, ClientSessionCache: tickets,
					InsecureSkipVerify: true, // a hostile client, which checks nothing
				})
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				// Tickets of TLS 1.3 come after the handshake.
				fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", name)
				_, _ = io.Copy(io.Discard, conn)
				return conn.ConnectionState().DidResume
			}
			if visit("a.example.com") {
				t.Error("the first visit resumed something")
			}
			if !visit("a.example.com") {
				t.Error("the same site does not resume, so the test proves nothing")
			}
			if visit("b.example.com") {
				t.Error("a ticket of one site was taken by another")
			}
		})
	}
}

// E5: who is silent, slow or long in the handshake is let go in time.
func TestE5HandshakesAreBounded(t *testing.T) {
	n := edgetest.StartNode(t)
	configure(t, []*edgetest.Node{n}, "a.example.com")
	hello := clientHello(t, "a.example.com")
	long := bytes.Repeat([]byte{0}, 17<<10)
	long[0], long[1], long[2] = 22, 3, 1
	long[3], long[4] = 0x40, 0 // a record of 16 KiB, in which a hello of 16 MiB begins
	long[5], long[6] = 1, 0xff
	for what, send := range map[string]func(net.Conn){
		"silent":     func(net.Conn) {},
		"half hello": func(c net.Conn) { _, _ = c.Write(hello[:len(hello)/2]) },
		"byte-wise": func(c net.Conn) {
			for i := range hello { // never done before the limit
				if _, err := c.Write(hello[i : i+1]); err != nil {
					return
				}
				time.Sleep(50 * time.Millisecond)
			}
		},
		"16 KiB and more": func(c net.Conn) { _, _ = c.Write(long) },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			conn, err := net.Dial("tcp", n.Addr("https"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			began := time.Now()
			go send(conn)
			_ = conn.SetReadDeadline(time.Now().Add(15 * time.Second))
			_, err = io.Copy(io.Discard, conn)
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				t.Fatal("still connected after 15 s")
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("let go after %s, want at most 10s", took)
			}
		})
	}
}

// clientHello is the first flight of a client.
func clientHello(t *testing.T, name string) []byte {
	t.Helper()
	here, there := net.Pipe()
	go func() {
		_ = tls.Client(here, &tls.Config{ServerName: name}).Handshake()
	}()
	defer here.Close()
	buf := make([]byte, 4<<10)
	k, err := there.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:k]
}

// E8: a flood of unknown names, with and without acme-tls/1.
func TestE8FloodOfUnknownNamesOrdersNothing(t *testing.T) {
	p := startPebble(t, edgetest.PebbleConfig{})
	n := certEdges(t, p, 1)
	configure(t, n, "ours.example.com")
	roots := p.Root(t)
	awaitCert(t, p, 1, "ours.example.com", roots, 30*time.Second)
	orders := p.Orders()
	var start, end runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&start)
	const flood = 2000
	var served atomic.Int64
	var wg sync.WaitGroup
	began := time.Now()
	for worker := range 16 {
		wg.Go(func() {
			for i := worker; i < flood; i += 16 {
				config := &tls.Config{ServerName: fmt.Sprintf("n%d.example.com", i), InsecureSkipVerify: true}
				if i%2 == 1 {
					config.NextProtos = []string{"acme-tls/1"}
				}
				if i%10 == 1 {
					config.ServerName = "ours.example.com" // allowed, and nothing is ordered
				}
				conn, err := tls.Dial("tcp", p.Addr(1), config)
				if err == nil {
					served.Add(1)
					conn.Close()
				}
			}
		})
	}
	wg.Wait()
	rate := float64(flood) / time.Since(began).Seconds()
	runtime.GC()
	runtime.ReadMemStats(&end)
	grown := (int64(end.HeapAlloc) - int64(start.HeapAlloc)) >> 10
	t.Logf("%.0f handshakes a second, %d certificates presented, memory grown by %d KiB, %d orders", rate, served.Load(), grown, p.Orders()-orders)
	if served.Load() != 0 {
		t.Errorf("%d of %d got a certificate", served.Load(), flood)
	}
	if p.Orders() != orders {
		t.Errorf("%d orders", p.Orders()-orders)
	}
	if grown > 16<<10 {
		t.Errorf("memory grew by %d KiB", grown)
	}
	if _, err := shake(p.Addr(1), "ours.example.com", roots); err != nil {
		t.Errorf("our own name afterwards: %v", err)
	}
}

// D18: a request for another site than the handshake's is refused and never reaches
// an app.
func TestD18AnotherSiteThanTheHandshakesIsMisdirected(t *testing.T) {
	var hits atomic.Int64
	app := edgetest.App(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits.Add(1) }))
	n := edgetest.StartNode(t)
	token := n.Token(t, "a.example.com", "b.example.com", "*.wild.example.com")
	edgetest.StartAgent(t, edgetest.AgentConfig{Token: token, Endpoint: app, Change: func(c *agent.Config, _ *forward.Config) {
		c.Hosts = []string{"a.example.com", "b.example.com", "*.wild.example.com"}
	}}, n)
	n.AwaitBackends(t, 1)
	for _, proto := range []string{"h1", "h2", "h3"} {
		t.Run(proto, func(t *testing.T) {
			ask := func(sni, host string) int {
				t.Helper()
				req, err := http.NewRequest(http.MethodGet, "https://"+sni+"/", nil)
				if err != nil {
					t.Fatal(err)
				}
				req.Host = host
				resp, err := n.Client(t, proto).Do(req)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				return resp.StatusCode
			}
			before := hits.Load()
			for _, other := range []string{"b.example.com", "x.wild.example.com", "edge.localhost"} {
				if got := ask("a.example.com", other); got != http.StatusMisdirectedRequest && got != http.StatusNotFound {
					t.Errorf("SNI a.example.com, host %s: %d, want 421", other, got)
				}
			}
			if got := ask("a.example.com", "b.example.com"); got != http.StatusMisdirectedRequest {
				t.Errorf("SNI a.example.com, host b.example.com: %d, want 421", got)
			}
			if got := hits.Load(); got != before {
				t.Errorf("the app saw %d misdirected requests", got-before)
			}
			// The same site and the same certificate: not misdirected.
			if got := ask("x.wild.example.com", "y.wild.example.com"); got != http.StatusOK {
				t.Errorf("another name of the same wildcard: %d, want 200", got)
			}
			if got := ask("a.example.com", "A.EXAMPLE.com."); got != http.StatusOK {
				t.Errorf("the same name in capitals: %d, want 200", got)
			}
		})
	}
}

// H15: SNI, Host, a token's hosts, sites and certificates mean the same by a name, or
// refuse it.
func TestH15OneNormaliserForAllNames(t *testing.T) {
	const name = "xn--strae-oqa.example.com" // straße
	n := edgetest.StartNode(t, func(c *config.Config) { c.ParkTimeout = 0 })
	edgetest.StartAgent(t, edgetest.AgentConfig{
		Token: n.Token(t, "Straße.Example.COM.", "kiosk.example.com", "host.example.com"), Endpoint: edgetest.App(t, edgetest.Named("statler")),
	}, n)
	n.AwaitBackends(t, 1)
	if hosts := n.Status().Backends[0].Hosts; len(hosts) != 3 {
		t.Fatalf("the token's hosts are %v", hosts)
	}
	source, err := certs.NewInternal(certs.InternalConfig{Dir: t.TempDir(), Allow: func(h string) (string, bool) { return h, true }}, edgetest.Logger(t))
	if err != nil {
		t.Fatal(err)
	}
	variants := []string{
		name, strings.ToUpper(name), name + ".", "straße.example.com", "STRAßE.example.com", "strasse.example.com",
		"kiosk.example.com", "KIOSK.example.com", "\u212aiosk.example.com", "\uff4biosk.example.com", "kio\u017fk.example.com",
		"host.example.com", "ho\u017ft.example.com", "host\u3002example\uff0ecom", "host.example.com..", "host..example.com", ".host.example.com",
		"%68ost.example.com", "host.example.com%2e", "host.example.com%00", "host.example.com\x00", "host .example.com", "host.example.com:443",
		"h\u00adost.example.com", "host.example\u200d.com", "host_.example.com", "*.example.com", "xn--host-.example.com", "127.0.0.1", "",
	}
	for _, v := range variants {
		canonical, nameErr := hostname.Canonical(v)
		// A certificate is for the canonical name, or there is none.
		cert, certErr := source.GetCertificate(&tls.ClientHelloInfo{ServerName: v})
		if (certErr == nil) != (nameErr == nil) {
			t.Errorf("%q: hostname says %v, certificates %v", v, nameErr, certErr)
		}
		if certErr == nil && (len(cert.Leaf.DNSNames) != 1 || cert.Leaf.DNSNames[0] != canonical) {
			t.Errorf("%q: a certificate for %q, want %q", v, cert.Leaf.DNSNames, canonical)
		}
		// A site is the canonical one, or there is none.
		err := n.ApplySites(t.Context(), []site.Spec{{Host: v}})
		if nameErr != nil && err == nil && !strings.HasPrefix(v, "*.") {
			t.Errorf("%q: no host name, but a site", v)
		}
		if nameErr == nil {
			if spec, ok := n.SiteSpec(canonical); err != nil || !ok || spec.Host != canonical {
				t.Errorf("%q: site %v of %q, %v", v, spec.Host, canonical, err)
			}
		}
		// What a client writes as Host reaches the app of the canonical name, or nobody.
		status := rawHost(t, n, v)
		served := nameErr == nil && (canonical == name || canonical == "kiosk.example.com" || canonical == "host.example.com")
		ascii := strings.IndexFunc(v, func(r rune) bool { return r > 126 }) < 0
		switch {
		case status == http.StatusOK && (!served && v != "host.example.com:443" || !ascii):
			t.Errorf("Host %q reaches an app", v)
		case status != http.StatusOK && served && ascii:
			t.Errorf("Host %q is answered %d, want the app", v, status)
		}
	}
}

// rawHost asks over a connection made for host.example.com's edge without SNI, with
// the bytes of host as they are.
func rawHost(t *testing.T, n *edgetest.Node, host string) int {
	t.Helper()
	conn, err := tls.Dial("tcp", n.Addr("https"), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", host)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

// A clock that is wrong makes no order, however expired everything looks.
func TestASkewedClockOrdersNothing(t *testing.T) {
	p := startPebble(t, edgetest.PebbleConfig{})
	r := newRig(t, p, filepath.Join(t.TempDir(), "store"), "", func(c *certs.ACMEConfig) { c.MaxSkew = 0 })
	r.plain(t, p)
	r.serve("clock.example.com")
	good := r.await(t, "clock.example.com", certs.StateValid)
	orders := p.Orders()
	for _, d := range []time.Duration{70 * 24 * time.Hour, 50 * 24 * time.Hour} { // due for renewal, then expired
		r.advance(d)
		r.Want("clock.example.com")
		edgetest.Eventually(t, "the order is put off", func() bool { return strings.Contains(r.host("clock.example.com").Error, "clock differs") })
		c, err := r.GetCertificate(&tls.ClientHelloInfo{ServerName: "clock.example.com"})
		if err != nil || hex.EncodeToString(c.Leaf.SerialNumber.Bytes()) != good.Serial {
			t.Errorf("the certificate is not presented any more: %v", err)
		}
		r.advance(10 * time.Minute)
	}
	if p.Orders() != orders {
		t.Errorf("%d orders by a wrong clock", p.Orders()-orders)
	}
}

// A subdomain of a wildcard is ordered for when it is first asked for.
func TestSubdomainsOfAWildcardAreOrderedOnDemand(t *testing.T) {
	p := startPebble(t, edgetest.PebbleConfig{})
	nodes := certEdges(t, p, 1)
	p.StartAgent(t, edgetest.AgentConfig{
		Token: nodes[0].Token(t, "*.apps.example.com"), Endpoint: edgetest.App(t, edgetest.Named("statler")),
		Change: func(cfg *agent.Config, _ *forward.Config) { cfg.Hosts = []string{"*.apps.example.com"} },
	}, nodes...)
	nodes[0].AwaitBackends(t, 1)
	if p.Orders() != 0 {
		t.Errorf("%d orders before anybody asked", p.Orders())
	}
	roots := p.Root(t)
	began := time.Now()
	leaf, err := shake(p.Addr(1), "one.apps.example.com", roots)
	if err != nil {
		t.Fatalf("the first visitor: %v", err)
	}
	t.Logf("the first visitor waited %s", time.Since(began).Round(time.Millisecond))
	if p.Orders() != 1 || len(leaf.DNSNames) != 1 || leaf.DNSNames[0] != "one.apps.example.com" {
		t.Errorf("%d orders, certificate for %v", p.Orders(), leaf.DNSNames)
	}
}
