//go:build containers

package printed_test

import (
	"crypto/ed25519"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wormhole/edge/edgetest"
	"wormhole/shared/token"
)

// TestCommandsInDockerfilesWorkAsPrinted is the scene "images": a fresh checkout, on
// a machine whose ports 80 and 443 are free. The CA that the edge would ask is out
// of its reach.
func TestCommandsInDockerfilesWorkAsPrinted(t *testing.T) {
	root, documents := blocks(t)
	needDocker(t, root)
	if _, err := docker(t, root, "volume", "inspect", "edge-data"); err == nil {
		t.Fatal("the commands make a volume edge-data, and this machine has one already")
	}
	for _, port := range []string{"80", "443"} {
		listener, err := net.Listen("tcp", "127.0.0.1:"+port)
		if err != nil {
			t.Fatalf("the commands need port %s of this machine: %v", port, err)
		}
		_ = listener.Close()
	}
	dir := checkout(t, root)
	container := fmt.Sprintf("wormholeprintededge%d", os.Getpid())
	t.Cleanup(func() {
		if t.Failed() {
			text, _ := docker(t, root, "logs", "--tail", "30", container)
			t.Log(text)
		}
		_, _ = docker(t, root, "rm", "-f", "-v", container)
		_, _ = docker(t, root, "volume", "rm", "edge-data")
	})
	stage := &stage{root: root}
	ran := 0
	for _, b := range commentBlocks(t, root, "images") {
		if strings.HasPrefix(b.Text, "COPY ") {
			for line := range strings.Lines(b.Text) {
				whole := false
				for _, d := range documents {
					whole = whole || d.Key == "build" && strings.Contains(d.Text, line)
				}
				if !whole {
					t.Errorf("%s: no Dockerfile that is built has %q", b, line)
				}
			}
			continue
		}
		stage.bases(t, must(t, root, "cat", b.File))
		must(t, dir, "bash", "-ec", fmt.Sprintf(`docker() { if [ "$1" = run ]; then shift; command docker run --name %s --add-host acme-v02.api.letsencrypt.org:127.0.0.1 "$@"; else command docker "$@"; fi; }
%s`, container, b.Text))
		ran++
	}
	if ran != 2 {
		t.Errorf("%d blocks ran, want 2", ran)
	}
	await(t, "the edge serves", func() error { _, err := docker(t, root, "exec", container, "/edge", "status"); return err })
	if text := must(t, root, "docker", "exec", container, "/edge", "status"); !strings.Contains(text, "edge1.example.com") {
		t.Errorf("the edge says\n%s", text)
	}
	if text := must(t, root, "curl", "-sS", "-o", os.DevNull, "-w", "%{http_code}", "http://127.0.0.1/"); text == "000" {
		t.Errorf("port 80 says %s", text)
	}
}

// TestCommandsInUnitsWorkAsPrinted is the scene "systemd": a Debian of its own with
// systemd's programs and a checkout after `make build`. No manager runs there, so
// --now is not passed on: the units are enabled, verified, and what they start is
// started as the user whom they name; that the edge and a manager understand each other is tested in
// deploy/systemd.
func TestCommandsInUnitsWorkAsPrinted(t *testing.T) {
	root, _ := blocks(t)
	needDocker(t, root)
	const image = "wormhole/debian-systemd:latest"
	if text, err := command(t, root, "deploy/images/make-base.sh", image); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%v\n%s", err, text)
		}
		t.Skip(text)
	}
	dir := checkout(t, root)
	bin := filepath.Join(dir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := edgetest.Build(bin); err != nil {
		t.Fatal(err)
	}
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	shop, err := token.Mint(key, "k1", "edge.localhost", token.Claims{
		ID: "t1", Hosts: []string{"shop.example.com"}, IssuedAt: now, ExpiresAt: now.Add(time.Hour),
	})
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "shop.token"), shop+"\n")
	script := `set -euo pipefail
export SYSTEMD_OFFLINE=1 EDITOR=/tmp/editor
cp -r /src /tmp/src && cd /tmp/src
printf '#!/bin/sh\nprintf "hostname: edge.localhost\\ntls: internal\\n" >"$1"\n' >/tmp/editor && chmod 755 /tmp/editor
systemctl() { local words=() word; for word in "$@"; do [ "$word" = --now ] || words+=("$word"); done; command systemctl "${words[@]}"; }
await() { for _ in $(seq 150); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done; "$@"; }
`
	for _, b := range commentBlocks(t, root, "systemd") {
		for line := range strings.Lines(b.Text) {
			script += "echo " + strings.ReplaceAll(fmt.Sprintf("%q", b.String()), "$", "") + "\n" + line
		}
	}
	script += `
is() { [ "$(stat -c '%a %U' "$1")" = "$2" ] || { stat "$1"; exit 1; }; }
is /usr/local/bin/edge '755 root'
is /usr/local/bin/wormhole '755 root'
is /etc/wormhole/shop.token '600 root'
grep -q ^wormhole: /etc/passwd
cd /etc/systemd/system
test -e multi-user.target.wants/wormhole-edge.service
test -e multi-user.target.wants/wormhole@shop.service
touch shop.service && printf '[Service]\nExecStart=/bin/true\n' >shop.service
systemd-analyze verify wormhole-edge.service wormhole@shop.service
install -d -o wormhole -g wormhole -m 0700 /var/lib/wormhole
export EDGE_DATA_DIR=/var/lib/wormhole
$(sed -n 's/^ExecStart=/setpriv --reuid wormhole --regid wormhole --clear-groups /p' wormhole-edge.service) &
await edge status
edge status
kill $! && wait $!
env $(cat /etc/wormhole/shop.env) WORMHOLE_TOKEN_FILE=/etc/wormhole/shop.token wormhole --show-config
echo 'all of it ran'
`
	write(t, filepath.Join(dir, "script"), script)
	said, err := exec.Command("docker", "run", "--rm", "--network", "none", "--sysctl", "net.ipv4.ip_unprivileged_port_start=0",
		"-v", dir+":/src:ro", image, "bash", "/src/script").CombinedOutput()
	if err != nil || !strings.HasSuffix(string(said), "all of it ran\n") {
		t.Errorf("%v\n%s", err, said)
	}
}
