package regions

import (
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"wormhole/edge/edgetest"
	"wormhole/edge/edgetest/oracle"
)

// zone is what the edges of these tests share; the addresses are for documentation.
const zone = "edge.localhost"

// named starts n edges that answer queries.
func named(t *testing.T, n int) []*edge {
	t.Helper()
	var edges []*edge
	for i := range n {
		edges = append(edges, binaries.JoinCluster(t, edges, "--hostname", fmt.Sprintf("e%d.%s", i+1, zone), "--advertise", "localhost",
			"--dns", "127.0.0.1:"+edgetest.KeptPort(t), "--dns-zone", zone, "--dns-address", address(i), "--dns-ttl", "30s",
			"--dns-place", "127.0.0.0/8=r3/r2"))
	}
	for _, e := range edges {
		e.AwaitPeers(t, n-1)
	}
	return edges
}

func address(i int) string { return fmt.Sprintf("203.0.113.%d", i+1) }

// resolve asks one edge over TCP, which is not limited in rate.
func resolve(t *testing.T, e *edge, name string) (rcode int, addrs []string) {
	t.Helper()
	c := &dns.Client{Net: "tcp", Timeout: 5 * time.Second}
	m, _, err := c.Exchange(new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA), e.Status.Addresses["dns"])
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	for _, rr := range m.Answer {
		addrs = append(addrs, rr.(*dns.A).A.String())
	}
	return m.Rcode, addrs
}

func awaitNamed(t *testing.T, e *edge, name string, want ...string) (after time.Duration, first []string) {
	t.Helper()
	began := time.Now()
	edgetest.Eventually(t, fmt.Sprintf("%s is %v", name, want), func() bool {
		_, first = resolve(t, e, name)
		got := slices.Sorted(slices.Values(first))
		return slices.Equal(got, want)
	})
	return time.Since(began), first
}

// An edge that dies leaves the answers of the others within five seconds, however it
// dies, and is named again when it is back.
func TestDeadEdgesLeaveTheAnswersOfDNS(t *testing.T) {
	edges := named(t, 3)
	all := []string{address(0), address(1), address(2)}
	for _, e := range edges {
		if _, order := awaitNamed(t, e, zone, all...); !slices.Equal(order, []string{address(2), address(1), address(0)}) {
			t.Errorf("the answer is %v, want what is near first", order)
		}
	}
	// A site is known at every edge, whichever has its agent.
	app := edgetest.App(t, edgetest.Named("app"))
	host := "app." + zone
	if rcode, _ := resolve(t, edges[2], host); rcode != dns.RcodeNameError {
		t.Errorf("a site that nobody serves: %s", dns.RcodeToString[rcode])
	}
	work(t, edges[0].Status.CA, issue(t, edges[0], host), "app", app, 1, edges[0].Door).awaitTunnels(t, 1)
	for _, e := range edges {
		awaitNamed(t, e, host, all...)
	}

	killed, silent := "", ""
	worst := time.Duration(0)
	for _, how := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP} {
		edges[1].Signal(how)
		began := time.Now()
		for _, e := range []*edge{edges[0], edges[2]} {
			awaitNamed(t, e, zone, address(0), address(2))
			awaitNamed(t, e, host, address(0), address(2))
		}
		after := time.Since(began)
		worst = max(worst, after)
		// Its own name is its own still: who asks for it wants this edge and no other.
		if _, own := resolve(t, edges[0], "e2."+zone); !slices.Equal(own, []string{address(1)}) {
			t.Errorf("the dead edge's own name has %v", own)
		}
		if how == syscall.SIGKILL {
			killed = after.Round(time.Millisecond).String()
			edges[1].Restart(t)
		} else {
			silent = after.Round(time.Millisecond).String()
			edges[1].Signal(syscall.SIGCONT)
		}
		began = time.Now()
		for _, e := range []*edge{edges[0], edges[2]} {
			awaitNamed(t, e, zone, all...)
		}
		t.Logf("named again %s after it was back", time.Since(began).Round(time.Millisecond))
	}
	oracle.Row{
		ID: "B1", Done: "DNS: one edge of three killed, then stalled", OK: worst <= 5*time.Second,
		Figure: fmt.Sprintf("out of the answers after %s killed, %s stalled", killed, silent), Limit: "5 s",
	}.Verdict(t)

	// An edge that is stopped in order leaves before it goes.
	edges[1].Signal(syscall.SIGTERM)
	for _, e := range []*edge{edges[0], edges[2]} {
		awaitNamed(t, e, zone, address(0), address(2))
	}
	if status := edges[1].Exit(t, 15*time.Second); status != 0 {
		t.Errorf("exit status %d", status)
	}
}

// An edge alone names itself, and goes on doing so while a successor takes over.
func TestAnEdgeAloneAnswersWithItself(t *testing.T) {
	if _, err := exec.LookPath("dig"); err != nil {
		t.Fatal("dig is missing: apt-get install bind9-dnsutils")
	}
	e := binaries.StartEdge(t, "--hostname", "e1."+zone, "--dns", "127.0.0.1:0", "--dns-zone", zone, "--dns-address", "203.0.113.1,2001:db8::1")
	host, port, err := net.SplitHostPort(e.Status.Addresses["dns"])
	if err != nil {
		t.Fatal(err)
	}
	dig := func(args ...string) string {
		out, err := exec.Command("dig", append([]string{"@" + host, "-p", port, "+short", "+tries=3", "+time=2"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("dig: %v: %s", err, out)
		}
		return strings.TrimSpace(string(out))
	}
	check := func() {
		t.Helper()
		for args, want := range map[string]string{
			zone + " A": "203.0.113.1", zone + " AAAA": "2001:db8::1", "+tcp e1." + zone + " A": "203.0.113.1", zone + " NS": "e1." + zone + ".",
			"nobody." + zone + " A": "",
		} {
			if got := dig(strings.Fields(args)...); got != want {
				t.Errorf("%s: %q, want %q", args, got, want)
			}
		}
	}
	check()
	// The shared name has a certificate like the edge's own.
	resp, err := e.Client(t, "h1").Get("https://" + zone + "/")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != 404 {
		t.Errorf("https://%s/: %d", zone, resp.StatusCode)
	}
	old := e.Cmd.Process.Pid
	e.Signal(syscall.SIGUSR2)
	if status := e.Exit(t, 30*time.Second); status != 0 {
		t.Errorf("the predecessor's exit status is %d", status)
	}
	edgetest.Eventually(t, "the successor is there", func() bool { return e.Refresh() == nil })
	if got := e.Status.Addresses["dns"]; got != net.JoinHostPort(host, port) {
		t.Errorf("the successor answers at %s", got)
	}
	check()
	if out, err := exec.Command(binaries.Edge, "drain", "--data-dir", e.Dir).CombinedOutput(); err != nil {
		t.Errorf("drain of the successor of %d: %v: %s", old, err, out)
	}
	edgetest.Eventually(t, "the successor has ended", func() bool { return e.Refresh() != nil })
}
