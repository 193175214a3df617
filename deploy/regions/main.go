// Command regions is `make regions`: three edges of one network in three regions on
// this machine, three agents whose tunnels end at one edge each, requests through
// every edge, and then the edge of one region is killed under load. It prints what
// happened, and exits 0 only if no request failed at the edges that live.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"wormhole/deploy/rig"
)

const (
	host   = "demo.localhost"
	askers = 2 // clients at each edge that lives
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "regions:", err)
		os.Exit(1)
	}
}

// region is one edge with one agent and app beside it.
type region struct {
	name   string
	edge   *rig.Edge
	app    string
	agent  *rig.Process
	client *http.Client
}

// stage is what the demonstration runs on.
type stage struct {
	out     io.Writer
	dir     string
	bin     rig.Binaries
	app     string
	regions []*region
}

func run(ctx context.Context, out io.Writer) (err error) {
	root, err := rig.Root()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "wormhole-regions-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s := &stage{out: out, dir: dir}
	defer func() { err = errors.Join(err, s.clear()) }()
	if s.bin, err = rig.FindBinaries(ctx, root, dir); err != nil {
		return err
	}
	if s.app, err = rig.Build(ctx, root, "./deploy/demo/app", filepath.Join(dir, "app")); err != nil {
		return err
	}
	for i, name := range []string{"toronto", "frankfurt", "singapore"} {
		if err := s.openRegion(ctx, i, name); err != nil {
			return err
		}
	}
	if err := s.startAgents(ctx); err != nil {
		return err
	}
	s.say("\neach edge prefers the app beside it:")
	for _, r := range s.regions {
		t := rig.Tally{}
		for range 10 {
			began := time.Now()
			who, err := r.ask(ctx)
			t.Count(began, who, err)
		}
		s.say("  at %-10s %s", r.name, t.String())
	}
	s.say("\nand relays what only another region has:")
	for i, r := range s.regions {
		other := s.regions[(i+1)%len(s.regions)]
		began := time.Now()
		who, err := r.askFor(ctx, other.site())
		if err != nil {
			return fmt.Errorf("%s at %s: %w", other.site(), r.name, err)
		}
		s.say("  at %-10s %s is answered by %s in %.1f ms", r.name, other.site(), who, float64(time.Since(began).Microseconds())/1000)
	}
	return s.killOne(ctx)
}

// openRegion starts an edge: the first makes the network, the others join it.
func (s *stage) openRegion(ctx context.Context, i int, name string) error {
	dir := filepath.Join(s.dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	mesh, err := rig.FreePort()
	if err != nil {
		return err
	}
	args := []string{"--region", name, "--cluster-listen", mesh, "--backend-header", "X-Backend"}
	if i > 0 {
		first := s.regions[0].edge
		token, err := s.command(ctx, first, "cluster", "join-token")
		if err != nil {
			return err
		}
		file := filepath.Join(dir, "join.token")
		if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
			return err
		}
		args = append(args, "--join", net.JoinHostPort("localhost", first.Port()), "--join-token-file", file)
	}
	began := time.Now()
	edge, err := rig.StartEdge(ctx, s.bin, dir, args...)
	if err != nil {
		return err
	}
	r := &region{name: name, edge: edge, app: name + "-app"}
	s.regions = append(s.regions, r)
	transport := edge.Transport()
	transport.MaxIdleConnsPerHost = askers
	r.client = &http.Client{Transport: transport, Timeout: 8 * time.Second}
	s.say("the edge of %s serves %.1f s after its start", name, time.Since(began).Seconds())
	return nil
}

func (s *stage) command(ctx context.Context, e *rig.Edge, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, s.bin.Edge, append(args, "--data-dir", e.DataDir)...).Output()
	return string(out), err
}

// startAgents starts an app in each region, with a tunnel to the edge there only.
func (s *stage) startAgents(ctx context.Context) error {
	for i, r := range s.regions {
		// A token of any edge is good at all.
		token, err := s.regions[(i+1)%len(s.regions)].edge.Token(ctx, host, r.site())
		if err != nil {
			return err
		}
		addr, err := rig.FreePort()
		if err != nil {
			return err
		}
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			return err
		}
		// One edge at a time, so that what the others answer went through it.
		env := []string{"SERVER_NAME=" + r.app, "PORT=" + port, "WORMHOLE_EDGES_MAX=1", "WORMHOLE_EDGES_MIN=1"}
		if r.agent, err = r.edge.StartAgent(r.app, token, host+","+r.site(), filepath.Join(s.dir, r.app+".log"), env, s.app); err != nil {
			return err
		}
		if err := rig.AwaitAnswer(ctx, r.client, r.url(host), r.agent); err != nil {
			return err
		}
		for r.askNo(ctx) != r.app { // until its own app is chosen before others
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
	}
	return nil
}

// killOne kills the edge of the second region while clients ask at the others.
func (s *stage) killOne(ctx context.Context) error {
	victim, living := s.regions[1], []*region{s.regions[0], s.regions[2]}
	s.say("\nthe edge of %s is killed (SIGKILL) while %d clients ask at the others:", victim.name, askers*len(living))
	loading, endLoad := context.WithCancel(ctx)
	totals := make([]rig.Tally, len(living))
	var clients sync.WaitGroup
	var mu sync.Mutex // guards totals
	for i, r := range living {
		for range askers {
			clients.Go(func() {
				for loading.Err() == nil {
					began := time.Now()
					who, err := r.ask(ctx)
					mu.Lock()
					totals[i].Count(began, who, err)
					mu.Unlock()
				}
			})
		}
	}
	err := func() error {
		if err := rig.Wait(ctx, time.Second); err != nil {
			return err
		}
		killed := time.Now()
		if err := victim.edge.Process().Signal(syscall.SIGKILL); err != nil {
			return err
		}
		back, err := s.awaitMoved(ctx, victim, killed)
		if err != nil {
			return err
		}
		s.say("  %s, whose edge is gone, is reached through another edge %.2f s later", victim.app, back.Seconds())
		return rig.Wait(ctx, time.Second)
	}()
	endLoad()
	clients.Wait()
	failed := 0
	for i, r := range living {
		s.say("  at %-10s %s; slowest %d ms", r.name, totals[i].String(), totals[i].Slowest.Milliseconds())
		failed += len(totals[i].Failures)
		if err := totals[i].Verdict(); err != nil {
			s.say("    %v", err)
		}
	}
	if err != nil {
		return err
	}
	list, err := s.command(ctx, living[0].edge, "cluster", "list")
	if err != nil {
		return err
	}
	s.say("\nthe network as %s sees it:\n\n%s", living[0].name, list)
	if failed > 0 {
		return fmt.Errorf("%d requests failed", failed)
	}
	return nil
}

// awaitMoved waits until one of the living edges has the victim's agent.
func (s *stage) awaitMoved(ctx context.Context, victim *region, since time.Time) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		for _, r := range s.regions {
			if r == victim {
				continue
			}
			text, err := s.command(ctx, r.edge, "status", "--json")
			if err == nil && strings.Count(text, `"tunnel"`)+strings.Count(text, `"token_id"`) > 1 {
				return time.Since(since), nil
			}
		}
		if err := rig.Wait(ctx, 20*time.Millisecond); err != nil {
			return 0, fmt.Errorf("the agent of %s did not find another edge: %w", victim.name, err)
		}
	}
}

// site is the one that only this region's app serves.
func (r *region) site() string { return r.name + ".localhost" }

func (r *region) url(site string) string {
	return "https://" + net.JoinHostPort(site, r.edge.Port()) + "/"
}

// ask makes one request at the region's edge for the site of all regions.
func (r *region) ask(ctx context.Context) (string, error) { return r.askFor(ctx, host) }

// askFor makes one request at the region's edge and returns who answered.
func (r *region) askFor(ctx context.Context, site string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url(site), nil)
	if err != nil {
		return "", err
	}
	response, err := r.client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<10))
	if err != nil {
		return "", err
	}
	who, ok := strings.CutPrefix(strings.TrimSpace(string(body)), "You have reached ")
	if response.StatusCode != http.StatusOK || !ok {
		return "", fmt.Errorf("%s: %.100s", response.Status, body)
	}
	return who, nil
}

func (r *region) askNo(ctx context.Context) string {
	who, _ := r.ask(ctx)
	return who
}

// clear ends everything: apps first, then the edges.
func (s *stage) clear() error {
	var faults []error
	for _, r := range s.regions {
		if r.agent != nil {
			faults = append(faults, r.agent.Stop(12*time.Second))
		}
	}
	for i, r := range s.regions {
		if r.client != nil {
			r.client.CloseIdleConnections()
		}
		if err := r.edge.Stop(); i != 1 { // that one was killed
			faults = append(faults, err)
		}
	}
	return errors.Join(faults...)
}

func (s *stage) say(format string, args ...any) { fmt.Fprintf(s.out, format+"\n", args...) }
