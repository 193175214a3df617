package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// workload is one way to use a target for a while.
type workload struct {
	name  string
	title string
	unit  string // what cost and rate count: "1,000", "GB"
	run   func(ctx context.Context, t *target, d time.Duration) (outcome, error)
}

// outcome is what one run did. Any failure is an error instead.
type outcome struct {
	units    float64
	p50, p99 time.Duration // zero where latency is not measured
}

const (
	perThousand = "1,000"
	perGB       = "GB"

	fixedRate      = 1000 // requests a second
	fixedConns     = 64
	bulkConns      = 4
	handshakeConns = 4
)

func workloads() []workload {
	return []workload{
		{"h1", "HTTP/1.1, 300 B, 64 connections", perThousand, wrk(smallPath)},
		{"h1kib", "HTTP/1.1, 1 KiB, 64 connections", perThousand, wrk(kibPath)},
		{"h2", "HTTP/2, 300 B, 8 connections x 32 streams", perThousand, h2load},
		{"fixed", "HTTP/1.1, 300 B, 1,000 requests/s, open loop", perThousand, fixed},
		{"download", "download 10 MiB, 4 connections", perGB, download},
		{"upload", "upload 10 MiB, 4 connections", perGB, upload},
		{"handshake", "full TLS 1.3 handshakes, no resumption, X25519", perThousand, handshakes(tls.X25519)},
		{"resumed", "resumed TLS handshakes, each with a request", perThousand, resumed},
		{"hybrid", "the same, the client prefers X25519MLKEM768", perThousand, handshakes(tls.X25519MLKEM768, tls.X25519)},
	}
}

func workloadNames() []string {
	var names []string
	for _, w := range workloads() {
		names = append(names, w.name)
	}
	return names
}

// sectionNames are the parts of a run besides workloads.
var sectionNames = []string{"idle", "profile", "network", "scale"}

// plan is what one run measures.
type plan struct {
	workloads                     []workload
	idle, profile, network, scale bool
}

// chosen is the plan that only names; everything if it names nothing.
func chosen(only string) (plan, error) {
	all := workloads()
	if only == "" {
		return plan{workloads: all, idle: true, profile: true, network: true, scale: true}, nil
	}
	var p plan
	sections := map[string]*bool{"idle": &p.idle, "network": &p.network, "scale": &p.scale, "profile": &p.profile}
	for _, name := range strings.Split(only, ",") {
		i := slices.IndexFunc(all, func(w workload) bool { return w.name == name })
		section := sections[name]
		switch {
		case i >= 0:
			p.workloads = append(p.workloads, all[i])
		case section != nil:
			*section = true
		default:
			return p, fmt.Errorf("no workload %q; there are %s, %s", name, strings.Join(workloadNames(), ", "), strings.Join(sectionNames, ", "))
		}
	}
	return p, nil
}

// warm fills connection pools and code caches before the clock runs.
func (w workload) warm(ctx context.Context, t *target) error {
	client := t.client(8)
	defer client.CloseIdleConnections()
	return inParallel(8, func(int) error {
		for range 25 {
			if _, err := exchange(ctx, client, http.MethodGet, t.url(smallPath), nil); err != nil {
				return err
			}
		}
		return nil
	})
}

// wrkScript makes wrk dial loopback whatever the name resolves to, so that it
// still sends the name in SNI and Host.
const wrkScript = `
function wrk.resolve(host, service)
	wrk.addrs = wrk.lookup("127.0.0.1", service)
end
`

func wrk(path string) func(context.Context, *target, time.Duration) (outcome, error) {
	return func(ctx context.Context, t *target, d time.Duration) (outcome, error) {
		script, err := os.CreateTemp("", "wrk-*.lua")
		if err != nil {
			return outcome{}, err
		}
		defer os.Remove(script.Name())
		if _, err := script.WriteString(wrkScript); err != nil {
			return outcome{}, err
		}
		if err := script.Close(); err != nil {
			return outcome{}, err
		}
		seconds := fmt.Sprintf("%ds", int(d.Round(time.Second).Seconds()))
		output, err := tool(ctx, "wrk", "-t1", "-c64", "-d"+seconds, "--timeout", "5s", "-s", script.Name(), t.url(path))
		if err != nil {
			return outcome{}, err
		}
		return parseWrk(output)
	}
}

var (
	wrkRequests = regexp.MustCompile(`(?m)^\s*(\d+) requests in `)
	wrkSocket   = regexp.MustCompile(`(?m)^\s*Socket errors:.*$`)
	wrkStatus   = regexp.MustCompile(`(?m)^\s*Non-2xx or 3xx responses: \d+`)
)

func parseWrk(output string) (outcome, error) {
	for _, trouble := range []*regexp.Regexp{wrkSocket, wrkStatus} {
		if line := trouble.FindString(output); line != "" {
			return outcome{}, errors.New(strings.TrimSpace(line))
		}
	}
	match := wrkRequests.FindStringSubmatch(output)
	if match == nil {
		return outcome{}, fmt.Errorf("wrk said nothing of requests: %q", output)
	}
	n, err := strconv.Atoi(match[1])
	return outcome{units: float64(n) / 1000}, err
}

func h2load(ctx context.Context, t *target, d time.Duration) (outcome, error) {
	output, err := tool(ctx, "h2load", "-c8", "-m32", "-t1", "-D", strconv.Itoa(int(d.Round(time.Second).Seconds())),
		"--connect-to="+t.addr, t.url(smallPath))
	if err != nil {
		return outcome{}, err
	}
	return parseH2load(output)
}

var (
	h2loadRequests = regexp.MustCompile(`(?m)^requests: .* (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout`)
	h2loadProtocol = regexp.MustCompile(`(?m)^Application protocol: h2$`)
)

func parseH2load(output string) (outcome, error) {
	match := h2loadRequests.FindStringSubmatch(output)
	if match == nil {
		return outcome{}, fmt.Errorf("h2load said nothing of requests: %q", output)
	}
	if !h2loadProtocol.MatchString(output) {
		return outcome{}, errors.New("HTTP/2 was not negotiated")
	}
	var n [4]int
	for i := range n {
		var err error
		if n[i], err = strconv.Atoi(match[i+1]); err != nil {
			return outcome{}, err
		}
	}
	if n[1]+n[2]+n[3] > 0 {
		return outcome{}, errors.New(match[0])
	}
	return outcome{units: float64(n[0]) / 1000}, nil
}

// tool runs a load generator and returns what it printed.
func tool(ctx context.Context, name string, args ...string) (string, error) {
	command := exec.CommandContext(ctx, name, args...)
	output, err := command.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(output))
	}
	return string(output), nil
}

// fixed sends at a constant rate whatever the answers do. Latency counts from when
// a request should have been sent, so that a stall is seen by all that it delayed.
func fixed(ctx context.Context, t *target, d time.Duration) (outcome, error) {
	client := t.client(fixedConns)
	defer client.CloseIdleConnections()
	d = max(d, 4*time.Second) // the kernel's clock ticks are coarse beside so little work
	total := int(d.Seconds() * fixedRate)
	latencies := make([]time.Duration, total)
	start := time.Now().Add(20 * time.Millisecond)
	intended := func(i int) time.Time { return start.Add(time.Duration(i) * time.Second / fixedRate) }

	due := make(chan int, total)
	var senders sync.WaitGroup
	faults := make(chan error, fixedConns)
	for range fixedConns {
		senders.Go(func() {
			for i := range due {
				if _, err := exchange(ctx, client, http.MethodGet, t.url(smallPath), nil); err != nil {
					faults <- err
					return
				}
				latencies[i] = time.Since(intended(i))
			}
		})
	}
	for i := range total {
		time.Sleep(time.Until(intended(i)))
		due <- i
	}
	close(due)
	senders.Wait()
	select {
	case err := <-faults:
		return outcome{}, err
	default:
	}
	slices.Sort(latencies)
	return outcome{
		units: float64(total) / 1000,
		p50:   latencies[total/2],
		p99:   latencies[total*99/100],
	}, nil
}

func download(ctx context.Context, t *target, d time.Duration) (outcome, error) {
	return bulk(d, func(clients []*http.Client) func(int) (int64, error) {
		for i := range clients {
			clients[i] = t.client(1)
		}
		return func(worker int) (int64, error) {
			request, err := http.NewRequestWithContext(ctx, http.MethodGet, t.url(bulkPath), nil)
			if err != nil {
				return 0, err
			}
			response, err := clients[worker].Do(request)
			if err != nil {
				return 0, err
			}
			defer response.Body.Close()
			n, err := io.CopyBuffer(onlyWriter{io.Discard}, response.Body, make([]byte, 64<<10))
			if err == nil && (n != bulkSize || response.StatusCode != http.StatusOK) {
				err = fmt.Errorf("%s with %d bytes", response.Status, n)
			}
			return n, err
		}
	})
}

func upload(ctx context.Context, t *target, d time.Duration) (outcome, error) {
	body := pattern(bulkSize)
	want := strconv.Itoa(bulkSize)
	return bulk(d, func(clients []*http.Client) func(int) (int64, error) {
		for i := range clients {
			clients[i] = t.client(1)
		}
		return func(worker int) (int64, error) {
			answer, err := exchange(ctx, clients[worker], http.MethodPost, t.url(uploadPath), bytes.NewReader(body))
			if err == nil && strings.TrimSpace(string(answer)) != want {
				err = fmt.Errorf("the app received %q bytes", answer)
			}
			return bulkSize, err
		}
	})
}

// bulk repeats whole transfers on some connections until the time is over.
func bulk(d time.Duration, prepare func([]*http.Client) func(worker int) (int64, error)) (outcome, error) {
	clients := make([]*http.Client, bulkConns)
	transfer := prepare(clients)
	defer func() {
		for _, client := range clients {
			client.CloseIdleConnections()
		}
	}()
	var moved atomic.Int64
	until := time.Now().Add(d)
	err := inParallel(bulkConns, func(worker int) error {
		for time.Now().Before(until) {
			n, err := transfer(worker)
			if err != nil {
				return err
			}
			moved.Add(n)
		}
		return nil
	})
	return outcome{units: float64(moved.Load()) / 1e9}, err
}

// handshakes connects, shakes hands and leaves. Each worker dials from an address
// of its own, so that closed connections do not use up the ports.
// handshakes offers the given key exchanges. Programs that know hybrid ones, which
// withstand quantum computers, pay for it: only with the same one are they alike.
func handshakes(exchanges ...tls.CurveID) func(context.Context, *target, time.Duration) (outcome, error) {
	return func(ctx context.Context, t *target, d time.Duration) (outcome, error) {
		config := t.tlsConfig("h2", "http/1.1") // no session cache: nothing is resumed
		config.CurvePreferences = exchanges
		return shakeHands(ctx, t, config, d)
	}
}

func shakeHands(ctx context.Context, t *target, config *tls.Config, d time.Duration) (outcome, error) {
	var done atomic.Int64
	until := time.Now().Add(d)
	err := inParallel(handshakeConns, func(worker int) error {
		source := &net.TCPAddr{IP: net.IPv4(127, 0, byte(1+time.Now().UnixNano()%200), byte(1+worker))}
		dialer := tls.Dialer{Config: config, NetDialer: &net.Dialer{LocalAddr: source, Timeout: 5 * time.Second}}
		for time.Now().Before(until) {
			conn, err := dialer.DialContext(ctx, "tcp", t.addr)
			if err != nil {
				return err
			}
			if err := conn.Close(); err != nil {
				return err
			}
			done.Add(1)
		}
		return nil
	})
	return outcome{units: float64(done.Load()) / 1000}, err
}

// resumed connects with a session of before, asks once and leaves. The request is
// there to receive the next ticket, and it shows that the session serves.
func resumed(ctx context.Context, t *target, d time.Duration) (outcome, error) {
	var done atomic.Int64
	until := time.Now().Add(d)
	err := inParallel(handshakeConns, func(int) error {
		config := t.tlsConfig("http/1.1")
		config.CurvePreferences = []tls.CurveID{tls.X25519}
		config.ClientSessionCache = tls.NewLRUClientSessionCache(4)
		for i := 0; time.Now().Before(until); i++ {
			v, err := t.visitWith(ctx, config)
			if err != nil {
				return err
			}
			did := v.conn.ConnectionState().DidResume
			if err := v.close(); err != nil {
				return err
			}
			if i > 0 && !did {
				return errors.New("the session was not resumed")
			}
			done.Add(1)
		}
		return nil
	})
	return outcome{units: float64(done.Load()) / 1000}, err
}

// inParallel runs work n times at once and joins what went wrong.
func inParallel(n int, work func(worker int) error) error {
	faults := make([]error, n)
	var workers sync.WaitGroup
	for i := range n {
		workers.Go(func() { faults[i] = work(i) })
	}
	workers.Wait()
	return errors.Join(faults...)
}
