package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wormhole/edge/edgetest"
	"wormhole/edge/edgetest/oracle"
)

// trickle writes pieces until nobody reads any more.
func trickle(w http.ResponseWriter, r *http.Request) {
	piece := make([]byte, 16<<10)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := w.Write(piece); err != nil {
			return
		}
		_ = http.NewResponseController(w).Flush()
		select {
		case <-r.Context().Done():
			return
		case <-tick.C:
		}
	}
}

// swallow reads a body to its end.
func swallow(_ http.ResponseWriter, r *http.Request) {
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// paced is an endless body: a piece each time the pace says.
type paced struct{ pace *atomic.Int64 }

func (p paced) Read(b []byte) (int, error) {
	time.Sleep(time.Duration(p.pace.Load()))
	return min(len(b), 16<<10), nil
}

func TestC2AgentStalls(t *testing.T) {
	mostlyWaits(t)
	e := binaries.StartEdge(t)
	app := answering(t, map[string]http.HandlerFunc{"/down": trickle, "/up": swallow})
	token := binaries.Token(t, e.Dir, "--host", host)
	stuck := sidecar(t, e, token, app, "stuck")
	e.AwaitReady(t, 1)

	transfers := scaled(60, 100)
	var pace atomic.Int64
	pace.Store(int64(200 * time.Millisecond))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	client := e.Client(t, "h1")
	var running sync.WaitGroup
	var cut, began atomic.Int64
	for i := range transfers {
		running.Go(func() {
			method, path, body := http.MethodGet, "/down", io.Reader(nil)
			if i%2 == 1 {
				method, path, body = http.MethodPost, "/up", paced{&pace}
			}
			req, _ := http.NewRequestWithContext(ctx, method, "https://"+host+path, body)
			began.Add(1)
			resp, err := client.Do(req)
			if err == nil {
				_, err = io.Copy(io.Discard, resp.Body)
				if err == nil && resp.StatusCode != http.StatusOK {
					err = fmt.Errorf("status %d", resp.StatusCode)
				}
				_ = resp.Body.Close()
			}
			if err != nil && ctx.Err() == nil {
				cut.Add(1)
			}
		})
	}
	edgetest.Eventually(t, "transfers run", func() bool {
		b := backend(t, e, "stuck")
		return b != nil && b.InFlight == int64(transfers)
	})
	// From here on there is another backend of the same site, and another tenant.
	sidecar(t, e, token, app, "spare")
	sidecar(t, e, binaries.Token(t, e.Dir, "--host", otherHost), app, "other")
	awaitState(t, e, "spare", "ready")
	awaitState(t, e, "other", "ready")
	others, calm := e.Client(t, "h2"), control(t, app, "h2")
	pid := e.Cmd.Process.Pid
	rss := edgetest.RSS(t, pid)
	peak := rss

	stuck.Signal(syscall.SIGSTOP)
	pace.Store(int64(20 * time.Millisecond)) // the clients push on
	tenant := edgetest.StartProbe(others, "https://"+otherHost+"/", 20*time.Millisecond)
	reference := edgetest.StartProbe(calm, "https://"+otherHost+"/", 20*time.Millisecond)
	same := edgetest.StartProbe(others, "https://"+host+"/", 50*time.Millisecond)
	evicted := awaitGone(t, e, "stuck", 20*time.Second, func() { peak = max(peak, edgetest.RSS(t, pid)) })
	edgetest.Eventually(t, "transfers through the stopped agent end in errors", func() bool { return cut.Load() == int64(transfers) })
	during, before, beside := tenant.Stop(), reference.Stop(), same.Stop()
	cancel()
	running.Wait()
	late := beside.Since(5 * time.Second)
	oracle.Row{
		ID:   "C2",
		Done: fmt.Sprintf("kill -STOP of an agent with %d transfers, half up, half down", transfers),
		Figure: fmt.Sprintf("evicted after %s; another tenant %d of %d failed, p99 %s, of a control %s; same site after 5 s: %d of %d failed; RSS +%s",
			ms(evicted), during.Failed(), len(during), ms(during.P99()), ms(before.P99()), late.Failed(), len(late), mib(peak-rss)),
		Limit: "evicted 15 s, others' p99 1.5 x and 0 failed, RSS +64 MiB",
		OK: evicted <= 15*time.Second && during.Failed() == 0 && !disturbed(before, during, 1.5) &&
			late.Failed() == 0 && peak-rss <= 64<<20,
	}.Verdict(t)
	if t.Failed() {
		t.Log(during.Faults(), late.Faults())
	}
}

func TestC3OneSlowStreamBesideFastOnes(t *testing.T) {
	e := binaries.StartEdge(t)
	endless := func(w http.ResponseWriter, _ *http.Request) {
		piece := make([]byte, 64<<10)
		for {
			if _, err := w.Write(piece); err != nil {
				return
			}
		}
	}
	app := answering(t, map[string]http.HandlerFunc{"/endless": endless})
	sidecar(t, e, binaries.Token(t, e.Dir, "--host", host), app, "one")
	sidecar(t, e, binaries.Token(t, e.Dir, "--host", otherHost), app, "free")
	e.AwaitReady(t, 2)
	client := e.Client(t, "h1")
	resp, err := e.Client(t, "h1").Get("https://" + host + "/endless")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.CopyN(io.Discard, resp.Body, 1<<20); err != nil { // and then no more
		t.Fatal(err)
	}
	beside := edgetest.StartProbe(client, "https://"+host+"/", 5*time.Millisecond)
	free := edgetest.StartProbe(client, "https://"+otherHost+"/", 5*time.Millisecond)
	time.Sleep(scaled(3*time.Second, 30*time.Second))
	during, before := beside.Stop(), free.Stop()
	oracle.Row{
		ID:     "C3",
		Done:   "a client of one tunnel ceases to read an endless answer, others ask that tunnel and another 200/s",
		Figure: fmt.Sprintf("%d of %d failed, p99 %s, %s in the other tunnel", during.Failed(), len(during), ms(during.P99()), ms(before.P99())),
		Limit:  "0 failed, p99 2 x",
		OK:     during.Failed() == 0 && !disturbed(before, during, 2),
	}.Verdict(t)
}

func TestC4StalledReaders(t *testing.T) {
	mostlyWaits(t)
	readers, idle := scaled(200, 1000), scaled(5*time.Second, time.Minute)
	e := binaries.StartEdge(t, "--config", sitesFile(t, "idle_timeout: "+idle.String()))
	app := answering(t, map[string]http.HandlerFunc{"/large": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(10<<20))
		piece := make([]byte, 64<<10)
		for range 10 << 20 / len(piece) {
			if _, err := w.Write(piece); err != nil {
				return
			}
		}
	}})
	sidecar(t, e, binaries.Token(t, e.Dir, "--host", host), app, "one")
	e.AwaitReady(t, 1)
	client := e.Client(t, "h1")
	for range 100 { // memory that stays anyway
		if status, _, _, err := ask(client, "/"); err != nil || status != http.StatusOK {
			t.Fatalf("status %d, %v", status, err)
		}
	}
	pid := e.Cmd.Process.Pid
	roots := edgetest.Roots(t, e.Status.CA)
	inFlight := func() int { return int(e.Metric(t, "wormhole_edge_requests_in_flight")) }
	inFlight() // what it costs to ask stays too
	rss := edgetest.RSS(t, pid)
	var stalled takers
	var dials sync.WaitGroup
	slots := make(chan struct{}, 32) // at most so many handshakes at once
	for range readers {
		dials.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			raw, err := net.Dial("tcp", e.Status.Addresses["https"])
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { _ = raw.Close() })
			_ = raw.(*net.TCPConn).SetReadBuffer(4 << 10)
			stalled.add(raw.(*net.TCPConn))
			conn := tls.Client(raw, &tls.Config{RootCAs: roots, ServerName: host, MinVersion: tls.VersionTLS12})
			if _, err := fmt.Fprintf(conn, "GET /large HTTP/1.1\r\nHost: %s\r\n\r\n", host); err != nil {
				t.Error(err)
			}
		})
	}
	dials.Wait()
	began := time.Now()
	took := began // when any of them took a byte for the last time, even if only its kernel did
	peak, most := rss, 0
	var dropped time.Duration
	for dropped == 0 {
		peak = max(peak, edgetest.RSS(t, pid))
		now := inFlight()
		most = max(most, now)
		if now == 0 && time.Since(began) > idle/2 {
			dropped = time.Since(took)
		} else if time.Since(began) > idle+20*time.Second {
			t.Fatalf("%d readers are still served %s after they stalled", now, ms(time.Since(began)))
		}
		if at := stalled.last(); at.After(took) {
			took = at
		}
		time.Sleep(100 * time.Millisecond)
	}
	status, _, _, err := ask(client, "/")
	const limit = 400 << 20
	back := int64(0)
	if oracle.Long() {
		deadline := time.Now().Add(time.Minute)
		for back = edgetest.RSS(t, pid); back > rss+rss/5 && time.Now().Before(deadline); back = edgetest.RSS(t, pid) {
			time.Sleep(time.Second)
		}
	}
	oracle.Row{
		ID:   "C4",
		Done: fmt.Sprintf("%d clients ask for 10 MiB each and do not read; idle_timeout %s", readers, idle),
		Figure: fmt.Sprintf("%d at once; RSS %s, +%s at most, %s a minute later; all dropped %s after the last had taken a byte; next request %d",
			most, mib(rss), mib(peak-rss), scaled("not judged", mib(back)), ms(dropped), status),
		Limit: fmt.Sprintf("RSS +%s, dropped after %s (and what the kernel still takes), back to +20 %% in 60 s", mib(limit), idle),
		OK:    peak-rss <= limit && dropped <= idle+scaled(15*time.Second, 8*time.Second) && most > readers/2 && back <= rss+rss/5 && err == nil && status == http.StatusOK,
	}.Verdict(t)
}

// takers are the connections of clients that do not read.
type takers struct {
	mu    sync.Mutex // guards conns
	conns []*net.TCPConn
}

func (k *takers) add(conn *net.TCPConn) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.conns = append(k.conns, conn)
}

// last returns when any of them that is still connected last received a byte.
func (k *takers) last() (at time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, conn := range k.conns {
		raw, err := conn.SyscallConn()
		if err != nil {
			continue
		}
		_ = raw.Control(func(fd uintptr) {
			const established = 1 // of the states in the kernel's tcp_states.h
			info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
			if err != nil || info.State != established {
				return
			}
			if since := time.Now().Add(-time.Duration(info.Last_data_recv) * time.Millisecond); since.After(at) {
				at = since
			}
		})
	}
	return at
}

func TestC5BurstIntoOneTunnel(t *testing.T) {
	var arrived atomic.Int32
	all := make(chan struct{})
	together := func(_ http.ResponseWriter, r *http.Request) {
		arrived.Add(1)
		select {
		case <-all:
		case <-r.Context().Done():
		}
	}
	slow := map[string]http.HandlerFunc{"/slow": func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(100 * time.Millisecond)
		_, _ = io.WriteString(w, "done")
	}, "/together": together}
	for _, c := range []struct {
		name, limit string
		burst       int
	}{{"unlimited", "", 1000}, {"of at most 64 streams", "64", scaled(300, 1000)}} {
		e := binaries.StartEdge(t)
		app := answering(t, slow)
		sidecar(t, e, binaries.Token(t, e.Dir, "--host", host), app, "one", "WORMHOLE_MAX_STREAMS="+c.limit)
		e.AwaitReady(t, 1)
		tunnel := e.Status.Backends[0].ID
		for _, proto := range []string{"h1", "h2"} {
			client := e.Client(t, proto)
			var wg sync.WaitGroup
			if proto == "h1" && c.limit == "" {
				// Connections first: handshakes of a thousand clients on one busy machine are
				// another matter than requests of one tunnel.
				connectFew(client, c.burst)
				for range c.burst {
					wg.Go(func() {
						if status, _, _, err := ask(client, "/together"); status != http.StatusOK {
							t.Errorf("a request to wait for all others: %d %v", status, err)
						}
					})
				}
				for began := time.Now(); int(arrived.Load()) < c.burst; time.Sleep(10 * time.Millisecond) {
					if time.Since(began) > time.Minute {
						t.Fatalf("only %d of %d requests have arrived", arrived.Load(), c.burst)
					}
				}
				close(all)
				wg.Wait()
			}
			var mu sync.Mutex
			count := map[string]int{}
			begin := make(chan struct{})
			for range c.burst {
				wg.Go(func() {
					<-begin
					status, _, _, err := ask(client, "/slow")
					what := fmt.Sprint(status)
					if err != nil {
						what = err.Error()
					}
					mu.Lock()
					defer mu.Unlock()
					count[what]++
				})
			}
			began := time.Now()
			close(begin)
			wg.Wait()
			took := time.Since(began)
			b := backend(t, e, "one")
			same := b != nil && b.ID == tunnel
			good := count["200"]
			if c.limit != "" {
				good += count["503"]
			}
			oracle.Row{
				ID:     "C5 " + proto,
				Done:   fmt.Sprintf("%d requests of 100 ms at once into one tunnel %s", c.burst, c.name),
				Figure: fmt.Sprintf("%v in %s, tunnel kept: %t", count, ms(took), same),
				Limit:  map[bool]string{true: "0 failed", false: "200 or 503, tunnel kept"}[c.limit == ""],
				OK:     good == c.burst && same,
			}.Verdict(t)
		}
	}
}

// connectFew has a client of HTTP/1.1 make few handshakes at a time, and keep as many
// connections as are given.
func connectFew(client *http.Client, keep int) {
	transport := client.Transport.(*http.Transport)
	transport.MaxIdleConnsPerHost = keep
	slots := make(chan struct{}, 32)
	transport.DialTLSContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		slots <- struct{}{}
		defer func() { <-slots }()
		conn, err := transport.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		conf := transport.TLSClientConfig.Clone()
		conf.ServerName, _, _ = net.SplitHostPort(addr)
		secure := tls.Client(conn, conf)
		return secure, secure.HandshakeContext(ctx)
	}
}

// burstThenDrops writes more than a client's kernel takes whose receive buffer is
// small, and then so little each time that the edge's kernel has room for half a
// minute of it.
func burstThenDrops(w http.ResponseWriter, r *http.Request) {
	piece := make([]byte, 64<<10)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := w.Write(piece); err != nil {
			return
		}
		_ = http.NewResponseController(w).Flush()
		piece = piece[:256]
		select {
		case <-r.Context().Done():
			return
		case <-tick.C:
		}
	}
}

// A client's time is its own: an app that sends the next piece late, again and again,
// lends it none.
func TestAStalledReaderOfASlowAppIsGivenUp(t *testing.T) {
	mostlyWaits(t)
	e := binaries.StartEdge(t, "--config", sitesFile(t, "idle_timeout: 2s"))
	sidecar(t, e, binaries.Token(t, e.Dir, "--host", host), answering(t, map[string]http.HandlerFunc{"/drops": burstThenDrops}), "one")
	e.AwaitReady(t, 1)
	// With HTTP/2, windows that never stop a stream: SETTINGS, WINDOW_UPDATE, HEADERS.
	h2 := "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" +
		"\x00\x00\x06\x04\x00\x00\x00\x00\x00" + "\x00\x04\x7f\xff\xff\xff" +
		"\x00\x00\x04\x08\x00\x00\x00\x00\x00" + "\x7f\x00\x00\x00"
	fields := "\x82\x87" + "\x04\x06/drops" + "\x01" + string(rune(len(host))) + host // GET, https
	h2 += string([]byte{0, 0, byte(len(fields)), 1, 5, 0, 0, 0, 1}) + fields
	for proto, request := range map[string]string{
		"http/1.1": "GET /drops HTTP/1.1\r\nHost: " + host + "\r\n\r\n",
		"h2":       h2,
	} {
		t.Run(proto, func(t *testing.T) {
			raw, err := net.Dial("tcp", e.Status.Addresses["https"])
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			_ = raw.(*net.TCPConn).SetReadBuffer(4 << 10)
			conn := tls.Client(raw, &tls.Config{
				RootCAs: edgetest.Roots(t, e.Status.CA), ServerName: host, MinVersion: tls.VersionTLS12, NextProtos: []string{proto},
			})
			if _, err := io.WriteString(conn, request); err != nil {
				t.Fatal(err)
			}
			inFlight := func() bool { return e.Metric(t, "wormhole_edge_requests_in_flight") == 1 }
			edgetest.Eventually(t, "the answer begins", inFlight)
			began := time.Now()
			edgetest.Eventually(t, "the reader is given up", func() bool { return !inFlight() })
			if took := time.Since(began); took < time.Second || took > 7*time.Second {
				t.Errorf("given up after %s, want little more than 2 s", took)
			}
		})
	}
}

// A client that was given up costs the kernel nothing any more: it is reset, and
// not sent what it has not read.
func TestAStalledReaderIsReset(t *testing.T) {
	mostlyWaits(t)
	e := binaries.StartEdge(t, "--config", sitesFile(t, "idle_timeout: 1s"))
	sidecar(t, e, binaries.Token(t, e.Dir, "--host", host), answering(t, map[string]http.HandlerFunc{"/endless": func(w http.ResponseWriter, _ *http.Request) {
		piece := make([]byte, 64<<10)
		for {
			if _, err := w.Write(piece); err != nil {
				return
			}
		}
	}}), "one")
	e.AwaitReady(t, 1)
	conn, err := tls.Dial("tcp", e.Status.Addresses["https"], &tls.Config{RootCAs: edgetest.Roots(t, e.Status.CA), ServerName: host, MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.NetConn().Close()
	fmt.Fprintf(conn, "GET /endless HTTP/1.1\r\nHost: %s\r\n\r\n", host)
	inFlight := func() bool { return e.Metric(t, "wormhole_edge_requests_in_flight") == 1 }
	edgetest.Eventually(t, "the answer begins", inFlight)
	began := time.Now()
	edgetest.Eventually(t, "the reader is given up", func() bool { return !inFlight() })
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("given up after %s, want little more than 1 s", took)
	}
	_ = conn.SetReadDeadline(time.Now().Add(edgetest.Patience))
	if _, err := io.Copy(io.Discard, conn); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the reader sees %v, want a reset", err)
	}
}
