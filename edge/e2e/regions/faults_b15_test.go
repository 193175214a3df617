package regions

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"wormhole/edge/edgetest"
	"wormhole/edge/edgetest/oracle"
)

// cell is a control group of this test's own, with a limit of memory.
type cell struct {
	dir, kills, most string // the folder, and the files that count the kernel's kills and tell the peak
}

// newCell makes a group of either version, or none (nil) where there is none to write
// to; it goes with the test, after the processes in it.
func newCell(t *testing.T, limit int64) (*cell, error) {
	t.Helper()
	c := &cell{dir: fmt.Sprintf("/sys/fs/cgroup/memory/wormhole-b15-%d", os.Getpid()), kills: "memory.oom_control", most: "memory.max_usage_in_bytes"}
	files := map[string]string{"memory.limit_in_bytes": fmt.Sprint(limit)}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		c = &cell{dir: fmt.Sprintf("/sys/fs/cgroup/wormhole-b15-%d", os.Getpid()), kills: "memory.events", most: "memory.peak"}
		files = map[string]string{"memory.max": fmt.Sprint(limit)}
	}
	if err := os.Mkdir(c.dir, 0o755); err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		edgetest.Eventually(t, "the control group is removed", func() bool {
			err := os.Remove(c.dir)
			return err == nil || os.IsNotExist(err)
		})
	})
	for name, value := range files {
		if err := os.WriteFile(filepath.Join(c.dir, name), []byte(value), 0o644); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// killed counts the processes of the group that the kernel has killed.
func (c *cell) killed(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(c.dir, c.kills))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); ok {
			n, err := strconv.Atoi(value)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("%s does not count kills", c.kills)
	return 0
}

// peak is the most that the group has used, in bytes, page cache included; 0 is not known.
func (c *cell) peak(t *testing.T) int64 {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(c.dir, c.most))
	if os.IsNotExist(err) {
		return 0 // an old kernel's
	}
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// B15: an edge with a ceiling of memory, under a load, and beside it visitors who ask
// for much and read nothing until the ceiling is near. It refuses what is new, is not
// killed, and takes everything again when they are gone.
func TestB15MemoryCeiling(t *testing.T) {
	limit, rate, readers, hold := int64(64<<20), 50, 1600, time.Second
	if oracle.Long() {
		limit, rate, readers, hold = 256<<20, 900, 2000, 20*time.Second
	}
	bin := binaries
	bin.Edge = filepath.Join(t.TempDir(), "edge")
	group, err := newCell(t, limit)
	how, start := fmt.Sprintf("a control group of %d MiB", limit>>20), ""
	if err == nil {
		start = fmt.Sprintf("echo $$ > %s/cgroup.procs || exit 1", group.dir)
	} else {
		t.Logf("no control group: %v", err)
		how, start = fmt.Sprintf("GOMEMLIMIT=%dMiB, not a control group", limit>>20), fmt.Sprintf("export GOMEMLIMIT=%dMiB", limit>>20)
	}
	script := fmt.Sprintf("#!/bin/sh\n%s\nexec %s \"$@\"\n", start, binaries.Edge)
	if err := os.WriteFile(bin.Edge, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	e := bin.StartEdge(t, "--http", "")
	token := binaries.Token(t, e.Dir, "--host", "app.localhost")

	log := oracle.NewLog()
	app := http.NewServeMux()
	app.Handle("/", oracle.NewApp("app", log))
	app.HandleFunc("/endless", func(w http.ResponseWriter, _ *http.Request) {
		for piece := make([]byte, 64<<10); ; {
			if _, err := w.Write(piece); err != nil {
				return
			}
		}
	})
	endpoint := edgetest.App(t, app)
	agent := func(name string) *edgetest.Process {
		return edgetest.Start(t, e.AgentEnv(token, "WORMHOLE_NAME="+name, "WORMHOLE_ENDPOINT="+endpoint, "WORMHOLE_TRANSPORT=tls"), binaries.Wormhole)
	}
	// What one tunnel holds is bounded by a quarter of the ceiling, so one alone would not
	// bring the edge near it.
	const tunnels = 6
	for i := range tunnels {
		agent(fmt.Sprint("app", i))
	}
	e.AwaitReady(t, tunnels)

	addr := e.Status.Addresses["https"]
	roots := edgetest.Roots(t, e.Status.CA)
	client, err := oracle.NewClient(oracle.ClientConfig{Proto: "h1", URL: "https://app.localhost", Roots: roots, Addr: oracle.At(addr)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	plan := oracle.Plan{Rate: rate, Clients: []*oracle.Client{client}}
	if oracle.Long() { // load L three times
		plan.WebSockets, plan.WebSocketClients = 150, plan.Clients
		plan.Events, plan.EventClients = 60, plan.Clients
	}
	load := oracle.Start(plan)

	// stall asks for an endless answer, and reads no more than its head.
	stall := func() (net.Conn, int) {
		d := net.Dialer{Timeout: 10 * time.Second}
		conn, err := tls.DialWithDialer(&d, "tcp", addr, &tls.Config{RootCAs: roots, ServerName: "app.localhost"})
		if err != nil {
			return nil, 0
		}
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err = fmt.Fprint(conn, "GET /endless HTTP/1.1\r\nHost: app.localhost\r\n\r\n"); err == nil {
			var resp *http.Response
			if resp, err = http.ReadResponse(bufio.NewReader(conn), nil); err == nil {
				return conn, resp.StatusCode
			}
		}
		_ = conn.Close()
		return nil, 0
	}
	var mu sync.Mutex // guards stalled, turned
	var stalled []net.Conn
	turned := 0
	began, press := time.Now(), 5*time.Second // more come all the while
	enough := make(chan struct{})             // closed when the edge has shown that it sheds, and has for a while
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range readers / 16 {
				select {
				case <-enough:
					if !oracle.Long() {
						return
					}
				default:
				}
				conn, status := stall()
				mu.Lock()
				switch status {
				case http.StatusOK:
					stalled = append(stalled, conn)
				case http.StatusServiceUnavailable:
					turned++
					_ = conn.Close()
				}
				mu.Unlock()
			}
		})
	}
	edgetest.Eventually(t, "visitors are turned away", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return e.Exited() || turned > 0
	})
	// There is room for a moment whenever the collector was there.
	lates, refused := 0, false
	for ; !refused && !e.Exited() && lates < 10; lates++ {
		late := agent(fmt.Sprint("late", lates))
		edgetest.Eventually(t, "another agent is turned away or let in", func() bool {
			refused = strings.Contains(late.Output(), "no memory left")
			return refused || e.Exited() || strings.Contains(late.Output(), "tunnel open")
		})
	}
	if !refused {
		t.Errorf("%d agents were let in, and none turned away", lates)
	}
	time.Sleep(time.Until(began.Add(press)))
	close(enough)
	wg.Wait()
	time.Sleep(hold)
	held := len(stalled)
	for _, conn := range stalled {
		_ = conn.Close()
	}
	freed := time.Now()
	recovered := time.Duration(0)
	for streak := 0; streak < 20 && time.Since(freed) < time.Minute; time.Sleep(20 * time.Millisecond) {
		reply := client.Ask(t.Context(), oracle.Question{ID: "after", Path: "/get?n=1024"})
		if streak++; reply.Status != http.StatusOK || reply.Err != nil {
			streak, recovered = 0, time.Since(freed)
		}
	}
	edgetest.Eventually(t, "the agent that was turned away has a tunnel, too", func() bool { return e.Exited() || e.Refresh() == nil && len(e.Status.Backends) == tunnels+lates })
	run := load.Stop()
	shed, other := 0, 0
	for _, r := range run.Results {
		switch {
		case r.Fault == "":
		case strings.HasPrefix(r.Fault, "status 503"):
			shed++
		default:
			if other++; other <= 5 {
				t.Logf("at %s: %s: %s", r.Due, r.Kind, r.Fault)
			}
		}
	}
	kills := 0
	if group != nil {
		t.Logf("most that was used: %d MiB", group.peak(t)>>20)
		kills = group.killed(t)
	}
	alive := !e.Exited()
	oracle.Row{
		ID: "B15", Done: fmt.Sprintf("%s, %d/s, and %d visitors who do not read what they asked for", how, rate, held),
		Figure: fmt.Sprintf("%d visitors and %d of %d requests refused with 503, %d failed otherwise, %d OOM kills, same process: %v, served again %s after they went",
			turned, shed, len(run.Results), other, kills, alive, recovered.Round(10*time.Millisecond)),
		Limit: "503 only, 0 kills, 30 s",
		OK:    turned > 0 && shed > 0 && other == 0 && kills == 0 && alive && recovered <= 30*time.Second,
	}.Verdict(t)
}
