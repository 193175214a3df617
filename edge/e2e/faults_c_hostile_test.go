package e2e

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wormhole/edge/edgetest"
	"wormhole/edge/edgetest/oracle"
	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
)

// contains reports whether a program has printed text.
func contains(p *edgetest.Process, text string) bool { return strings.Contains(p.Output(), text) }

// The multiplexer's frames, as its specification has them.
const (
	frameData, frameWindow, framePing, frameGoAway = 0, 1, 2, 3
	flagSYN, flagACK, flagFIN                      = 1, 2, 4
)

// frame is one frame of the multiplexer with an empty body of that length for data.
func frame(kind byte, flags uint16, id, length uint32) []byte {
	b := []byte{0, kind}
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint32(b, id)
	b = binary.BigEndian.AppendUint32(b, length)
	if kind == frameData {
		b = append(b, make([]byte, length)...)
	}
	return b
}

// knock opens a TLS connection to the agents' door.
func knock(t *testing.T, e *edgetest.EdgeProcess) *tls.Conn {
	t.Helper()
	conn, err := tls.Dial("tcp", e.Status.Addresses["https"], &tls.Config{
		RootCAs: edgetest.Roots(t, e.Status.CA), ServerName: "localhost", NextProtos: []string{protocol.ALPN}, MinVersion: tls.VersionTLS13,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestC7HostileAgent(t *testing.T) {
	e := binaries.StartEdge(t)
	app := answering(t, nil)
	sidecar(t, e, binaries.Token(t, e.Dir, "--host", host), app, "victim")
	e.AwaitReady(t, 1)
	hostile := binaries.Token(t, e.Dir, "--host", otherHost)
	pid := e.Cmd.Process.Pid

	many := func(b []byte) []byte { return bytes.Repeat(b, 1000) }
	next := uint32(1)
	attacks := []struct {
		name string
		once []byte
		loop func() []byte
	}{
		{"window overrun", nil, func() []byte { return frame(frameData, 0, 1, 32<<10) }},
		{"duplicate id", nil, func() []byte { return frame(frameWindow, flagSYN, 1, 0) }},
		{"an id of the edge's", nil, func() []byte { return frame(frameWindow, flagSYN, 2, 0) }},
		{"1-byte frames", nil, func() []byte { return many(frame(frameData, 0, 1, 1)) }},
		{"empty frames", nil, func() []byte { return many(frame(frameData, 0, 1, 0)) }},
		{"frames of no stream", nil, func() []byte { return many(frame(frameData, 0, 77, 100)) }},
		{"empty window updates", nil, func() []byte { return many(frame(frameWindow, 0, 1, 0)) }},
		{"window without end", nil, func() []byte { return many(frame(frameWindow, 0, 1, 1<<32-1)) }},
		{"ping flood", nil, func() []byte { return many(frame(framePing, flagSYN, 0, 0)) }},
		{"pong flood", nil, func() []byte { return many(frame(framePing, flagACK, 0, 0)) }},
		{"stream flood", nil, func() []byte { next += 2; return frame(frameWindow, flagSYN, next, 0) }},
		{"streams full of data", nil, func() []byte { next += 2; return frame(frameData, flagSYN, next, 32<<10) }},
		{"data after the end", frame(frameData, flagFIN, 1, 10), func() []byte { return frame(frameData, 0, 1, 10) }},
		{"wrong version", nil, func() []byte { return append([]byte{1}, frame(frameData, 0, 0, 0)[1:]...) }},
		{"unknown type", nil, func() []byte { return frame(9, 0, 0, 0) }},
		{"control message of 16 MiB", nil, func() []byte { // the head of a frame of the control stream
			return append(frame(frameData, 0, 1, 0)[:8], 0, 0, 0, 4, byte(protocol.TypeReady), 0xff, 0xff, 0xff)
		}},
		{"garbage as control messages", nil, func() []byte {
			junk := []byte{byte(protocol.TypeReady), 0, 0, 8, '{', '{', '{', '{', 0, 1, 2, 3}
			return append(frame(frameData, 0, 1, uint32(len(junk)))[:12], junk...)
		}},
	}
	victim := edgetest.StartProbe(e.Client(t, "h1"), "https://"+host+"/", 20*time.Millisecond)
	reference := edgetest.StartProbe(control(t, app, "h1"), "https://"+otherHost+"/", 20*time.Millisecond)
	rss := edgetest.RSS(t, pid)
	peak, slowest, worst := rss, time.Duration(0), ""
	for _, a := range attacks {
		next = 1
		conn := knock(t, e)
		hello := &protocol.Hello{Token: hostile, Instance: strings.Repeat("a", 32), Ready: true}
		if _, err := tunnel.Greet(conn, hello); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(append(frame(frameWindow, flagSYN, 1, 0), a.once...)); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() { // ends with the connection
			defer close(ended)
			_, _ = io.Copy(io.Discard, conn)
		}()
		began := time.Now()
		_ = conn.SetDeadline(began.Add(10 * time.Second))
		for open := true; open; {
			_, err := conn.Write(a.loop())
			select {
			case <-ended:
				open = false
			default:
				open = err == nil
			}
			peak = max(peak, edgetest.RSS(t, pid))
		}
		<-ended
		took := time.Since(began)
		if took > slowest {
			slowest, worst = took, a.name
		}
		_ = conn.Close()
	}
	answers, before := victim.Stop(), reference.Stop()
	e.AwaitReady(t, 1)
	oracle.Row{
		ID:   "C7",
		Done: fmt.Sprintf("%d attacks on the multiplexer and the control stream by an agent with a valid token", len(attacks)),
		Figure: fmt.Sprintf("closed after %s at most (%s); RSS +%s; others %d of %d failed, p99 %s, of a control %s",
			ms(slowest), worst, mib(peak-rss), answers.Failed(), len(answers), ms(answers.P99()), ms(before.P99())),
		Limit: "1 s, +32 MiB, 0 failed",
		OK: slowest <= scaled(4*time.Second, time.Second) && peak-rss <= 32<<20 && answers.Failed() == 0 &&
			!disturbed(before, answers, 2),
	}.Verdict(t)
	if t.Failed() {
		t.Log(answers.Faults())
	}
}

func TestC12GarbageBeforeAuthentication(t *testing.T) {
	mostlyWaits(t)
	each := scaled(20, 200)
	e := binaries.StartEdge(t)
	sidecar(t, e, binaries.Token(t, e.Dir, "--host", host), answering(t, nil), "victim")
	e.AwaitReady(t, 1)
	pid := e.Cmd.Process.Pid
	rss, goroutines := edgetest.RSS(t, pid), e.Metric(t, "go_goroutines")

	junk := make([]byte, 64<<10)
	_, _ = crand.Read(junk)
	raw := func() net.Conn {
		conn, err := net.Dial("tcp", e.Status.Addresses["https"])
		if err != nil {
			t.Error(err)
		}
		return conn
	}
	after := func(bytes []byte) func() net.Conn { // a handshake, then these
		return func() net.Conn {
			conn := knock(t, e)
			_, _ = conn.Write(bytes)
			return conn
		}
	}
	kinds := map[string]func() net.Conn{
		"junk instead of TLS":      func() net.Conn { c := raw(); _, _ = c.Write(junk); return c },
		"TLS and nothing":          after(nil),
		"TLS and junk":             after(junk),
		"a hello of 16 MiB":        after([]byte{byte(protocol.TypeHello), 0xff, 0xff, 0xff, '{'}),
		"half a hello":             after([]byte{byte(protocol.TypeHello), 0, 1, 0, '{'}),
		"frames instead of hello":  after(bytes.Repeat(frame(frameWindow, flagSYN, 1, 0), 1000)),
		"a hello without a token":  after([]byte{byte(protocol.TypeHello), 0, 0, 2, '{', '}'}),
		"a byte now and then":      nil, // below
		"half a handshake message": func() net.Conn { c := raw(); _, _ = c.Write([]byte{22, 3, 1, 2, 0, 1}); return c },
	}
	slowHello := func() net.Conn {
		conn := knock(t, e)
		go func() { // ends when the edge closes
			for {
				if _, err := conn.Write([]byte{byte(protocol.TypeHello), 0, 16, 0}[:1]); err != nil {
					return
				}
				time.Sleep(200 * time.Millisecond)
			}
		}()
		return conn
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	took := map[string]time.Duration{}
	var read atomic.Int64
	slots := make(chan struct{}, 16) // at most so many at the handshake
	for name, open := range kinds {
		if open == nil {
			open = slowHello
		}
		for range each {
			wg.Go(func() {
				slots <- struct{}{}
				conn := open()
				<-slots
				if conn == nil {
					return
				}
				defer conn.Close()
				began := time.Now()
				_ = conn.SetReadDeadline(began.Add(20 * time.Second))
				n, _ := io.Copy(io.Discard, conn)
				read.Add(n)
				mu.Lock()
				defer mu.Unlock()
				took[name] = max(took[name], time.Since(began))
			})
		}
	}
	most := 0
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	peak := rss
	for running := true; running; {
		select {
		case <-done:
			running = false
		case <-time.After(50 * time.Millisecond):
		}
		peak = max(peak, edgetest.RSS(t, pid))
		most = max(most, int(e.Metric(t, `wormhole_edge_tunnels{carrier="tls"}`)))
	}
	var slowest time.Duration
	worst := ""
	for name, d := range took {
		limit := 5 * time.Second
		if strings.Contains(name, "handshake") || strings.Contains(name, "instead of TLS") {
			limit = 10 * time.Second // row E5
		}
		if d-limit > slowest || worst == "" {
			slowest, worst = d-limit, name
		}
	}
	left := goroutines + 6
	for deadline := time.Now().Add(edgetest.Patience); left > goroutines+5 && time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		left = e.Metric(t, "go_goroutines")
	}
	status, _, _, err := ask(e.Client(t, "h1"), "/")
	oracle.Row{
		ID:   "C12",
		Done: fmt.Sprintf("%d kinds of garbage instead of a hello, %d connections each", len(kinds), each),
		Figure: fmt.Sprintf("%q the slowest, %s beyond its limit; %d tunnels besides the victim's; RSS +%s; goroutines %.0f, then %.0f; next request %d",
			worst, ms(slowest), most-1, mib(peak-rss), goroutines, left, status),
		Limit: "5 s (handshakes 10 s) + 1 s to hang up, no tunnel, +32 MiB, goroutines +5",
		OK:    left <= goroutines+5 && slowest <= scaled(4*time.Second, 2*time.Second) && most == 1 && peak-rss <= scaled[int64](48<<20, 64<<20) && err == nil && status == http.StatusOK,
	}.Verdict(t)
}

func TestC11NothingLeaks(t *testing.T) {
	times, workers := scaled(1000, 10_000), 4
	e := binaries.StartEdge(t)
	app := answering(t, map[string]http.HandlerFunc{"/down": trickle, "/up": swallow})
	agent := sidecar(t, e, binaries.Token(t, e.Dir, "--host", host), app, "one")
	e.AwaitReady(t, 1)
	count := func() [3]int {
		return [3]int{int(e.Metric(t, "go_goroutines")), edgetest.FDs(t, e.Cmd.Process.Pid), edgetest.FDs(t, agent.Cmd.Process.Pid)}
	}
	clients := []*http.Client{e.Client(t, "h1"), e.Client(t, "h2")}
	parallel := func(n int, f func(i int)) {
		var wg sync.WaitGroup
		var at atomic.Int64
		for range workers {
			wg.Go(func() {
				for i := int(at.Add(1)); i <= n; i = int(at.Add(1)) {
					f(i)
				}
			})
		}
		wg.Wait()
	}
	roots := edgetest.Roots(t, e.Status.CA)
	connect := func(i int) {
		conn, err := tls.Dial("tcp", e.Status.Addresses["https"], &tls.Config{RootCAs: roots, ServerName: host, MinVersion: tls.VersionTLS12})
		if err != nil {
			t.Error(err)
			return
		}
		if i%2 == 0 {
			_ = conn.NetConn().(*net.TCPConn).SetLinger(0)
			_ = conn.NetConn().Close()
		}
		_ = conn.Close()
	}
	abort := func(i int) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		method, path, body := http.MethodGet, "/down", io.Reader(nil)
		if i%4 == 3 { // while it is sent
			pace := new(atomic.Int64)
			pace.Store(int64(time.Millisecond))
			method, path, body = http.MethodPost, "/up", paced{pace}
			time.AfterFunc(5*time.Millisecond, cancel)
		}
		req, _ := http.NewRequestWithContext(ctx, method, "https://"+host+path, body)
		resp, err := clients[i%2].Do(req)
		if err != nil {
			if method == http.MethodGet {
				t.Error(err)
			}
			return
		}
		_, _ = resp.Body.Read(make([]byte, 1))
		cancel()
		_ = resp.Body.Close()
	}
	rest := func() {
		for _, c := range clients {
			c.CloseIdleConnections()
		}
		edgetest.Eventually(t, "nothing is in flight", func() bool { return e.Metric(t, "wormhole_edge_requests_in_flight") == 0 })
	}
	parallel(40, connect) // what stays after the first of each kind
	parallel(40, abort)
	rest()
	var base [3]int
	edgetest.Eventually(t, "a steady state", func() bool {
		before := base
		base = count()
		return base == before
	})
	rss := edgetest.RSS(t, e.Cmd.Process.Pid)
	parallel(times, connect)
	parallel(times, abort)
	rest()
	var end [3]int
	deadline := time.Now().Add(edgetest.Patience)
	back := false
	for !back && time.Now().Before(deadline) {
		end = count()
		back = true
		for i := range end {
			back = back && end[i] <= base[i]+5
		}
		if !back {
			time.Sleep(50 * time.Millisecond)
		}
	}
	after := edgetest.RSS(t, e.Cmd.Process.Pid)
	oracle.Row{
		ID:   "C11",
		Done: fmt.Sprintf("%d connections opened and closed, %d requests aborted by their clients", times, times),
		Figure: fmt.Sprintf("edge: goroutines %d, then %d, descriptors %d, then %d, RSS %s, then %s; agent: descriptors %d, then %d",
			base[0], end[0], base[1], end[1], mib(rss), mib(after), base[2], end[2]),
		Limit: "back to the baseline + 5",
		OK:    back && after <= scaled(2*rss+32<<20, rss+rss/5+16<<20),
	}.Verdict(t)
}
