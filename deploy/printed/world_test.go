package printed_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"wormhole/deploy/printed"
	"wormhole/edge/edgetest"
)

// world is an internet of its own for printed commands: machines with addresses and
// names, a DNS, and a CA (Pebble) where Let's Encrypt's directory is. Each machine has
// namespaces of network and mounts, with the usual ports free, an empty /var/lib and
// /usr/local/bin, a resolver, and authorities that it trusts. All of them share the
// folder dir, which stands for copying a file from one to another.
type world struct {
	dir    string
	ca     *edgetest.CA // of the ACME server's own name, and for whatever else a scene needs
	script strings.Builder
	lines  int
}

// internet is the address of the DNS and the CA.
const internet = "203.0.113.254"

// programs is a folder with what worlds need, as soon as build has been called.
var programs string

// build builds those programs, once.
var build = sync.OnceValue(func() (err error) {
	if programs, err = os.MkdirTemp("", "printed"); err != nil {
		return err
	}
	if _, err := edgetest.Build(programs); err != nil {
		return err
	}
	if err := edgetest.BuildPebble(programs); err != nil {
		return err
	}
	return edgetest.BuildNATS(programs)
})

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if programs != "" {
			_ = os.RemoveAll(programs)
		}
		os.Exit(code)
	}))
}

// newWorld makes a world of the machines given, by name, with their addresses.
func newWorld(t *testing.T, machines map[string]string) *world {
	t.Helper()
	if text, err := exec.Command("unshare", "-mn", "--pid", "--fork", "sudo", "-n", "true").CombinedOutput(); err != nil || os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatalf("no namespaces, or no sudo in them: %v: %s", err, text)
		}
		t.Skipf("needs root, for namespaces with sudo in them: %v: %s", err, text)
	}
	if err := build(); err != nil {
		t.Fatal(err)
	}
	w := &world{dir: t.TempDir(), ca: edgetest.NewCA(t)}
	// Users other than root pass through.
	for dir := w.dir; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cert, key := w.ca.Issue(t, "acme-v02.api.letsencrypt.org")
	copyFile(t, w.ca.File, filepath.Join(w.dir, "ca.crt"))
	// Pebble's directory is /dir, Let's Encrypt's /directory; nginx in front of it says
	// whose it is.
	write(t, filepath.Join(w.dir, "nginx.conf"), fmt.Sprintf(`daemon off; pid %[1]s/nginx.pid; error_log stderr;
events {}
http {
	access_log off; client_body_temp_path %[1]s/nginx-body; proxy_temp_path %[1]s/nginx-proxy;
	fastcgi_temp_path %[1]s/nginx-f; uwsgi_temp_path %[1]s/nginx-u; scgi_temp_path %[1]s/nginx-s;
	server {
		listen %[2]s:443 ssl; ssl_certificate %[3]s; ssl_certificate_key %[4]s;
		proxy_set_header Host $host;
		location = /directory { proxy_pass https://127.0.0.1:14000/dir; }
		location / { proxy_pass https://127.0.0.1:14000; }
	}
}
`, w.dir, internet, cert, key))
	text, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": "127.0.0.1:14000", "managementListenAddress": "127.0.0.1:15000", "certificate": cert, "privateKey": key,
		"httpPort": 80, "tlsPort": 443, "keyAlgorithm": "ecdsa", "retryAfter": map[string]int{"authz": 1, "order": 1},
		"profiles": map[string]any{"default": map[string]any{"description": "test", "validityPeriod": 7776000}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(w.dir, "pebble.json"), string(text))
	// One zone for the whole world, and the resolver that everybody asks.
	write(t, filepath.Join(w.dir, "named.conf"), fmt.Sprintf(`options {
	directory %q; pid-file none; session-keyfile none; listen-on { %s; }; listen-on-v6 { none; };
	recursion yes; allow-query { any; }; allow-recursion { any; }; dnssec-validation no; empty-zones-enable no; notify no;
};
controls { };
zone "." { type primary; file "zone"; allow-update { any; }; };
`, w.dir, internet))
	write(t, filepath.Join(w.dir, "zone"), ". 0 SOA ns. root. 1 3600 600 86400 0\n. 0 NS ns.\nns. 0 A "+internet+"\n")
	write(t, filepath.Join(w.dir, "resolv.conf"), "nameserver "+internet+"\n")
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(w.dir, "hosts"), "127.0.0.1 localhost "+host+"\n::1 localhost\n")
	fmt.Fprintf(&w.script, `set -euo pipefail
programs=%[1]s
ip link add internet type bridge
ip link set internet up
declare -A pid
# at MACHINE COMMAND...: runs it there
at() { local machine=$1; shift; nsenter -t "${pid[$machine]}" -m -n --wd="$PWD" "$@"; }
# await COMMAND...: until it succeeds, for a minute
await() {
	local end=$((SECONDS + 60)) said
	while ! said=$("$@" 2>&1); do
		[ $SECONDS -lt $end ] || { echo "in vain: $*: $said" >&2; return 1; }
		sleep 0.1
	done
}
machine() {
	unshare -mn --propagation private sleep infinity &
	pid[$1]=$!
	while [ "$(readlink /proc/$!/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do sleep 0.01; done
	ip link add "to-$1" type veth peer name eth0 netns "$!"
	ip link set "to-$1" master internet up
	at "$1" bash -ec 'ip link set lo up; ip addr add "$0/32" dev eth0; ip link set eth0 up; ip route add default dev eth0
		mount -t tmpfs tmpfs /var/lib; mount -t tmpfs tmpfs /usr/local/bin
		mount --bind resolv.conf /etc/resolv.conf; mount --bind hosts /etc/hosts' "$2"
}
# fell MACHINE: kill -9 of the edge there
fell() {
	local p comm
	for p in /proc/[0-9]*; do
		read -r comm <"$p/comm" || continue
		if [ "$comm" = edge ] && [ "$p/ns/net" -ef "/proc/${pid[$1]}/ns/net" ]; then kill -KILL "${p#/proc/}"; fi
	done
}
# name HOST ADDRESS: what the DNS says from now on
name() {
	at internet nsupdate <<<"server %[2]s
update delete $1. A
update add $1. 0 A $2
send"
}
machine internet %[2]s
at internet named -g -c "$PWD/named.conf" >dns.log 2>&1 &
at internet env PEBBLE_VA_NOSLEEP=1 PEBBLE_WFE_NONCEREJECT=0 "$programs/pebble" -config pebble.json -dnsserver %[2]s:53 >pebble.log 2>&1 &
at internet nginx -p "$PWD" -c "$PWD/nginx.conf" >nginx.log 2>&1 &
await name acme-v02.api.letsencrypt.org %[2]s
await at internet curl -fsSk --resolve acme-v02.api.letsencrypt.org:443:%[2]s https://acme-v02.api.letsencrypt.org/directory
at internet curl -fsSk https://127.0.0.1:15000/roots/0 >root.pem
cat ca.crt root.pem >bundle.pem
`, programs, internet)
	for _, name := range slices.Sorted(maps.Keys(machines)) {
		fmt.Fprintf(&w.script, "machine %s %s\nat %[1]s mount --bind bundle.pem /etc/ssl/certs/ca-certificates.crt\n", name, machines[name])
	}
	return w
}

// path is what machines find programs in that nobody installed there.
const path = `PATH="$programs:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"`

// do adds a line of the test's own to what happens.
func (w *world) do(format string, args ...any) { fmt.Fprintf(&w.script, format+"\n", args...) }

// type_ types one printed line at a machine, unchanged. A line that a person leaves in
// the foreground goes into the background, until ready succeeds at that machine.
func (w *world) type_(t *testing.T, b printed.Block, machine, path, line string) {
	t.Helper()
	w.lines++
	file := fmt.Sprintf("line%d", w.lines)
	write(t, filepath.Join(w.dir, file), line+"\n")
	w.do("echo '== %s at %s:'; cat %s", b, machine, file)
	serves := strings.Contains(line, "edge serve ")
	w.do("at %s env -i HOME=/root TERM=dumb %s bash -e %s%s", machine, path, file, map[bool]string{true: " &"}[serves])
	if serves {
		w.do("await at %s env %s edge status", machine, path)
	}
}

// run lets it all happen.
func (w *world) run(t *testing.T) string {
	t.Helper()
	began := time.Now()
	w.do("echo 'all of it ran'")
	write(t, filepath.Join(w.dir, "script"), w.script.String())
	cmd := exec.CommandContext(t.Context(), "unshare", "-mn", "--pid", "--fork", "--mount-proc", "--kill-child", "bash", "script")
	cmd.Dir, cmd.WaitDelay = w.dir, 5*time.Second
	out, err := cmd.CombinedOutput()
	t.Logf("%d printed lines in %s\n%s", w.lines, time.Since(began).Round(100*time.Millisecond), out)
	if err != nil || !strings.Contains(string(out), "all of it ran") {
		logs := ""
		logFiles, _ := filepath.Glob(filepath.Join(w.dir, "*.log"))
		for _, name := range logFiles {
			text, _ := os.ReadFile(name)
			logs += "== " + filepath.Base(name) + "\n" + string(text[max(0, len(text)-4000):])
		}
		t.Fatalf("%v\n%s\n%s", err, out, logs)
	}
	return string(out)
}

// linesOf are the lines of the blocks of one scene, in the order in which documents
// print them.
func linesOf(t *testing.T, scene string) (out []typed) {
	t.Helper()
	_, all := blocks(t)
	for _, b := range all {
		if b.Key != "run" || b.Value != scene {
			continue
		}
		for line := range strings.Lines(b.Text) {
			out = append(out, typed{b, strings.TrimSuffix(line, "\n")})
		}
	}
	if len(out) == 0 {
		t.Fatalf("nothing is printed for the scene %s", scene)
	}
	return out
}

// typed is one printed line, and the block that has it.
type typed struct {
	printed.Block
	line string
}
