package regions

import (
	"bytes"
	"io"
	"net/http"
	"strconv"
	"syscall"
	"testing"
	"time"

	"wormhole/edge/admin"
	"wormhole/edge/edgetest"
)

// sized answers with as many bytes as X-Size says, after it has read the request.
func sized(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	n, _ := strconv.Atoi(r.Header.Get("X-Size"))
	w.Header().Set("Content-Length", strconv.Itoa(n))
	_, _ = w.Write(make([]byte, n))
}

// post sends in bytes and gets out bytes, n times.
func post(t *testing.T, c *http.Client, host string, n, in, out int) {
	t.Helper()
	for range n {
		req, _ := http.NewRequest("POST", "https://"+host+"/", bytes.NewReader(make([]byte, in)))
		req.Header.Set("X-Size", strconv.Itoa(out))
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != 200 || got != int64(out) {
			t.Fatalf("%d, %d bytes, %v; want 200 and %d", resp.StatusCode, got, err, out)
		}
	}
}

// usageOf is what an edge says that a host used, by the command line.
func usageOf(t *testing.T, e *edge, host string) (u admin.SiteUsage) {
	t.Helper()
	var all admin.Usage
	edgetest.JSON(t, []byte(e.CLI(t, "usage", "--json")), &all)
	if len(all.Damaged) > 0 {
		t.Errorf("damaged: %v", all.Damaged)
	}
	for _, s := range all.Sites {
		if s.Host == host {
			u = s
		}
	}
	return u
}

func awaitUsage(t *testing.T, e *edge, host string, requests, in, out uint64) {
	t.Helper()
	var got admin.SiteUsage
	defer func() {
		if t.Failed() {
			t.Logf("usage is %+v, want %d requests, %d and %d bytes", got, requests, in, out)
		}
	}()
	edgetest.Eventually(t, "the usage is exact", func() bool {
		got = usageOf(t, e, host)
		return got.Requests == requests && got.Classes["2xx"] == requests && got.BytesIn == in && got.BytesOut == out
	})
}

// Requests enter three edges. Whichever carries them to the app, the edge that they
// entered at counts them, and drains in any order, the one of the store's host last,
// lose and double nothing.
func TestUsageIsTheSumOverAllEdges(t *testing.T) {
	edges := binaries.StartCluster(t, 3, "--usage-interval", "1h")
	ca := edges[0].Status.CA
	app := edgetest.App(t, http.HandlerFunc(sized))
	work(t, ca, issue(t, edges[0], "app.localhost"), "app", app, 1, edges[0].Door).awaitTunnels(t, 1)
	var n, in, out uint64
	for i, e := range edges {
		c := client(t, e, edges[0])
		awaitOK(t, c, "app.localhost")
		asked := usageOf(t, e, "app.localhost").Requests // until it answered
		for size := 1000; size <= 3_000_000; size *= 3 {
			post(t, c, "app.localhost", i+1, size, 2*size+1)
			n, in, out = n+uint64(i+1), in+uint64((i+1)*size), out+uint64((i+1)*(2*size+1))
		}
		n += asked
	}
	for i := 2; i > 0; i-- {
		edges[i].Signal(syscall.SIGTERM)
		if status := edges[i].Exit(t, 20*time.Second); status != 0 {
			t.Fatalf("edge %d ended with %d", i+1, status)
		}
	}
	awaitUsage(t, edges[0], "app.localhost", n, in, out)
	edges[0].Signal(syscall.SIGTERM)
	edges[0].Exit(t, 20*time.Second)
	for i, e := range edges {
		e.Restart(t)
		t.Logf("edge %d restarted", i+1)
	}
	for _, e := range edges {
		awaitUsage(t, e, "app.localhost", n, in, out)
	}
}

// A killed edge loses at most what it counted since its last write, and an edge whose
// store is away counts on.
func TestUsageOutlivesKillsAndAStoreThatIsAway(t *testing.T) {
	edges := binaries.StartCluster(t, 2, "--usage-interval", "1s")
	ca := edges[0].Status.CA
	app := edgetest.App(t, http.HandlerFunc(sized))
	token := issue(t, edges[0], "app.localhost")
	work(t, ca, token, "app", app, 1, edges[1].Door).awaitTunnels(t, 1)
	c := client(t, edges[1], edges[0])
	post(t, c, "app.localhost", 40, 10, 20)
	awaitUsage(t, edges[0], "app.localhost", 40, 400, 800)

	post(t, c, "app.localhost", 30, 10, 20)
	edges[1].Signal(syscall.SIGKILL)
	edges[1].Exit(t, 5*time.Second)
	edges[1].Restart(t)
	edges[1].AwaitReady(t, 1)
	kept := usageOf(t, edges[0], "app.localhost").Requests
	t.Logf("%d of the 30 requests of the last moment are kept", kept-40)
	if kept < 40 || kept > 70 {
		t.Errorf("%d requests after the kill, want 40 to 70", kept)
	}
	c = client(t, edges[1], edges[0])
	post(t, c, "app.localhost", 25, 10, 20)
	awaitUsage(t, edges[0], "app.localhost", kept+25, 10*(kept+25), 20*(kept+25))

	edges[0].Signal(syscall.SIGKILL) // the store's host
	edges[0].Exit(t, 5*time.Second)
	post(t, c, "app.localhost", 35, 10, 20)
	edgetest.Eventually(t, "a write fails", func() bool {
		return bytes.Contains([]byte(edges[1].Output()), []byte("usage totals are not written"))
	})
	post(t, c, "app.localhost", 5, 10, 20)
	kept += 65
	awaitUsage(t, edges[1], "app.localhost", kept, 10*kept, 20*kept)
	edges[0].Restart(t)
	awaitUsage(t, edges[0], "app.localhost", kept, 10*kept, 20*kept)
	edges[1].Signal(syscall.SIGTERM)
	edges[1].Exit(t, 20*time.Second)
	awaitUsage(t, edges[0], "app.localhost", kept, 10*kept, 20*kept)
}
