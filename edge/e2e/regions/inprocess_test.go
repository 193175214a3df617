package regions

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wormhole/edge/config"
	"wormhole/edge/edgetest"
	"wormhole/wormhole/agent"
	"wormhole/wormhole/forward"
)

// startNodes starts n edges of one network in this process.
func startNodes(t *testing.T, n int) []*edgetest.Node {
	t.Helper()
	var nodes []*edgetest.Node
	for range n {
		file := filepath.Join(t.TempDir(), "join.token")
		nodes = append(nodes, edgetest.StartNode(t, func(c *config.Config) {
			c.Hostname, c.Advertise, c.ClusterListen = "localhost", "localhost", "127.0.0.1:0"
			if len(nodes) == 0 {
				return
			}
			raw, _, err := nodes[0].JoinToken(time.Minute)
			if err == nil {
				err = os.WriteFile(file, []byte(raw), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			_, port, _ := strings.Cut(nodes[0].Addr("https"), ":")
			c.Join, c.JoinTokenFile = "localhost:"+port, file
		}))
	}
	for _, node := range nodes {
		edgetest.Eventually(t, "edges see each other", func() bool {
			up := 0
			for _, p := range node.Cluster().Peers {
				if p.Health == "up" && p.HeardMillis >= 0 {
					up++
				}
			}
			return up == n-1
		})
	}
	return nodes
}

func onlyOne(c *agent.Config, _ *forward.Config) { c.EdgesMax, c.EdgesMin = 1, 1 }

// What relays carry is what a tunnel carries: bodies both ways, streams that stay
// open, upgrades refused or passed, and the honest end of what is cut.
func TestRelaysCarryEverything(t *testing.T) {
	nodes := startNodes(t, 2)
	app := edgetest.App(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/echo":
			text, _ := io.ReadAll(r.Body)
			_, _ = w.Write(text)
		case "/cut":
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write(make([]byte, 10))
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		default:
			fmt.Fprint(w, "hello")
		}
	}))
	token := nodes[1].Token(t, "app.localhost")
	edgetest.StartAgent(t, edgetest.AgentConfig{Token: token, Endpoint: app, Change: onlyOne}, nodes[0])
	nodes[0].AwaitBackends(t, 1)
	for _, proto := range []string{"h1", "h2", "h3"} {
		c := nodes[1].Client(t, proto)
		edgetest.Eventually(t, "the site is reached", func() bool {
			resp, err := c.Get("https://app.localhost/")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			return resp.StatusCode == 200
		})
		for _, size := range []int{0, 1, 100_000, 5 << 20} {
			sent := strings.Repeat("x", size)
			resp, err := c.Post("https://app.localhost/echo", "text/plain", strings.NewReader(sent))
			if err != nil {
				t.Fatalf("%s: %v", proto, err)
			}
			got, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err != nil || string(got) != sent {
				t.Errorf("%s: %d bytes became %d, %v", proto, size, len(got), err)
			}
		}
		resp, err := c.Get("https://app.localhost/cut")
		if err == nil {
			_, err = io.ReadAll(resp.Body)
			_ = resp.Body.Close()
		}
		if err == nil {
			t.Errorf("%s: an answer that was cut looks whole", proto)
		}
	}
	if s := nodes[0].Cluster(); s.Carried == 0 {
		t.Error("nothing was relayed")
	}
}
