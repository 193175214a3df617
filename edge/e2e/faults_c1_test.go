package e2e

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"wormhole/edge/edgetest"
	"wormhole/edge/edgetest/oracle"
)

// slowHalf is a raw app: the path says how the body of its answer is framed. It
// sends half of size at once and then goes on so slowly that it never ends.
func slowHalf(t *testing.T, size int) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	over := make(chan struct{})
	answer := func(c net.Conn) {
		defer c.Close()
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		framing := strings.TrimPrefix(r.URL.Path, "/")
		w := bufio.NewWriter(c)
		switch framing {
		case "chunked":
			fmt.Fprint(w, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
		case "length":
			fmt.Fprintf(w, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", size)
		default:
			fmt.Fprint(w, "HTTP/1.0 200 OK\r\n\r\n")
		}
		block := make([]byte, 16<<10)
		send := func() error {
			if framing == "chunked" {
				fmt.Fprintf(w, "%x\r\n", len(block))
				_, _ = w.Write(block)
				fmt.Fprint(w, "\r\n")
			} else {
				_, _ = w.Write(block)
			}
			return w.Flush()
		}
		for range size / 2 / len(block) {
			if send() != nil {
				return
			}
		}
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-over:
				return
			case <-tick.C:
			}
			if send() != nil {
				return
			}
		}
	}
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { answer(c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		close(over)
		wg.Wait()
	})
	return l.Addr().String()
}

// transfer is one client's download.
type transfer struct {
	name string
	got  int64
	err  error // nil if the body seemed whole
}

// http10 asks as a client of HTTP/1.0, for which the end of the connection is the
// end of the body, and reports whether there was a proper one.
func http10(t *testing.T, e *edgetest.EdgeProcess, path string) (io.ReadCloser, error) {
	conn, err := tls.Dial("tcp", e.Status.Addresses["https"], &tls.Config{
		RootCAs: edgetest.Roots(t, e.Status.CA), ServerName: host, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12,
	})
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(conn, "GET %s HTTP/1.0\r\nHost: %s\r\n\r\n", path, host)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{resp.Body, conn}, nil
}

func TestC1SilentTruncation(t *testing.T) {
	size, each := 8<<20, 1
	if oracle.Long() {
		size, each = 100<<20, 4
	}
	for _, victim := range []string{"agent", "edge"} {
		t.Run(victim, func(t *testing.T) {
			e := binaries.StartEdge(t)
			token := binaries.Token(t, e.Dir, "--host", host)
			agent := edgetest.Start(t, e.AgentEnv(token, "WORMHOLE_ENDPOINT="+slowHalf(t, size)), binaries.Wormhole)
			rawToken := binaries.Token(t, e.Dir, "--host", otherHost, "--kind", "tcp")
			rawAgent := sidecar(t, e, rawToken, rawApp(t), "raw")
			e.AwaitReady(t, 2)
			rawAddr := rawPortOf(t, e, otherHost, "")

			clients := map[string]*http.Client{"h1": e.Client(t, "h1"), "h2": e.Client(t, "h2"), "h3": e.Client(t, "h3")}
			var mu sync.Mutex
			var ended []transfer
			var running, half sync.WaitGroup
			start := func(proto, framing string) {
				half.Add(1)
				running.Go(func() {
					one := transfer{name: proto + " " + framing}
					reached := sync.OnceFunc(half.Done)
					defer reached()
					var body io.ReadCloser
					switch proto {
					case "tcp":
						body = dialRaw(t, rawAddr, fmt.Sprintf("stall %d", size/2))
					case "h1.0":
						body, one.err = http10(t, e, "/"+framing)
					default:
						var resp *http.Response
						if resp, one.err = clients[proto].Get("https://" + host + "/" + framing); one.err == nil {
							body = resp.Body
						}
					}
					if one.err != nil {
						t.Errorf("%s: no answer: %v", one.name, one.err)
						return
					}
					defer body.Close()
					buf := make([]byte, 64<<10)
					for one.err == nil {
						var n int
						n, one.err = body.Read(buf)
						if one.got += int64(n); one.got >= int64(size/2) {
							reached()
						}
					}
					if errors.Is(one.err, io.EOF) {
						one.err = nil
					}
					mu.Lock()
					defer mu.Unlock()
					ended = append(ended, one)
				})
			}
			for _, framing := range []string{"chunked", "length", "close"} {
				for range each {
					for _, proto := range []string{"h1", "h1", "h2", "h2", "h3", "h1.0", "h1.0"} {
						if proto == "h3" && victim == "edge" {
							proto = "h2" // a vanished QUIC server is noticed by the client's idle timeout only
						}
						start(proto, framing)
					}
				}
			}
			for range 6 * each {
				start("tcp", "raw")
			}
			half.Wait()
			killed := time.Now()
			if victim == "agent" {
				agent.Signal(syscall.SIGKILL)
				rawAgent.Signal(syscall.SIGKILL)
			} else {
				e.Signal(syscall.SIGKILL)
			}
			running.Wait()
			took := time.Since(killed)
			whole := 0
			for _, one := range ended {
				if one.err == nil {
					whole++
					t.Errorf("%s ended cleanly after %d of %d bytes", one.name, one.got, size)
				}
			}
			oracle.Row{
				ID:     "C1 " + victim,
				Done:   fmt.Sprintf("kill -9 of the %s at half of %d MiB: %d downloads over h1, h2, h3, HTTP/1.0 (chunked, Content-Length, close-delimited) and raw TCP", victim, size>>20, len(ended)),
				Figure: fmt.Sprintf("%d of %d clients saw an error, the last after %s", len(ended)-whole, len(ended), took.Round(time.Millisecond)),
				Limit:  "all of 20 and more",
				OK:     whole == 0 && len(ended) >= 20,
			}.Verdict(t)
		})
	}
}

// The other half of C1: what is whole must not look cut.
func TestAWholeAnswerEndsCleanlyForHTTP10(t *testing.T) {
	const size = 4 << 20
	e := binaries.StartEdge(t)
	app := edgetest.App(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.Copy(w, &patterned{n: size})
	}))
	token := binaries.Token(t, e.Dir, "--host", host)
	edgetest.Start(t, e.AgentEnv(token, "WORMHOLE_ENDPOINT="+app), binaries.Wormhole)
	e.AwaitReady(t, 1)
	for range 10 {
		body, err := http10(t, e, "/")
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, body)
		_ = body.Close()
		if n != size || err != nil {
			t.Errorf("got %d bytes, %v, want %d and a clean end", n, err, size)
		}
	}
}
