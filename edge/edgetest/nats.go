package edgetest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// BuildNATS builds the real nats-server into dir.
func BuildNATS(dir string) error {
	cmd := exec.Command("go", "build", "-o", filepath.Join(dir, "nats-server"), "github.com/nats-io/nats-server/v2")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build nats-server: %w\n%s", err, text)
	}
	return nil
}

// NATS is a cluster of real nats-server processes.
type NATS struct {
	Servers []*Process
	// URLs have the credentials in them, Bare do not.
	URLs, Bare []string

	bin   string
	files []string
}

// StartNATS starts n servers, with JetStream if asked for, that want a user and a
// password.
func StartNATS(tb testing.TB, bin string, n int, jetstream bool) *NATS {
	tb.Helper()
	c := &NATS{bin: bin}
	var ports, routes []string
	for range n {
		ports = append(ports, KeptPort(tb))
		routes = append(routes, KeptPort(tb))
	}
	for i := range n {
		var b strings.Builder
		fmt.Fprintf(&b, "server_name: n%d\nlisten: 127.0.0.1:%s\nauthorization { user: wormhole, password: sesame-of-tests }\n", i, ports[i])
		if jetstream {
			fmt.Fprintf(&b, "jetstream { store_dir: %q, sync_interval: always }\n", tb.TempDir())
		}
		if n > 1 {
			fmt.Fprintf(&b, "cluster { name: c, listen: 127.0.0.1:%s, routes: [", routes[i])
			for j := range n {
				fmt.Fprintf(&b, " \"nats-route://127.0.0.1:%s\",", routes[j])
			}
			b.WriteString(" ] }\n")
		}
		file := filepath.Join(tb.TempDir(), "nats.conf")
		if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
			tb.Fatal(err)
		}
		c.files = append(c.files, file)
		c.Servers = append(c.Servers, Start(tb, nil, filepath.Join(bin, "nats-server"), "-c", file))
		c.Bare = append(c.Bare, "nats://127.0.0.1:"+ports[i])
		c.URLs = append(c.URLs, "nats://wormhole:sesame-of-tests@127.0.0.1:"+ports[i])
	}
	for i, port := range ports {
		Eventually(tb, "nats-server listens", func() bool {
			conn, err := net.DialTimeout("tcp", "127.0.0.1:"+port, time.Second)
			if err == nil {
				_ = conn.Close()
			}
			// The leader says "Self is new … metadata leader", the others whom they have.
			return err == nil && (!jetstream || n == 1 || strings.Contains(c.Servers[i].Output(), "metadata leader"))
		})
	}
	return c
}

// Restart starts server i again, after it was killed.
func (c *NATS) Restart(tb testing.TB, i int) {
	tb.Helper()
	c.Servers[i] = Start(tb, nil, filepath.Join(c.bin, "nats-server"), "-c", c.files[i])
}
