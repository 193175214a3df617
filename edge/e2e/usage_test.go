package e2e

import (
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"wormhole/edge/admin"
	"wormhole/edge/edgetest"
)

// One edge: what sites use from the command line, with WebSockets and raw TCP that
// are still open, over a restart, a deleted site, a backup and a restore.
func TestUsageFromTheCommandLine(t *testing.T) {
	e := binaries.StartEdge(t, "--usage-interval", "1h")
	app := edgetest.App(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/ws" {
			c, err := websocket.Accept(w, r, nil)
			if err == nil {
				_, _, _ = c.Read(r.Context())
				_ = c.Write(r.Context(), websocket.MessageBinary, make([]byte, 100))
				_, _, _ = c.Read(r.Context())
				_ = c.CloseNow()
			}
			return
		}
		if r.URL.Path == "/missing" {
			w.WriteHeader(404)
		}
		_, _ = io.WriteString(w, "hello")
	}))
	edgetest.Start(t, e.AgentEnv(binaries.Token(t, e.Dir, "--host", host)), binaries.Wormhole, "--endpoint", app)
	edgetest.Start(t, e.AgentEnv(binaries.Token(t, e.Dir, "--host", "db.example.com", "--kind", "tcp")), binaries.Wormhole, "--endpoint", rawApp(t))
	e.AwaitReady(t, 2)

	visitor := e.Client(t, "h1")
	get := func(url string) {
		t.Helper()
		resp, err := visitor.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	}
	get("https://" + host + "/")
	get("https://" + host + "/")
	get("https://" + host + "/missing")
	ws, _, err := websocket.Dial(t.Context(), "wss://"+host+"/ws", &websocket.DialOptions{HTTPClient: visitor})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	if err := ws.Write(t.Context(), websocket.MessageBinary, make([]byte, 50)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ws.Read(t.Context()); err != nil {
		t.Fatal(err)
	}
	raw, err := net.Dial("tcp", rawPortOf(t, e, "db.example.com", ""))
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if _, err := io.WriteString(raw, "echo\n12345"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(raw, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	for _, invented := range []string{"nobody.example.com", "x." + host} {
		conn := e.Client(t, "h1")
		if resp, err := conn.Get("https://" + invented + "/"); err == nil {
			_ = resp.Body.Close()
		}
	}

	listing := func(dir string, args ...string) (u admin.Usage) {
		t.Helper()
		edgetest.JSON(t, []byte(mustCLI(t, dir, "", append([]string{"usage", "--json"}, args...)...)), &u)
		return u
	}
	var u admin.Usage
	edgetest.Eventually(t, "bytes of open connections are counted", func() bool {
		u = listing(e.Dir, "--sort", "name")
		return len(u.Sites) == 2 && u.Sites[1].BytesOut == 5 && u.Sites[0].BytesOut >= 3*5+102
	})
	web, db := u.Sites[0], u.Sites[1]
	if web.Host != host || web.Requests != 3 || web.Classes["2xx"] != 2 || web.Classes["4xx"] != 1 || web.BytesIn < 50 || web.TCP != 0 {
		t.Errorf("the web site used %+v", web)
	}
	if db.TCP != 1 || db.BytesIn != 10 || db.Requests != 0 {
		t.Errorf("the database used %+v", db)
	}
	_ = ws.Close(websocket.StatusNormalClosure, "")
	_ = raw.(*net.TCPConn).CloseWrite()
	_, _ = io.ReadAll(raw)
	edgetest.Eventually(t, "the WebSocket is a request", func() bool {
		web = listing(e.Dir, host).Sites[0]
		return web.Requests == 4 && web.Classes["1xx"] == 1
	})
	text := mustCLI(t, e.Dir, "", "usage")
	if lines := strings.Split(strings.TrimSpace(text), "\n"); len(lines) != 4 || !strings.HasPrefix(lines[1], host) || !strings.HasPrefix(lines[3], "total of "+u.Month) {
		t.Errorf("the table is\n%s", text)
	}

	for args, want := range map[string]struct {
		status int
		says   string
	}{
		"--month 11/2026":                {78, "is not a month such as"},
		"--sort size":                    {78, "none of bytes, requests, name"},
		"nobody.example.com":             {1, "no site nobody.example.com, and nothing was counted"},
		"a_b..example":                   {78, "a_b..example"},
		host + " --month 2020-01 --json": {0, `"requests": 0`},
	} {
		out, errs, status := cli(t, e.Dir, "", append([]string{"usage"}, strings.Fields(args)...)...)
		if status != want.status || !strings.Contains(out+errs, want.says) {
			t.Errorf("edge usage %s: status %d, %s%s", args, status, out, errs)
		}
	}

	e.Signal(syscall.SIGTERM)
	if status := e.Exit(t, 20*time.Second); status != 0 {
		t.Fatalf("the edge ended with %d", status)
	}
	backup := t.TempDir() + "/edge.backup"
	mustCLI(t, e.Dir, "", "backup", "--out", backup)
	restored := t.TempDir()
	mustCLI(t, restored, "", "restore", backup)
	for _, dir := range []string{e.Dir, restored} {
		again := binaries.StartEdgeIn(t, dir)
		mustCLI(t, dir, "", "site", "delete", "db.example.com")
		u := listing(dir)
		if u.Total.Requests != 4 || u.Total.TCP != 1 || len(u.Sites) != 2 {
			t.Errorf("after a restart of %s: %+v", dir, u)
		}
		again.Signal(syscall.SIGKILL)
	}
}
