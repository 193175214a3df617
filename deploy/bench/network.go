package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"wormhole/deploy/link"
	"wormhole/deploy/rig"
)

// The two networks of the table.
var (
	longLink = link.Config{RTT: 100 * time.Millisecond, Rate: 200e6, Seed: 1}
	lossLink = link.Config{RTT: 50 * time.Millisecond, Rate: 200e6, Loss: 0.005, Seed: 1}
)

const (
	longWarm  = 3 * time.Second // slow start is over
	longTime  = 8 * time.Second
	smallRate = 50 // requests a second
	// smallConns is more than what is ever in flight, so that a request never waits
	// for another of its own kind.
	smallConns = 64
)

// network is the tunnel over a link: client and edge on side A, agent and app on B.
type network struct {
	link   *link.Link
	target *target
	app    *rig.Process
	edge   *rig.Edge
	agent  *rig.Process
}

// openNetwork starts everything. The real programs run in the namespaces; client
// and plain connections are this process's.
// congestion is what both ends of the tunnel choose, as their flags say it.
func openNetwork(ctx context.Context, s *site, cfg link.Config, congestion string) (n *network, err error) {
	n = &network{}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
			n = nil
		}
	}()
	if n.link, err = link.New(cfg); err != nil {
		return n, err
	}
	dir, err := os.MkdirTemp(s.dir, "network-")
	if err != nil {
		return n, err
	}
	hosts := filepath.Join(dir, "hosts")
	if err := os.WriteFile(hosts, []byte(n.link.A.Addr.String()+" localhost\n"), 0o644); err != nil {
		return n, err
	}
	near := rig.Place{IP: n.link.A.Addr.String(), Do: n.link.A.Do}
	far := rig.Place{Do: n.link.B.Do}
	app, err := far.FreePort()
	if err != nil {
		return n, err
	}
	self, err := os.Executable()
	if err != nil {
		return n, err
	}
	if n.app, err = far.Start("app", exec.Command(self, "--serve-app", app), os.Stderr); err != nil {
		return n, err
	}
	if n.edge, err = near.StartEdge(ctx, s.binaries, dir, "--tunnel-congestion", congestion); err != nil {
		return n, err
	}
	token, err := n.edge.Token(ctx, host)
	if err != nil {
		return n, err
	}
	far.Hosts = hosts
	n.agent, err = n.edge.StartAgentIn(far, "agent", token, host, filepath.Join(dir, "agent.log"), []string{"WORMHOLE_ENDPOINT=" + app, "WORMHOLE_CONGESTION=" + congestion})
	if err != nil {
		return n, err
	}
	n.target = &target{
		name: "wormhole", addr: n.edge.Addr, roots: n.edge.Roots(), place: near,
		processes: []*rig.Process{n.agent, n.edge.Process()},
	}
	return n, s.awaitTarget(ctx, n.target)
}

func (n *network) close() error {
	var faults []error
	if n.agent != nil {
		faults = append(faults, n.agent.Stop(15*time.Second))
	}
	if n.edge != nil {
		faults = append(faults, n.edge.Stop())
	}
	if n.app != nil {
		faults = append(faults, n.app.Stop(5*time.Second))
	}
	if n.link != nil {
		faults = append(faults, n.link.Close())
	}
	return errors.Join(faults...)
}

// meter counts what is read through it.
type meter struct{ n atomic.Int64 }

func (m *meter) Write(p []byte) (int, error) {
	m.n.Add(int64(len(p)))
	return len(p), nil
}

// rate is how many bytes a second pass for d, after warm.
func (m *meter) rate(ctx context.Context, warm, d time.Duration) (float64, error) {
	if err := pause(ctx, warm); err != nil {
		return 0, err
	}
	before, began := m.n.Load(), time.Now()
	if err := pause(ctx, d); err != nil {
		return 0, err
	}
	return float64(m.n.Load()-before) / time.Since(began).Seconds(), nil
}

// source is something that sends without end, from the app's side to the client's.
type source func(ctx context.Context, into io.Writer) error

// throughTunnel downloads from the app.
func (n *network) throughTunnel(ctx context.Context, into io.Writer) error {
	client := n.target.client(1)
	client.Timeout = 0
	defer client.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, n.target.url(endlessPath), nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	_, err = io.CopyBuffer(into, response.Body, make([]byte, 64<<10))
	return err
}

// plainly downloads the same over one TCP connection across the link, with nothing
// between.
func (n *network) plainly(ctx context.Context, into io.Writer) error {
	listener, err := n.link.B.Listen("tcp4", n.link.B.Addr.String()+":0")
	if err != nil {
		return err
	}
	defer listener.Close()
	sent := make(chan struct{})
	go func() { // ends when listener or connection are closed
		defer close(sent)
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		for block := pattern(64 << 10); err == nil; {
			_, err = conn.Write(block)
		}
	}()
	conn, err := n.link.A.DialContext(ctx, "tcp4", listener.Addr().String())
	if err != nil {
		_ = listener.Close()
		<-sent
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	_, err = io.CopyBuffer(into, struct{ io.Reader }{conn}, make([]byte, 64<<10))
	_ = conn.Close()
	<-sent
	return err
}

// beside runs from while f does its work; f gets the meter of what from sends.
func beside(ctx context.Context, from source, f func(ctx context.Context, m *meter) error) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	m := &meter{}
	broken := make(chan error, 1)
	go func() { // ends with ctx, and is waited for
		err := from(ctx, m)
		if ctx.Err() == nil {
			stop() // f need not go on
			broken <- fmt.Errorf("bulk ended: %w", err)
			return
		}
		broken <- nil
	}()
	err := f(ctx, m)
	stop()
	if cause := <-broken; cause != nil {
		return cause
	}
	return err
}

// steadyRate is the rate of one source that runs alone, for d after warm.
func steadyRate(ctx context.Context, from source, warm, d time.Duration) (rate float64, err error) {
	err = beside(ctx, from, func(ctx context.Context, m *meter) error {
		rate, err = m.rate(ctx, warm, d)
		return err
	})
	return rate, err
}

// small asks for the small answer at a fixed rate for d, and returns how long each
// took from when it should have been sent, in order of length.
func (n *network) small(ctx context.Context, d time.Duration) ([]time.Duration, error) {
	client := n.target.client(smallConns)
	defer client.CloseIdleConnections()
	total := int(d.Seconds() * smallRate)
	latencies := make([]time.Duration, total)
	start := time.Now()
	var running sync.WaitGroup
	faults := make(chan error, total)
	for i := range total {
		intended := start.Add(time.Duration(i) * time.Second / smallRate)
		if err := pause(ctx, time.Until(intended)); err != nil {
			break
		}
		running.Go(func() {
			if _, err := exchange(ctx, client, http.MethodGet, n.target.url(smallPath), nil); err != nil {
				faults <- err
			}
			latencies[i] = time.Since(intended)
		})
	}
	running.Wait()
	close(faults)
	slices.Sort(latencies)
	return latencies, errors.Join(ctx.Err(), <-faults)
}

// sockets says how many TCP connections the tunnel has now, and which congestion
// control: what the tunnel does by itself differs from the link's default.
func (n *network) sockets(ctx context.Context) (count int, controls []string, err error) {
	var output []byte
	err = n.link.B.Do(func() error {
		output, err = exec.CommandContext(ctx, "ss", "-tinH", "state", "established", "dst", n.link.A.Addr.String()).Output()
		return err
	})
	if err != nil {
		return 0, nil, fmt.Errorf("ss: %w", err)
	}
	count, controls = parseSockets(string(output), n.edge.Addr)
	return count, controls, nil
}

// parseSockets reads what `ss -tinH` says: two lines a connection, of which the
// second begins with the congestion control. Those to other addresses than edge are
// not the tunnel's.
func parseSockets(output, edge string) (count int, controls []string) {
	lines := strings.Split(strings.TrimRight(output, "\n"), "\n")
	for i := 0; i+1 < len(lines); i++ {
		if !slices.ContainsFunc(strings.Fields(lines[i]), func(word string) bool { return sameAddr(word, edge) }) {
			continue
		}
		count++
		for _, word := range strings.Fields(lines[i+1]) {
			if slices.Contains([]string{"cubic", "bbr", "reno"}, word) && !slices.Contains(controls, word) {
				controls = append(controls, word)
			}
		}
	}
	slices.Sort(controls)
	return count, controls
}

func sameAddr(a, b string) bool {
	x, err := netip.ParseAddrPort(a)
	if err != nil {
		return false
	}
	y, err := netip.ParseAddrPort(b)
	return err == nil && netip.AddrPortFrom(x.Addr().Unmap(), x.Port()) == y
}

// bulkResult is one bulk stream alone over longLink, as shares of the link.
type bulkResult struct{ plain, tunnel []float64 }

// networkReport is what was measured over links with one congestion control.
type networkReport struct {
	congestion string
	bulk       bulkResult
	beside     besideResult
	late       []string       // how exact the link was
	pressed    int64          // how often TCP ran short of memory meanwhile
	other      *networkReport // with another one; nil where the system has none
}

// measureNetwork measures the rows of real networks: rounds times with cubic, which
// the goals are for, and once with bbr, which tunnels use where the system offers it.
func measureNetwork(ctx context.Context, s *site, rounds int) (*networkReport, error) {
	r, err := measureWith(ctx, s, "cubic", rounds, besidePlan{links: 8, pairs: 2, warm: lossWarm, length: lossTime})
	if err != nil {
		return nil, err
	}
	offered, err := os.ReadFile("/proc/sys/net/ipv4/tcp_available_congestion_control")
	if err == nil && slices.Contains(strings.Fields(string(offered)), "bbr") {
		// It fills the link and much of the machine: one at a time.
		r.other, err = measureWith(ctx, s, "bbr", 1, besidePlan{links: 1, pairs: 1, warm: lossWarm, length: lossTime})
	}
	return r, err
}

// measureWith measures with one congestion control everywhere, also on the plain
// connections.
func measureWith(ctx context.Context, s *site, congestion string, rounds int, plan besidePlan) (*networkReport, error) {
	// The links' threads must not wait for this process's other goroutines.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(runtime.NumCPU() + 4))
	r := &networkReport{congestion: congestion}
	pressed, err := memoryPressures()
	if err != nil {
		return nil, err
	}
	on := func(cfg link.Config, links int, name string, measure func([]*network) error) (err error) {
		cfg.Congestion = congestion
		var networks []*network
		defer func() {
			for _, n := range networks {
				err = errors.Join(err, n.close())
			}
		}()
		for range links {
			n, err := openNetwork(ctx, s, cfg, congestion)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			networks = append(networks, n)
		}
		if err := measure(networks); err != nil {
			return err
		}
		r.late = append(r.late, congestion+", "+name+": "+punctuality(networks))
		return nil
	}
	if err := on(longLink, 1, "100 ms", func(n []*network) error { return r.bulk.measure(ctx, n[0], rounds) }); err != nil {
		return nil, err
	}
	if err := on(lossLink, plan.links, "50 ms, 0.5 % loss", func(n []*network) error { return r.beside.measure(ctx, n, plan) }); err != nil {
		return nil, err
	}
	now, err := memoryPressures()
	r.pressed = now - pressed
	return r, err
}

// punctuality says how exact the links were.
func punctuality(networks []*network) string {
	var sent, late int64
	var latest time.Duration
	for _, n := range networks {
		toB, toA := n.link.Stats()
		sent, late, latest = sent+toB.Sent+toA.Sent, late+toB.Late+toA.Late, max(latest, toB.Latest, toA.Latest)
	}
	at := ""
	if len(networks) > 1 {
		at = fmt.Sprintf(" on %d links at once", len(networks))
	}
	return fmt.Sprintf("%.3f %% of %d packets%s were more than 2 ms late, the worst %d ms", 100*float64(late)/float64(max(1, sent)), sent, at, latest.Milliseconds())
}

func (r *bulkResult) measure(ctx context.Context, n *network, rounds int) error {
	const full = 200e6 / 8
	for round := range rounds {
		plain, err := steadyRate(ctx, n.plainly, longWarm, longTime)
		if err != nil {
			return fmt.Errorf("plain connection: %w", err)
		}
		tunnel, err := steadyRate(ctx, n.throughTunnel, longWarm, longTime)
		if err != nil {
			return fmt.Errorf("through the tunnel: %w", err)
		}
		r.plain, r.tunnel = append(r.plain, plain/full), append(r.tunnel, tunnel/full)
		fmt.Fprintf(os.Stderr, "100 ms     round %d  plain %.1f %%, tunnel %.1f %% of the link\n", round+1, 100*plain/full, 100*tunnel/full)
	}
	return nil
}

// markdown is the table of real networks.
func (r *networkReport) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n| over a link of 200 Mbit/s, TCP with %s | one plain TCP connection | through the tunnel |\n|---|---:|---:|\n", r.congestion)
	fmt.Fprintf(&b, "| one bulk download, 100 ms round trip, share of the link | %s %% | %s %% |\n",
		spread("%.1f", times(100, r.bulk.plain)), spread("%.1f", times(100, r.bulk.tunnel)))
	fmt.Fprintf(&b, "| bulk download, 50 ms, 0.5 %% loss, MB/s | %s | %s |\n",
		spread("%.3f", times(1e-6, r.beside.plain)), spread("%.3f", times(1e-6, r.beside.tunnel)))
	fmt.Fprintf(&b, "| %d small requests/s beside that bulk, p50 ms | | %s |\n", smallRate, spread("%.0f", inMilliseconds(r.beside.p50)))
	fmt.Fprintf(&b, "| p99 ms | | %s |\n", spread("%.0f", inMilliseconds(r.beside.p99)))
	fmt.Fprintf(&b, "| the same without bulk, p50 / p99 ms | | %.0f / %.0f |\n", median(inMilliseconds(r.beside.alone50)), median(inMilliseconds(r.beside.alone99)))
	fmt.Fprintf(&b, "\nShares are of payload: 96.5 %% is all that fits beside the headers. Beside bulk the tunnel has %d TCP connections (%s).\n",
		r.beside.sockets, strings.Join(r.beside.controls, ", "))
	if bulk := r.beside.bulk(); bulk.pairs > 1 {
		fmt.Fprintf(&b, "That bulk beside the plain connection's, which loses the same packets: %s. From pair to pair the ratio varies by %.1f %%, so that its mean is known to %.1f %% (standard error).\n",
			bulk, 100*bulk.sigma, 100*bulk.sigma/math.Sqrt(float64(bulk.pairs)))
	}
	for _, line := range r.late {
		fmt.Fprintf(&b, "The link itself, %s.\n", line)
	}
	if r.pressed > 0 {
		fmt.Fprintf(&b, "**The TCP of this system was short of memory %d times meanwhile**, which makes all windows small: these rates are not those of the link.\n", r.pressed)
	}
	if r.other != nil {
		b.WriteString(r.other.markdown())
	}
	return b.String()
}

func times(factor float64, values []float64) []float64 {
	scaled := make([]float64, len(values))
	for i, v := range values {
		scaled[i] = factor * v
	}
	return scaled
}

func inMilliseconds(durations []time.Duration) []float64 {
	values := make([]float64, len(durations))
	for i, d := range durations {
		values[i] = milliseconds(d)
	}
	return values
}
