package e2e

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wormhole/edge/edgetest"
)

// A full handshake for a known host costs the edge little more CPU than it costs
// nginx, with the same key type, curve and suite, in the same run.
func TestHandshakeCostsLittleMoreThanNginxs(t *testing.T) {
	// The clock of CPU time has ticks of 10 ms; the short form is coarse.
	count, rounds, most := 1000, 5, 1.5
	if long() {
		count, rounds, most = 3000, 3, 1.2
	}
	nginx, err := exec.LookPath("nginx")
	if err != nil {
		nginx = "/usr/sbin/nginx"
	}
	if _, err := os.Stat(nginx); err != nil && os.Getenv("CI") != "true" {
		t.Skip("nginx is not installed")
	}
	const name = "cost.example.com"
	ca := edgetest.NewCA(t)
	cert, key := ca.Issue(t, name)
	e := binaries.StartEdge(t, "--tls", "files", "--cert", cert, "--key", key, "--park-timeout", "0s")
	dir := t.TempDir()
	addr := "127.0.0.1:" + edgetest.KeptPort(t)
	conf := fmt.Sprintf(`daemon off; master_process off; error_log stderr crit; pid %[1]s/pid;
events { worker_connections 1024; }
http { access_log off; client_body_temp_path %[1]s; proxy_temp_path %[1]s; fastcgi_temp_path %[1]s; uwsgi_temp_path %[1]s; scgi_temp_path %[1]s;
 server { listen %[2]s ssl; server_name %[3]s; ssl_certificate %[4]s; ssl_certificate_key %[5]s; ssl_protocols TLSv1.3; ssl_session_tickets off; return 200; } }`,
		dir, addr, name, cert, key)
	if err := os.WriteFile(filepath.Join(dir, "nginx.conf"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	n := edgetest.Start(t, nil, nginx, "-c", filepath.Join(dir, "nginx.conf"), "-p", dir)
	roots := edgetest.Roots(t, ca.File)
	shakes := func(addr string, count int) {
		var left atomic.Int64
		left.Store(int64(count))
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for left.Add(-1) >= 0 {
					raw, err := net.Dial("tcp", addr)
					if err != nil {
						t.Error(err)
						return
					}
					conn := tls.Client(raw, &tls.Config{
						ServerName: name, RootCAs: roots, MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519},
					})
					if err := conn.Handshake(); err != nil {
						t.Error(err)
					}
					_ = raw.Close()
				}
			})
		}
		wg.Wait()
	}
	edgetest.Eventually(t, "nginx listens", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	best := map[string]time.Duration{}
	for range rounds {
		for who, what := range map[string]struct {
			addr string
			pid  int
		}{"edge": {e.Status.Addresses["https"], e.Cmd.Process.Pid}, "nginx": {addr, n.Cmd.Process.Pid}} {
			shakes(what.addr, 200)
			before := cpuOf(t, what.pid)
			shakes(what.addr, count)
			took := (cpuOf(t, what.pid) - before) / time.Duration(count)
			if best[who] == 0 || took < best[who] {
				best[who] = took
			}
		}
	}
	ratio := float64(best["edge"]) / float64(best["nginx"])
	t.Logf("CPU of a full handshake: edge %s, nginx %s, ratio %.2f", best["edge"], best["nginx"], ratio)
	if ratio > most {
		t.Errorf("a handshake costs %.2f times nginx's CPU, want at most %.1f", ratio, most)
	}
}

// cpuOf is the CPU time a process has used, of all its threads.
func cpuOf(t *testing.T, pid int) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	var user, system int64
	fields := splitStat(string(text))
	_, _ = fmt.Sscan(fields[11]+" "+fields[12], &user, &system)
	return time.Duration(user+system) * 10 * time.Millisecond // clock ticks are 1/100 s on Linux
}

// splitStat are the fields of /proc/PID/stat behind the name, which may hold spaces.
func splitStat(text string) []string {
	return strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
}
