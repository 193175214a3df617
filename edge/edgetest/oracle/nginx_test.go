package oracle

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// A control: an oracle that finds nothing must be one that could have found it. The
// apps behind nginx are stopped as those behind an edge are, and nginx loses
// requests: a POST that was on its way is lost, and for as long as no app is there
// everything is.
func TestOracleSeesNginxFailures(t *testing.T) {
	log := NewLog()
	var gate sync.RWMutex // held for writing, apps stand still
	app := func(name string) (http.Handler, net.Listener) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		inner := NewApp(name, log)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			gate.RLock()
			gate.RUnlock() //nolint:staticcheck // waiting is all
			inner.ServeHTTP(w, r)
		}), l
	}
	serve := func(h http.Handler, l net.Listener) *http.Server {
		s := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
		go func() { _ = s.Serve(l) }() // ends with Close
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	statlerApp, statlerPort := app("statler")
	waldorfApp, waldorfPort := app("waldorf")
	statler, waldorf := serve(statlerApp, statlerPort), serve(waldorfApp, waldorfPort)
	front := startNginx(t, statlerPort.Addr().String(), waldorfPort.Addr().String())

	c := newClient(t, ClientConfig{Proto: "h1", URL: "http://example.com", Addr: At(front)})
	phase := func(what string, f func()) *Report {
		l := Start(Plan{Rate: 200, Clients: []*Client{c}, Pause: 200 * time.Millisecond})
		time.Sleep(300 * time.Millisecond) // some of the load goes first
		f()
		time.Sleep(300 * time.Millisecond)
		r := Judge(l.Stop(), log.Seen())
		t.Logf("%s:\n%s", what, r)
		return r
	}
	if r := phase("nothing happens", func() {}); !r.Good() {
		t.Errorf("nginx loses requests by itself")
	}
	if r := phase("apps stand still for a second", func() {
		gate.Lock()
		time.Sleep(time.Second)
		gate.Unlock()
	}); r.Slowest < 900*time.Millisecond {
		t.Errorf("the pause was not seen: slowest is %s", r.Slowest)
	}
	if r := phase("one of two apps is killed", func() { _ = waldorf.Close() }); r.Failed == 0 {
		t.Errorf("POSTs on their way to an app that died were not seen to fail")
	}
	if r := phase("the only app restarts", func() {
		addr := statlerPort.Addr().String()
		_ = statler.Close()
		time.Sleep(300 * time.Millisecond)
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		serve(statlerApp, l)
	}); r.Failed < 20 {
		t.Errorf("%d failures were seen of an app that was away, want many", r.Failed)
	}
}

// startNginx balances over apps and returns its address.
func startNginx(t *testing.T, apps ...string) (addr string) {
	t.Helper()
	program, err := exec.LookPath("nginx")
	if err != nil {
		program, err = exec.LookPath("/usr/sbin/nginx")
	}
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("nginx is not installed")
		}
		t.Skip("nginx is not installed")
	}
	spare := httptest.NewUnstartedServer(nil) // a port that is free now
	addr = spare.Listener.Addr().String()
	_ = spare.Listener.Close()
	dir := t.TempDir()
	user, upstreams := "", ""
	if os.Geteuid() == 0 {
		user = "user root;"
	}
	for _, a := range apps {
		upstreams += fmt.Sprintf("server %s; ", a)
	}
	conf := fmt.Sprintf(`daemon off; %s worker_processes 1; pid %[2]s/pid; error_log %[2]s/error.log;
events { worker_connections 1024; }
http {
	access_log off;
	client_body_temp_path %[2]s/body; proxy_temp_path %[2]s/proxy; fastcgi_temp_path %[2]s/f; uwsgi_temp_path %[2]s/u; scgi_temp_path %[2]s/s;
	upstream app { %[3]s keepalive 32; }
	server {
		listen %[4]s;
		location / { proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ""; }
	}
}
`, user, dir, upstreams, addr)
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-p", dir, "-e", filepath.Join(dir, "start.log"), "-c", file)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt) // fast shutdown, workers included
		_ = cmd.Wait()
	})
	for deadline := time.Now().Add(10 * time.Second); ; {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			_ = conn.Close()
			return addr
		}
		if time.Now().After(deadline) {
			start, _ := os.ReadFile(filepath.Join(dir, "start.log"))
			t.Fatalf("nginx does not listen: %v\n%s", err, start)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
