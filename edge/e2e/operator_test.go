package e2e

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wormhole/edge/admin"
	"wormhole/edge/authority"
	"wormhole/edge/edgetest"
)

// cli runs the real command line on the edge's data directory.
func cli(t *testing.T, dir, stdin string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := exec.Command(binaries.Edge, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "EDGE_DATA_DIR=" + dir}
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run()
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func mustCLI(t *testing.T, dir, stdin string, args ...string) string {
	t.Helper()
	out, errs, status := cli(t, dir, stdin, args...)
	if status != 0 {
		t.Fatalf("edge %s: exit status %d: %s", strings.Join(args, " "), status, errs)
	}
	return out
}

func TestNothingButHealthAndMetricsIsOpen(t *testing.T) {
	n := edgetest.StartNode(t)
	credential, err := os.ReadFile(filepath.Join(n.Config.DataDir, admin.CredentialFile))
	if err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(filepath.Join(n.Config.DataDir, admin.CredentialFile)); info.Mode().Perm() != 0o600 {
		t.Errorf("the credential has mode %v, want 0600", info.Mode().Perm())
	}
	ask := func(method, path, host, bearer, body string) (int, string) {
		req, _ := http.NewRequest(method, "http://"+n.Addr("admin")+path, strings.NewReader(body))
		if host != "" {
			req.Host = host
		}
		if bearer != "" {
			req.Header.Set("Authorization", "Bearer "+bearer)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(text)
	}
	good := strings.TrimSpace(string(credential))
	for _, path := range []string{"/livez", "/readyz", "/metrics", "/"} {
		if status, _ := ask("GET", path, "", "", ""); status != 200 {
			t.Errorf("GET %s without credential: %d, want 200", path, status)
		}
		if status, _ := ask("GET", path, "evil.example.com", good, ""); status != http.StatusMisdirectedRequest {
			t.Errorf("GET %s under a foreign name: %d, want 421", path, status)
		}
	}
	calls := map[string]string{
		"GET /v1/status": "", "POST /v1/drain": "", "GET /v1/tokens": "", "POST /v1/tokens": `{"hosts":["a.example.com"]}`,
		"POST /v1/tokens/inspect": `{"id":"x"}`, "POST /v1/tokens/revoke": `{"id":"x"}`, "GET /v1/keys": "", "POST /v1/keys/rotate": "",
		"POST /v1/keys/remove": `{"id":"x"}`, "GET /v1/sites": "", "GET /v1/usage": "", "GET /v1/sites/a.example.com": "", "POST /v1/sites": "host: a.example.com",
		"DELETE /v1/sites/a.example.com": "", "GET /v1/anything": "", "POST /metrics": "", "GET /debug/pprof/": "",
	}
	for call, body := range calls {
		method, path, _ := strings.Cut(call, " ")
		for name, c := range map[string]struct {
			host, bearer string
			want         []int
		}{
			"no credential":    {"", "", []int{401, 405}},
			"wrong credential": {"", good[1:], []int{401, 405}},
			"foreign name":     {"evil.example.com:7080", good, []int{421, 405}},
		} {
			status, _ := ask(method, path, c.host, c.bearer, body)
			if status != c.want[0] && status != c.want[1] {
				t.Errorf("%s with %s: %d, want %d", call, name, status, c.want[0])
			}
		}
	}
	if got := n.Status(); got.State != "serving" || got.Sites != 0 {
		t.Errorf("state changed without a credential: %+v", got)
	}
	if list, err := n.Authority().List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("%d tokens were issued without a credential, err %v", len(list), err)
	}
	_, metrics := ask("GET", "/metrics", "", "", "")
	if !strings.Contains(metrics, "wormhole_edge_requests_total") {
		t.Error("the metrics have no wormhole_edge_requests_total")
	}
}

func TestTokensFromTheCommandLine(t *testing.T) {
	for _, mode := range []string{"offline", "running"} {
		t.Run(mode, func(t *testing.T) {
			dir := t.TempDir()
			if mode == "running" {
				binaries.StartEdgeIn(t, dir)
			}
			tok := mustCLI(t, dir, "", "token", "issue", "--host", "app.example.com", "--name", "app", "--tag", "tier=gold")
			if strings.Count(tok, "\n") != 1 || strings.Count(tok, ".") != 2 {
				t.Errorf("token issue printed %q, want the token alone", tok)
			}
			var list []authority.TokenInfo
			edgetest.JSON(t, []byte(mustCLI(t, dir, "", "token", "list", "--json")), &list)
			if len(list) != 1 || list[0].Name != "app" || list[0].Status != "valid" {
				t.Fatalf("list is %+v", list)
			}
			var info authority.Inspection
			edgetest.JSON(t, []byte(mustCLI(t, dir, tok, "token", "inspect", "-", "--json")), &info)
			if info.ID != list[0].ID || info.Tags["tier"] != "gold" || info.Code != "" {
				t.Errorf("inspect says %+v", info)
			}
			mustCLI(t, dir, "", "token", "revoke", "app")
			edgetest.JSON(t, []byte(mustCLI(t, dir, tok, "token", "inspect", "-", "--json")), &info)
			if info.Status != "revoked" {
				t.Errorf("after revoke the status is %q", info.Status)
			}
			old := mustCLI(t, dir, "", "key", "list")
			mustCLI(t, dir, "", "key", "rotate")
			if now := mustCLI(t, dir, "", "key", "list"); strings.Count(now, "\n") != strings.Count(old, "\n")+1 {
				t.Errorf("after rotate the keys are\n%s", now)
			}
			_, errs, status := cli(t, dir, "", "token", "issue", "--host", "*.com", "--host", "a b", "--ttl", "-1h")
			if status != 78 || !strings.Contains(errs, "*.com") || !strings.Contains(errs, "a b") || !strings.Contains(errs, "ttl") {
				t.Errorf("bad request: status %d, faults:\n%s", status, errs)
			}
		})
	}
}

func TestSitesFromTheCommandLine(t *testing.T) {
	e := binaries.StartEdge(t)
	spec := "host: App.Example.com\nbackend_header: X-Internal-Service\nhsts: {max_age: 1h}\nparking: {wait: 0s}\n"
	if out := mustCLI(t, e.Dir, spec, "site", "validate"); !strings.Contains(out, "app.example.com") {
		t.Errorf("validate printed %q", out)
	}
	if _, errs, status := cli(t, e.Dir, "host: a.example.com\nbakend_header: X\nmax_body: lots\n", "site", "apply"); status != 78 || !strings.Contains(errs, "bakend_header") || !strings.Contains(errs, "max_body") {
		t.Errorf("bad site: status %d, %s", status, errs)
	}
	mustCLI(t, e.Dir, spec, "site", "apply", "-f", "-")
	if out := mustCLI(t, e.Dir, "", "site", "show", "app.example.com"); !strings.Contains(out, "X-Internal-Service") {
		t.Errorf("show printed %q", out)
	}
	resp, err := e.Client(t, "h1").Get("https://" + host + "/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 503 || resp.Header.Get("Strict-Transport-Security") != "max-age=3600" {
		t.Errorf("known site without a backend: %s, HSTS %q", resp.Status, resp.Header.Get("Strict-Transport-Security"))
	}

	// It outlives the edge.
	e.Signal(15)
	if code := e.Exit(t, 10*time.Second); code != 0 {
		t.Errorf("edge ended with %d after SIGTERM", code)
	}
	again := binaries.StartEdgeIn(t, e.Dir)
	if out := mustCLI(t, again.Dir, "", "site", "list"); !strings.Contains(out, "app.example.com") || !strings.Contains(out, "applied") {
		t.Errorf("after a restart the sites are\n%s", out)
	}
	mustCLI(t, again.Dir, "", "site", "delete", "app.example.com")
	if out := mustCLI(t, again.Dir, "", "site", "list"); strings.Contains(out, "app.example.com") {
		t.Errorf("after delete the sites are\n%s", out)
	}
	if _, _, status := cli(t, again.Dir, "", "site", "delete", "app.example.com"); status == 0 {
		t.Error("deleting an unknown site is no failure")
	}
}

func TestAHostThatWasServedIsKnownAfterARestart(t *testing.T) {
	e := binaries.StartEdge(t)
	token := binaries.Token(t, e.Dir, "--host", host)
	p := copyOf(t, e, token, "statler")
	e.AwaitReady(t, 1)
	p.Signal(15)
	p.Exit(t, 10*time.Second)
	e.Signal(15)
	e.Exit(t, 10*time.Second)
	again := binaries.StartEdgeIn(t, e.Dir, "--park-timeout", "0s")
	status, body, _, err := ask(again.Client(t, "h1"), "/")
	if err != nil || status != 503 || !strings.Contains(body, "no_backend") {
		t.Errorf("answer is %d %q, err %v; want 503 no_backend", status, body, err)
	}
}

func TestFileCertificatesAreServed(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	out, err := exec.Command("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
		"-subj", "/CN=test", "-addext", "subjectAltName=DNS:*.example.com,DNS:edge.localhost,DNS:localhost", "-keyout", key, "-out", cert).CombinedOutput()
	if err != nil {
		t.Fatalf("openssl: %v\n%s", err, out)
	}
	e := binaries.StartEdge(t, "--tls", "files", "--cert", cert, "--key", key)
	token := binaries.Token(t, e.Dir, "--host", host)
	e.Status.CA = cert
	copyOf(t, e, token, "statler")
	edgetest.Eventually(t, "backend", func() bool {
		_ = e.Refresh()
		return len(e.Status.Backends) == 1 && e.Status.Backends[0].State == "ready"
	})
	_, port, _ := net.SplitHostPort(e.Status.Addresses["https"])
	curl := func(name string) string {
		out, _ := exec.Command("curl", "-sS", "--max-time", "10", "--cacert", cert, "--resolve", name+":"+port+":127.0.0.1",
			"-H", "Accept: application/json", "https://"+net.JoinHostPort(name, port)+"/").CombinedOutput()
		return string(out)
	}
	if got := curl(host); got != "You have reached statler\n" {
		t.Errorf("curl printed %q", got)
	}
	if got := curl("unknown.example.com"); !strings.Contains(got, "no_such_site") {
		t.Errorf("unknown host under the same certificate: %q, want no_such_site", got)
	}
}

func TestDrainByCommandEndsTheEdge(t *testing.T) {
	e := binaries.StartEdge(t, "--drain-delay", "1s")
	mustCLI(t, e.Dir, "", "drain")
	edgetest.Eventually(t, "readiness false", func() bool {
		resp, err := http.Get("http://" + e.Status.Addresses["admin"] + "/readyz")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusServiceUnavailable
	})
	if code := e.Exit(t, 10*time.Second); code != 0 {
		t.Errorf("edge ended with %d", code)
	}
	if _, errs, status := cli(t, e.Dir, "", "status"); status == 0 || !strings.Contains(errs, "no edge is running") {
		t.Errorf("status of a stopped edge: %d %q", status, errs)
	}
}

func TestGarbageOnThePublicPortDisturbsNobody(t *testing.T) {
	n := serve(t, edgetest.Named("statler"))
	addr := n.Addr("https")
	garbage := [][]byte{bytes.Repeat([]byte{0xff}, 64<<10), []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), {22, 3, 1, 0xff, 0xff}, nil}
	began := time.Now()
	done := make(chan time.Duration, 64)
	for i := range 64 {
		go func() {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				done <- 0
				return
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			_, _ = c.Write(garbage[i%len(garbage)])
			_, _ = io.Copy(io.Discard, c)
			done <- time.Since(began)
		}()
	}
	client := n.Client(t, "h2")
	for range 50 {
		if status, _, _, err := ask(client, "/"); err != nil || status != 200 {
			t.Fatalf("a visitor was disturbed: %d %v", status, err)
		}
	}
	for range 64 {
		if took := <-done; took > 7*time.Second {
			t.Errorf("garbage was held for %s, want 5 s or so", took)
		}
	}
}

func TestAnEdgeOutlivesWhoReadsItsLog(t *testing.T) {
	dir := t.TempDir()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binaries.Edge, "serve", "--data-dir", dir, "--hostname", "edge.localhost", "--https", "127.0.0.1:0", "--http", "127.0.0.1:0",
		"--admin", "127.0.0.1:0", "--drain-delay", "0s", "--drain-timeout", "1s")
	cmd.Stdout, cmd.Stderr = write, write
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer func() { _ = cmd.Process.Kill() }()
	_ = write.Close()
	up := func() bool { _, _, status := cli(t, dir, "", "status"); return status == 0 }
	edgetest.Eventually(t, "edge is up", up)
	_ = read.Close()
	mustCLI(t, dir, "", "token", "issue", "--host", host) // is logged
	if _, errs, status := cli(t, dir, "", "drain"); status != 0 {
		t.Errorf("drain: exit status %d: %s", status, errs)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("the edge ended with %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the edge did not end")
	}
}
