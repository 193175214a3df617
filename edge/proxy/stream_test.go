package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"wormhole/edge/site"
	"wormhole/edge/upstream"
	"wormhole/edge/upstream/upstreamtest"
	"wormhole/shared/protocol"
)

func TestD14EventStreamArrivesAsItIsWritten(t *testing.T) {
	for _, proto := range []string{"h1", "h2"} {
		t.Run(proto, func(t *testing.T) {
			e := newEdge(t, nil)
			next, gone := make(chan struct{}), make(chan struct{})
			e.app("a", func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/event-stream")
				w.WriteHeader(200)
				rc := http.NewResponseController(w)
				_ = rc.Flush()
				for {
					select {
					case <-next:
						_, _ = fmt.Fprintf(w, "data: %d\n\n", time.Now().UnixNano())
						_ = rc.Flush()
					case <-r.Context().Done():
						close(gone)
						return
					}
				}
			})
			client := e.client
			if proto == "h1" {
				client = e.h1()
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			resp, err := client.Do(e.request("GET", "/", nil).WithContext(ctx)) // the head comes before any event
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			lines := bufio.NewReader(resp.Body)
			for range 20 {
				next <- struct{}{}
				line, err := lines.ReadString('\n')
				now := time.Now().UnixNano()
				var sent int64
				if _, scanErr := fmt.Sscanf(line, "data: %d", &sent); err != nil || scanErr != nil {
					t.Fatalf("got %q %v %v", line, err, scanErr)
				}
				if late := time.Duration(now - sent); late > 50*time.Millisecond {
					t.Errorf("event arrived after %v, want at most 50 ms", late)
				}
				_, _ = lines.ReadString('\n')
			}
			cancel()
			select {
			case <-gone:
			case <-time.After(2 * time.Second):
				t.Error("the app did not see the client leave within 2 s")
			}
		})
	}
}

// C1: whichever way a body is framed, a death in its middle is an error for the
// client.
func TestC1TruncatedBodyIsNeverACleanEnd(t *testing.T) {
	half := strings.Repeat("x", 100_000)
	for name, head := range map[string]string{
		"content length": "HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n",
		"chunked":        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n30d40\r\n",
		"close":          "HTTP/1.0 200 OK\r\n\r\n",
	} {
		for _, proto := range []string{"h1", "h2"} {
			t.Run(name+" "+proto, func(t *testing.T) {
				e := newEdge(t, nil)
				o := upstreamtest.New(t, func(c net.Conn) {
					_, _ = http.ReadRequest(bufio.NewReader(c))
					_, _ = io.WriteString(c, head+half)
					_, _ = c.Read(make([]byte, 1)) // until killed
				})
				e.add("a", o)
				client := e.client
				if proto == "h1" {
					client = e.h1()
				}
				for range 5 {
					resp, err := client.Do(e.request("GET", "/", nil))
					if err != nil {
						t.Fatal(err)
					}
					if _, err := io.ReadFull(resp.Body, make([]byte, 50_000)); err != nil {
						t.Fatal(err)
					}
					o.Kill()
					if _, err := io.Copy(io.Discard, resp.Body); err == nil {
						t.Error("the client saw a clean end")
					}
					_ = resp.Body.Close()
				}
			})
		}
	}
}

func TestD13TrailersPassBothWays(t *testing.T) {
	e := newEdge(t, nil)
	e.app("a", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Announced")
		body, _ := io.ReadAll(r.Body)
		_, _ = w.Write(body)
		w.Header().Set("X-Announced", r.Trailer.Get("X-Sum"))
		w.Header().Set(http.TrailerPrefix+"X-Late", "yes")
	})
	for name, c := range map[string]*http.Client{"h1": e.h1(), "h2": e.client} {
		r := e.request("POST", "/", io.MultiReader(strings.NewReader("hello")))
		r.Trailer = http.Header{"X-Sum": {"5"}}
		resp, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || string(body) != "hello" || resp.Trailer.Get("X-Announced") != "5" || resp.Trailer.Get("X-Late") != "yes" {
			t.Errorf("%s: got %q %v with trailers %v", name, body, err, resp.Trailer)
		}
	}
}

func TestD16EarlyRefusalReachesTheClient(t *testing.T) {
	e := newEdge(t, nil)
	e.add("a", upstreamtest.New(t, func(c net.Conn) {
		_, _ = http.ReadRequest(bufio.NewReader(c))
		_, _ = io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
		_, _ = io.Copy(io.Discard, io.LimitReader(c, 100_000))
	}))
	for name, c := range map[string]*http.Client{"h1": e.h1(), "h2": e.client} {
		for range 5 {
			r := e.request("POST", "/", io.LimitReader(zeros{}, 100<<20))
			r.ContentLength = 100 << 20
			if status, body, _ := e.do(c, r); status != 413 || body != "big" {
				t.Errorf("%s: got %d %q, want 413 big", name, status, body)
			}
		}
	}
}

// lateOpener opens streams whose writers are put aside by the scheduler for a while
// when their bytes have gone: longer than the app takes to answer.
type lateOpener struct{ *upstreamtest.Opener }

func (o lateOpener) OpenStream(ctx context.Context, h protocol.StreamHeader) (upstream.Stream, error) {
	s, err := o.Opener.OpenStream(ctx, h)
	return lateStream{s}, err
}

type lateStream struct{ upstream.Stream }

func (s lateStream) Write(b []byte) (int, error) {
	n, err := s.Stream.Write(b)
	time.Sleep(20 * time.Millisecond)
	return n, err
}

func TestUploadsShareAConnectionHoweverSoonTheyAreAnswered(t *testing.T) {
	const size = 64<<10 + 1 // too long to be read before it is sent
	for _, framing := range []string{"length", "chunked"} {
		t.Run(framing, func(t *testing.T) {
			e := newEdge(t, nil)
			e.add("a", lateOpener{upstreamtest.NewHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				n, err := io.Copy(io.Discard, r.Body)
				_, _ = fmt.Fprint(w, n, err)
			}))})
			c := e.dial()
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			answers := bufio.NewReader(c)
			for i := range 5 {
				r := e.request("POST", "/", io.LimitReader(zeros{}, size))
				r.ContentLength = size
				if framing == "chunked" {
					r.ContentLength, r.TransferEncoding = -1, []string{"chunked"}
				}
				if err := r.Write(c); err != nil {
					t.Fatalf("upload %d: %v", i+1, err)
				}
				resp, err := http.ReadResponse(answers, r)
				if err != nil {
					t.Fatalf("upload %d: %v", i+1, err)
				}
				body, err := io.ReadAll(resp.Body)
				if want := fmt.Sprint(size, nil); err != nil || resp.Close || string(body) != want {
					t.Fatalf("upload %d: got %q %v, closing %t, want %q on a connection that stays", i+1, body, err, resp.Close, want)
				}
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestD16FullDuplexEcho(t *testing.T) {
	const size = 32 << 20
	e := newEdge(t, nil)
	e.app("a", func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		_, _ = io.Copy(w, r.Body)
	})
	for name, c := range map[string]*http.Client{"h1": e.h1(), "h2": e.client} {
		want, got := sha256.New(), sha256.New()
		body := io.TeeReader(io.LimitReader(zeros{}, size), want)
		r := e.request("POST", "/", body)
		r.ContentLength = size
		resp, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(got, resp.Body)
		_ = resp.Body.Close()
		if err != nil || n != size || !bytes.Equal(want.Sum(nil), got.Sum(nil)) {
			t.Errorf("%s: got %d bytes %s %v, want %d %s", name, n, hex.EncodeToString(got.Sum(nil)), err, size, hex.EncodeToString(want.Sum(nil)))
		}
	}
}

func TestD7NextUserGetsTheirOwnAnswer(t *testing.T) {
	// The app ignores the bodies of GET, as many do, and so takes the smuggled bytes
	// for a request if it meets them on a connection that goes on.
	e := newEdge(t, nil)
	e.add("a", upstreamtest.New(t, func(c net.Conn) {
		r := bufio.NewReader(c)
		for {
			head, err := textproto.NewReader(r).ReadLine()
			if err != nil {
				return
			}
			path := strings.Fields(head + " - -")[1]
			for {
				line, err := textproto.NewReader(r).ReadLine()
				if err != nil {
					return
				}
				if line == "" {
					break
				}
			}
			_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(path), path)
		}
	}))
	for i := range 100 {
		evil := e.request("GET", "/evil", strings.NewReader("GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"))
		if _, body, _ := e.do(e.client, evil); body != "/evil" {
			t.Fatalf("got %q", body)
		}
		path := fmt.Sprintf("/mine%d", i)
		if _, body, _ := e.get(path); body != path {
			t.Fatalf("asked for %s, got %q", path, body)
		}
	}
}

func TestInterimAnswersPass(t *testing.T) {
	e := newEdge(t, nil)
	e.app("a", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		_, _ = io.WriteString(w, "done")
	})
	for name, c := range map[string]*http.Client{"h1": e.h1(), "h2": e.client} {
		hints := 0
		r := e.request("GET", "/", nil)
		r = r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
			Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
				if code == 103 && h.Get("Link") != "" {
					hints++
				}
				return nil
			},
		}))
		status, body, h := e.do(c, r)
		if status != 200 || body != "done" || hints != 1 || h.Get("Link") != "" {
			t.Errorf("%s: got %d %q, %d hints, Link %q", name, status, body, hints, h.Get("Link"))
		}
	}
}

func TestExpectationIsTheAppsToMeet(t *testing.T) {
	e := newEdge(t, nil)
	e.app("a", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		b, _ := io.ReadAll(r.Body)
		_, _ = w.Write(b)
	})
	for path, want := range map[string]string{"/yes": "HTTP/1.1 100", "/no": "HTTP/1.1 401"} {
		c := e.dial()
		_, _ = fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n", path, host)
		r := bufio.NewReader(c)
		if line, err := r.ReadString('\n'); !strings.HasPrefix(line, want) {
			t.Errorf("%s: got %q %v, want %s", path, line, err, want)
		}
	}
	r := e.request("POST", "/", strings.NewReader("x"))
	r.Header.Set("Expect", "x 100-continue")
	if status, _, _ := e.do(e.h1(), r); status != 417 {
		t.Errorf("strange expectation: got %d, want 417", status)
	}
}

func TestStalledClientLetsGo(t *testing.T) {
	// The client takes the head of a large answer and no more.
	e := newEdge(t, func(r *site.Rules) { r.IdleTimeout = 200 * time.Millisecond })
	b, o := e.app("a", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.Copy(w, io.LimitReader(zeros{}, 1<<30)) })
	c := e.dial()
	_, _ = fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", host)
	resp, err := e.client.Do(e.request("GET", "/", nil)) // over HTTP/2, not read either
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	waitFor(t, "both at work", func() bool { return b.InFlight() == 2 })
	waitFor(t, "both given up", func() bool { return b.InFlight() == 0 && o.Open() == 0 })
}

func TestSlowButMovingUploadSurvives(t *testing.T) {
	e := newEdge(t, func(r *site.Rules) { r.IdleTimeout = 200 * time.Millisecond })
	e.app("a", func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		_, _ = fmt.Fprint(w, n)
	})
	for _, length := range []int64{10, -1} {
		body, feed := io.Pipe()
		go func() {
			for range 10 {
				time.Sleep(50 * time.Millisecond)
				_, _ = feed.Write([]byte("x"))
			}
			_ = feed.Close()
		}()
		r := e.request("POST", "/", body)
		r.ContentLength = length
		if status, got, _ := e.do(e.h1(), r); status != 200 || got != "10" {
			t.Errorf("length %d: got %d %q after 500 ms of one byte each 50 ms", length, status, got)
		}
	}
}

func TestSilentUploadIsGivenUp(t *testing.T) {
	e := newEdge(t, func(r *site.Rules) { r.IdleTimeout = 100 * time.Millisecond })
	b, _ := e.app("a", func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	for _, length := range []string{"Content-Length: 10", "Transfer-Encoding: chunked", "Content-Length: 1000000"} {
		c := e.dial()
		_, _ = fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: %s\r\n%s\r\n\r\n", host, length)
		line, err := bufio.NewReader(c).ReadString('\n')
		if !strings.HasPrefix(line, "HTTP/1.1 408") {
			t.Errorf("%s: got %q %v, want 408", length, line, err)
		}
	}
	waitFor(t, "no load left", func() bool { return b.InFlight() == 0 })
}

// echoSocket is a WebSocket app.
func echoSocket(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		return
	}
	defer c.CloseNow()
	c.SetReadLimit(-1)
	for {
		kind, msg, err := c.Read(r.Context())
		if err != nil {
			return
		}
		if err := c.Write(r.Context(), kind, msg); err != nil {
			return
		}
	}
}

func (e *edge) socket() (*websocket.Conn, error) {
	c, _, err := websocket.Dial(e.t.Context(), e.server.URL+"/ws", &websocket.DialOptions{HTTPClient: e.h1(), Host: host})
	return c, err
}

func TestD15WebSocketEchoes(t *testing.T) {
	e := newEdge(t, nil)
	b, o := e.app("a", echoSocket)
	c, err := e.socket()
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	c.SetReadLimit(-1)
	if e.proxy.Hijacked() != 1 || b.InFlight() != 1 {
		t.Errorf("%d hijacked, %d in flight; want 1 and 1", e.proxy.Hijacked(), b.InFlight())
	}
	for _, size := range []int{0, 1, 125, 126, 70_000, 4 << 20} {
		want := bytes.Repeat([]byte("w"), size)
		if err := c.Write(t.Context(), websocket.MessageBinary, want); err != nil {
			t.Fatal(err)
		}
		if _, got, err := c.Read(t.Context()); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("message of %d bytes: got %d, %v", size, len(got), err)
		}
	}
	_ = c.Close(websocket.StatusNormalClosure, "")
	waitFor(t, "all released", func() bool { return e.proxy.Hijacked() == 0 && b.InFlight() == 0 && o.Open() == 0 })
}

func TestDrainWaitsForSocketsAndThenClosesThem(t *testing.T) {
	e := newEdge(t, nil)
	e.app("a", echoSocket)
	c, err := e.socket()
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if n := e.proxy.Drain(ctx); n != 1 || e.proxy.Hijacked() != 0 {
		t.Errorf("closed %d, %d left; want 1 and 0", n, e.proxy.Hijacked())
	}
	if _, _, err := c.Read(t.Context()); err == nil {
		t.Error("the socket is still open")
	}
}

func TestUpgradeOffIsAnOrdinaryRequest(t *testing.T) {
	e := newEdge(t, func(r *site.Rules) { r.AllowUpgrade = false })
	e.app("a", func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "%q %q", r.Header.Get("Upgrade"), r.Header.Get("Connection"))
	})
	r := e.request("GET", "/", nil)
	r.Header.Set("Connection", "Upgrade")
	r.Header.Set("Upgrade", "websocket")
	if status, body, _ := e.do(e.h1(), r); status != 200 || body != `"" ""` {
		t.Errorf("got %d %s, want no upgrade to be asked for", status, body)
	}
}

// D9: bytes behind an upgrade request are passed on only after a real 101, and
// nothing but websocket is ever asked for.
func TestD9UpgradeThatIsNotOneSmugglesNothing(t *testing.T) {
	for _, proto := range []string{"foo", "h2c", "websocket"} {
		t.Run(proto, func(t *testing.T) {
			e := newEdge(t, nil)
			heard := make(chan string, 16)
			e.add("a", upstreamtest.New(t, func(c net.Conn) {
				r := bufio.NewReader(c)
				for {
					req, err := http.ReadRequest(r)
					if err != nil {
						return
					}
					heard <- req.URL.Path + " " + req.Header.Get("Upgrade")
					_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
				}
			}))
			c := e.dial()
			_, _ = fmt.Fprintf(c, "GET /first HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n"+
				"GET /second HTTP/1.1\r\nHost: %s\r\nConnection: close\r\nX-Forwarded-For: 1.1.1.1\r\n\r\n", host, proto, host)
			all, _ := io.ReadAll(c)
			if n := strings.Count(string(all), "HTTP/1.1 200 OK"); n != 2 {
				t.Errorf("got %d answers in %q, want 2", n, all)
			}
			want := "/first "
			if proto == "websocket" {
				want = "/first websocket"
			}
			if first, second := <-heard, <-heard; first != want || second != "/second " {
				t.Errorf("the app heard %q and %q", first, second)
			}
		})
	}
}

func TestEarlyBytesOfASocketFollowThe101(t *testing.T) {
	e := newEdge(t, nil)
	e.add("a", upstreamtest.New(t, func(c net.Conn) {
		r := bufio.NewReader(c)
		_, _ = http.ReadRequest(r)
		if r.Buffered() > 0 {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Accept: x\r\n\r\nhello ")
		_, _ = io.Copy(c, r)
	}))
	c := e.dial()
	_, _ = fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly", host)
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 101 {
		t.Fatalf("got %v %v, want 101", resp, err)
	}
	_ = c.CloseWrite() // half-close: the rest still comes
	rest, err := io.ReadAll(r)
	if string(rest) != "hello early" || err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %q %v, want hello early", rest, err)
	}
}
