package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"wormhole/edge/admin"
	"wormhole/edge/authority"
	"wormhole/edge/edgetest"
	"wormhole/edge/edgetest/oracle"
	"wormhole/shared/protocol"
)

// rawApp is an app that speaks no HTTP. The first line of a connection says what
// it does: "echo", "sum" (of what comes until the client's end), "send N" bytes,
// "stall N" (N bytes, and then so slowly that it never ends), "reset".
func rawApp(t *testing.T) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex // guards open
	open := map[net.Conn]bool{}
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			wg.Go(func() {
				serveRaw(c.(*net.TCPConn))
				_ = c.Close()
				mu.Lock()
				defer mu.Unlock()
				delete(open, c)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().String()
}

func serveRaw(c *net.TCPConn) {
	in := bufio.NewReaderSize(c, 256<<10)
	line, err := in.ReadString('\n')
	if err != nil {
		return
	}
	verb, arg, _ := strings.Cut(strings.TrimSpace(line), " ")
	n, _ := strconv.ParseInt(arg, 10, 64)
	switch verb {
	case "echo":
		_, _ = io.Copy(struct{ io.Writer }{c}, in)
	case "sum":
		_, _ = io.WriteString(c, sum(in))
	case "send":
		_, _ = io.Copy(struct{ io.Writer }{c}, &patterned{n: n})
	case "stall":
		_, err := io.Copy(struct{ io.Writer }{c}, &patterned{n: n})
		for err == nil {
			time.Sleep(50 * time.Millisecond)
			_, err = c.Write([]byte("."))
		}
	case "reset":
		_, _ = io.WriteString(c, "some")
		time.Sleep(50 * time.Millisecond)
		_ = c.SetLinger(0)
	}
}

// rawPort gives host a raw TCP port of the edge and returns its address. more are
// further keys of tcp, with a comma before each.
func rawPort(t *testing.T, e *edgetest.EdgeProcess, more string) (addr string) {
	t.Helper()
	return rawPortOf(t, e, host, more)
}

// rawPortOf is rawPort for any site.
func rawPortOf(t *testing.T, e *edgetest.EdgeProcess, site, more string) (addr string) {
	t.Helper()
	mustCLI(t, e.Dir, fmt.Sprintf("host: %s\ntcp: {listen: 0%s}\n", site, more), "site", "apply", "-f", "-")
	port := rawStatus(t, e, site)
	if port == nil || port.Error != "" {
		t.Fatalf("the site's port: %+v", port)
	}
	return port.Address
}

// rawStatus is what `edge status --json` says of a site's port, nil for nothing.
func rawStatus(t *testing.T, e *edgetest.EdgeProcess, site string) *admin.RawTCP {
	t.Helper()
	var s admin.Status
	edgetest.JSON(t, []byte(mustCLI(t, e.Dir, "", "status", "--json")), &s)
	for _, p := range s.RawTCP {
		if p.Host == site {
			return &p
		}
	}
	return nil
}

// dialRaw connects and says what it wants.
func dialRaw(t *testing.T, addr, line string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(2 * time.Minute))
	if _, err := io.WriteString(c, line+"\n"); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

// says exchanges a text with an app that echoes.
func says(c net.Conn, text string) error {
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != text {
		return fmt.Errorf("echo of %q is %q", text, got)
	}
	return nil
}

// isReset reports whether a connection ends in a reset and not in a proper end.
func isReset(c net.Conn) error {
	_, err := io.Copy(io.Discard, c)
	switch {
	case errors.Is(err, syscall.ECONNRESET):
		return nil
	case err == nil:
		return errors.New("the connection ended properly, want a reset")
	}
	return fmt.Errorf("want a reset: %w", err)
}

// turnedAway reports whether a new connection is reset, be it before connecting has
// returned.
func turnedAway(addr string) error {
	c, err := net.Dial("tcp", addr)
	if errors.Is(err, syscall.ECONNRESET) {
		return nil
	} else if err != nil {
		return err
	}
	defer c.Close()
	return isReset(c)
}

func TestH17RawTCPPorts(t *testing.T) {
	size := scaled[int64](64<<20, 1<<30)
	e := binaries.StartEdge(t)
	app := rawApp(t)
	mine := binaries.Token(t, e.Dir, "--host", host, "--kind", "http,tcp")
	sidecar(t, e, mine, app, "app")
	// Nobody else's: of a token without the kind, and of another host.
	sidecar(t, e, binaries.Token(t, e.Dir, "--host", host), edgetest.App(t, edgetest.Named("http only")), "http only")
	sidecar(t, e, binaries.Token(t, e.Dir, "--host", otherHost, "--kind", "tcp"), edgetest.App(t, edgetest.Named("foreign")), "foreign")
	e.AwaitReady(t, 3)
	addr := rawPort(t, e, "")
	wrong := 0
	check := func(what string, err error) {
		if err != nil {
			wrong++
			t.Errorf("%s: %v", what, err)
		}
	}

	// Both directions, and one after the other has ended.
	for i := range 20 { // the choice among backends is random
		c := dialRaw(t, addr, "echo")
		check("echo", says(c, fmt.Sprint("hello ", i)))
		_ = c.CloseWrite()
		rest, err := io.ReadAll(c)
		if err == nil && len(rest) > 0 {
			err = fmt.Errorf("%q", rest)
		}
		check("end of the echo", err)
	}
	want := sum(&patterned{n: size})
	began := time.Now()
	up := dialRaw(t, addr, "sum")
	_, err := io.Copy(struct{ io.Writer }{up}, &patterned{n: size})
	check("upload", err)
	_ = up.CloseWrite()
	got, err := io.ReadAll(up)
	if err == nil && string(got) != want {
		err = errors.New("altered")
	}
	check("answer after the client's end", err)
	down := dialRaw(t, addr, fmt.Sprintf("send %d", size))
	if got := sum(down); got != want {
		check("download", errors.New("altered or cut"))
	}
	took := time.Since(began)

	// Ends that are none.
	check("app that resets", isReset(dialRaw(t, addr, "reset")))
	foreign := "host: " + otherHost + "\ntcp: %s\n"
	other := edgetest.FreePort(t)
	mustCLI(t, e.Dir, fmt.Sprintf(foreign, other), "site", "apply", "-f", "-")
	if c := dialRaw(t, "127.0.0.1:"+other, "echo"); says(c, "x") == nil {
		check("the other site's port", errors.New("leads to this site's app"))
	}

	// Ports that nobody gets.
	_, adminPort, _ := net.SplitHostPort(e.Status.Addresses["admin"])
	_, mineNow, _ := net.SplitHostPort(addr)
	_, taken, _ := net.SplitHostPort(app)
	refused := 0
	for what, tcp := range map[string]string{
		"privileged": "443", "no port": "65536", "no number": `"x:y"`, "the edge's own": adminPort, "of another site": mineNow,
		"of another program": taken, "of another machine": `"192.0.2.1:15432"`, "negative limit": "{listen: 0, max_connections: -1}",
	} {
		_, said, status := cli(t, e.Dir, fmt.Sprintf("host: third.example.com\n---\nhost: fourth.example.com\ntcp: %s\n", tcp), "site", "apply", "-f", "-")
		if status == 0 || !strings.Contains(said, "tcp.") {
			check(what, fmt.Errorf("exit status %d: %s", status, said))
			continue
		}
		refused++
	}
	if rawStatus(t, e, "fourth.example.com") != nil || strings.Contains(mustCLI(t, e.Dir, "", "site", "list"), "third.example.com") {
		check("a refused apply", errors.New("changed something"))
	}

	// A port that closes leaves its connections alone.
	staying := dialRaw(t, addr, "echo")
	check("before", says(staying, "a"))
	mustCLI(t, e.Dir, "", "site", "delete", host)
	check("after the port is gone", says(staying, "b"))
	if c, err := net.Dial("tcp", addr); err == nil {
		_ = c.Close()
		check("the deleted port", errors.New("still open"))
	}
	_ = staying.CloseWrite()
	_, err = io.ReadAll(staying)
	check("its end", err)

	oracle.Row{
		ID:     "H17",
		Done:   fmt.Sprintf("a site's raw TCP port: echoes, half-closes, %s each way; a token without the kind, a foreign site, %d ports that nobody gets; delete with a connection open", mib(size), refused),
		Figure: fmt.Sprintf("%d wrong; both hashes equal after %s", wrong, ms(took)),
		Limit:  "owner only, exact hash, half-close kept",
		OK:     wrong == 0 && refused == 8,
	}.Verdict(t)
}

func TestH17RawTCPConnectionsMayBeIdle(t *testing.T) {
	mostlyWaits(t)
	e := binaries.StartEdge(t)
	sidecar(t, e, binaries.Token(t, e.Dir, "--host", host, "--kind", "tcp"), rawApp(t), "app")
	e.AwaitReady(t, 1)
	quiet := scaled(4*time.Second, 2*time.Minute)
	patient := dialRaw(t, rawPort(t, e, ""), "echo")
	if err := says(patient, "a"); err != nil {
		t.Fatal(err)
	}
	hasty := dialRaw(t, rawPort(t, e, ", idle_timeout: 1s"), "echo") // the other port closes, its connection stays
	if err := says(hasty, "a"); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	err := isReset(hasty)
	cut := time.Since(began)
	if err != nil {
		t.Error(err)
	}
	time.Sleep(quiet)
	_ = patient.SetDeadline(time.Now().Add(edgetest.Patience))
	kept := says(patient, "b")
	if kept != nil {
		t.Error(kept)
	}
	oracle.Row{
		ID: "H17 idle", Done: fmt.Sprintf("raw TCP without a byte for %s, and with idle_timeout 1s", quiet),
		Figure: fmt.Sprintf("alive: %t; reset after %s", kept == nil, ms(cut)), Limit: "kept (2 h by default); reset after the timeout",
		OK: kept == nil && err == nil && cut >= 700*time.Millisecond && cut < 3*time.Second,
	}.Verdict(t)
}

func TestRawTCPWaitsForItsOnlyBackend(t *testing.T) {
	mostlyWaits(t)
	e := binaries.StartEdge(t)
	token := binaries.Token(t, e.Dir, "--host", host, "--kind", "tcp")
	app := rawApp(t)
	first := sidecar(t, e, token, app, "first")
	e.AwaitReady(t, 1)
	addr := rawPort(t, e, "")
	first.Signal(syscall.SIGTERM)
	first.Exit(t, edgetest.Patience)
	c := dialRaw(t, addr, "echo")
	sidecar(t, e, token, app, "second")
	if err := says(c, "still here"); err != nil {
		t.Error(err)
	}
	// Its token has no kind but tcp, so it is nobody to ask for HTTP.
	if status, _, _, err := ask(e.Client(t, "h1"), "/"); err != nil || status != http.StatusServiceUnavailable {
		t.Errorf("HTTP of a tcp token: %d, %v, want 503", status, err)
	}
}

func TestRawTCPLimits(t *testing.T) {
	e := binaries.StartEdge(t)
	sidecar(t, e, binaries.Token(t, e.Dir, "--host", host, "--kind", "tcp"), rawApp(t), "app")
	e.AwaitReady(t, 1)
	addr := rawPort(t, e, ", max_connections: 2")
	first, second := dialRaw(t, addr, "echo"), dialRaw(t, addr, "echo")
	for _, c := range []net.Conn{first, second} {
		if err := says(c, "a"); err != nil {
			t.Fatal(err)
		}
	}
	if err := turnedAway(addr); err != nil {
		t.Errorf("one more than the limit: %v", err)
	}
	_ = first.Close()
	edgetest.Eventually(t, "a place is free", func() bool { return rawStatus(t, e, host).Connections == 1 })
	if err := says(dialRaw(t, addr, "echo"), "b"); err != nil {
		t.Error(err)
	}
	mustCLI(t, e.Dir, fmt.Sprintf("host: %s\ntcp: %q\ndeny: [127.0.0.1]\n", host, addr), "site", "apply", "-f", "-")
	if err := turnedAway(addr); err != nil {
		t.Errorf("a denied address: %v", err)
	}
	if err := says(second, "c"); err != nil {
		t.Errorf("a connection from before the change: %v", err)
	}
}

func TestRawPortsAreHandedToTheSuccessor(t *testing.T) {
	e := binaries.StartEdge(t, "--drain-timeout", "3s")
	sidecar(t, e, binaries.Token(t, e.Dir, "--host", host, "--kind", "tcp"), rawApp(t), "app")
	e.AwaitReady(t, 1)
	addr := rawPort(t, e, "")
	old := dialRaw(t, addr, "echo")
	if err := says(old, "a"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var asked, failed atomic.Int64
	wg.Go(func() {
		for ctx.Err() == nil {
			asked.Add(1)
			c, err := net.Dial("tcp", addr)
			if err == nil {
				_ = c.SetDeadline(time.Now().Add(edgetest.Patience))
				_, _ = io.WriteString(c, "echo\n")
				err = says(c, "x")
				_ = c.Close()
			}
			if err != nil {
				failed.Add(1)
				t.Errorf("during the upgrade: %v", err)
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
	time.Sleep(200 * time.Millisecond)
	e.Signal(syscall.SIGUSR2)
	edgetest.Eventually(t, "the successor serves", func() bool { return strings.Contains(e.Output(), "successor serves") })
	if err := says(old, "b"); err != nil {
		t.Errorf("a connection from before: %v", err)
	}
	if code := e.Exit(t, edgetest.Patience); code != 0 { // resets what is left of the old at its deadline
		t.Errorf("exit status %d", code)
	}
	if err := isReset(old); err != nil {
		t.Errorf("at the deadline: %v", err)
	}
	time.Sleep(200 * time.Millisecond)
	cancel()
	wg.Wait()
	if port := rawStatus(t, e, host); port == nil || port.Address != addr {
		t.Errorf("the successor's port: %+v, want %s", port, addr)
	}
	t.Logf("%d of %d connections failed", failed.Load(), asked.Load())
	mustCLI(t, e.Dir, "", "drain")
	edgetest.Eventually(t, "the successor is gone", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	})
}

func TestRawTCPThroughAnotherEdge(t *testing.T) {
	edges := binaries.StartCluster(t, 2)
	far := edges[0]
	token := far.CLI(t, "token", "issue", "--host", host, "--kind", "tcp")
	edgetest.Start(t, []string{
		"WORMHOLE_TOKEN=" + token, "WORMHOLE_EDGE=" + edges[1].Door, "WORMHOLE_CA_FILE=" + far.Status.CA,
		"WORMHOLE_ENDPOINT=" + rawApp(t),
		"WORMHOLE_EDGES_MIN=1", "WORMHOLE_EDGES_MAX=1",
	}, binaries.Wormhole)
	edges[1].AwaitReady(t, 1)
	mustCLI(t, far.Dir, fmt.Sprintf("host: %s\ntcp: {listen: 0, idle_timeout: 30s}\n", host), "site", "apply", "-f", "-")
	// The rules reach both edges, and each opens a port.
	for _, e := range edges {
		edgetest.Eventually(t, "the port is open", func() bool { p := rawStatus(t, e.EdgeProcess, host); return p != nil && p.Error == "" })
		addr := rawStatus(t, e.EdgeProcess, host).Address
		c := dialRaw(t, addr, "sum")
		_, _ = io.Copy(struct{ io.Writer }{c}, &patterned{n: 4 << 20})
		_ = c.CloseWrite()
		got, err := io.ReadAll(c)
		if err != nil || string(got) != sum(&patterned{n: 4 << 20}) {
			t.Errorf("through %s: %d bytes, %v", e.Door, len(got), err)
		}
		if err := isReset(dialRaw(t, addr, "reset")); err != nil {
			t.Errorf("through %s: %v", e.Door, err)
		}
	}
	if n := len(backends(t, far.EdgeProcess)); n != 0 {
		t.Errorf("the agent has %d tunnels to the edge that should have none", n)
	}
}

func TestATokenOfFewerKindsIsNoRefresh(t *testing.T) {
	n := edgetest.StartNode(t)
	issue := func(kinds ...string) string {
		issued, err := n.Authority().IssueToken(t.Context(), authority.IssueRequest{Hosts: []string{host}, Kinds: kinds})
		if err != nil {
			t.Fatal(err)
		}
		return issued.Token
	}
	in, err := intrude(t, n, protocol.Hello{Token: issue("http", "tcp")})
	if err != nil {
		t.Fatal(err)
	}
	if reject := in.refresh(t, issue("http")); reject == nil || reject.Code != protocol.CodeHostForbidden {
		t.Errorf("refresh without tcp: %v, want %s", reject, protocol.CodeHostForbidden)
	}
	if reject := in.refresh(t, issue("tcp", "http", "tls")); reject != nil {
		t.Errorf("refresh with more kinds: %v", reject)
	}
}
