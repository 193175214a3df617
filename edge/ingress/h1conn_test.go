package ingress

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"
)

// ask sends requests for paths of a.test on c, all at once.
func ask(t *testing.T, c *tls.Conn, paths ...string) {
	t.Helper()
	text := ""
	for _, path := range paths {
		text += "GET " + path + " HTTP/1.1\r\nHost: a.test\r\n\r\n"
	}
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

// answer reads one answer and returns its body.
func answer(t *testing.T, r *bufio.Reader) string {
	t.Helper()
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// awaitLook waits until the door has found a handler running on the only connection of
// r and, if begun is set, has begun a lookout there.
func awaitLook(t *testing.T, r *rig, begun bool) {
	t.Helper()
	looked := func() bool {
		r.tcp.mu.Lock()
		defer r.tcp.mu.Unlock()
		for c := range r.tcp.open {
			if c.http1 != nil {
				c.http1.mu.Lock()
				defer c.http1.mu.Unlock()
				return c.http1.asked && c.http1.noticed && (c.http1.lookout != nil) == begun
			}
		}
		return false
	}
	for deadline := time.Now().Add(10 * time.Second); !looked(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody looks whether the client leaves")
		}
	}
}

func TestAHandlerThatRunsLongLearnsThatItsClientLeft(t *testing.T) {
	begun := make(chan *http.Request)
	r := start(t, Config{DisableQUIC: true}, Handlers{Visitor: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.TLS == nil || r.TLS.ServerName != "a.test" {
			t.Errorf("the handler is told of TLS: %+v", r.TLS)
		}
		if r.URL.Path == "/long" {
			begun <- r
			<-r.Context().Done()
			begun <- r
		}
	})})
	c, err := r.dial("a.test", "http/1.1")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ask(t, c, "/", "/") // also on a connection that is kept
	from := bufio.NewReader(c)
	answer(t, from)
	answer(t, from)
	ask(t, c, "/long")
	request := <-begun
	if err := request.Context().Err(); err != nil {
		t.Fatalf("the client is there: %v", err)
	}
	left := time.Now()
	_ = c.Close()
	<-begun
	if took := time.Since(left); took > 2*time.Second {
		t.Errorf("it learned so after %s", took)
	}
}

func TestWhatAClientSendsDuringALongAnswerIsItsNextRequest(t *testing.T) {
	finish := make(chan struct{})
	r := start(t, Config{DisableQUIC: true}, Handlers{Visitor: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/long" {
			<-finish
		}
		if err := r.Context().Err(); err != nil {
			t.Errorf("%s: %v", r.URL.Path, err)
		}
		fmt.Fprint(w, r.URL.Path)
	})})
	c, err := r.dial("a.test", "http/1.1")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	from := bufio.NewReader(c)
	for _, silent := range []bool{true, false} {
		ask(t, c, "/long")
		awaitLook(t, r, false)
		if !silent {
			ask(t, c, "/next", "/last")
			awaitLook(t, r, true)
		}
		finish <- struct{}{}
		if got := answer(t, from); got != "/long" {
			t.Errorf("got the answer %q", got)
		}
		if silent { // there was nothing to look out for
			ask(t, c, "/next", "/last")
		}
		for _, want := range []string{"/next", "/last"} {
			if got := answer(t, from); got != want {
				t.Errorf("got the answer %q, want %q", got, want)
			}
		}
	}
}

func TestShortHandlersAreNotLookedOutFor(t *testing.T) {
	c := &h1Conn{door: &door{asked: make(chan struct{}, 1)}, leave: func() {}}
	start := func(func()) { t.Error("a lookout begins") }
	for range 3 {
		if c.look(nil, start) {
			t.Error("looked at although nothing runs")
		}
		if n, err := c.Read(make([]byte, 1)); n != 0 || err != nil {
			t.Fatalf("the server's question is answered %d, %v", n, err)
		}
		select {
		case <-c.door.asked:
		default:
			t.Error("the door does not learn that a request began")
		}
		if !c.look(nil, start) { // another handler the next time
			t.Error("a handler runs, and is not looked at again")
		}
		if n, err := c.endLookout(make([]byte, 10)); n != 0 || err != nil {
			t.Errorf("nothing was found, and is %d, %v", n, err)
		}
	}
}

func TestDeadlinesOfKeptConnectionsHold(t *testing.T) {
	const short, long = time.Second, 30 * time.Second
	hello := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") })
	for name, test := range map[string]struct {
		cfg   Config
		begin string // of a request that does not come
	}{
		"nothing comes":           {Config{IdleTimeout: short, HeaderTimeout: long}, ""},
		"a head does not end":     {Config{IdleTimeout: long, HeaderTimeout: short}, "GET / HTTP/1.1\r\nHo"},
		"a head has hardly begun": {Config{IdleTimeout: short, HeaderTimeout: long}, "GE"},
	} {
		t.Run(name, func(t *testing.T) {
			test.cfg.DisableQUIC = true
			r := start(t, test.cfg, Handlers{Visitor: hello})
			c, err := r.dial("a.test", "http/1.1")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			from := bufio.NewReader(c)
			// Longer in all than the short deadline, which begins anew with each request.
			for range 8 {
				ask(t, c, "/")
				if got := answer(t, from); got != "hello" {
					t.Fatalf("got %q", got)
				}
				time.Sleep(short / 5)
			}
			if _, err := io.WriteString(c, test.begin); err != nil {
				t.Fatal(err)
			}
			since := time.Now()
			_ = c.SetReadDeadline(since.Add(long))
			if _, err := io.ReadAll(from); isTimeout(err) { // perhaps the server says why
				t.Fatalf("the connection is not closed: %v", err)
			}
			if took := time.Since(since); took > 5*time.Second {
				t.Errorf("closed after %s", took)
			}
		})
	}
}

func TestAReadOfABodyMayBeInterrupted(t *testing.T) {
	began, read := make(chan http.ResponseWriter), make(chan error)
	r := start(t, Config{DisableQUIC: true}, Handlers{Visitor: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began <- w
		_, err := io.ReadAll(r.Body)
		read <- err
	})})
	c, err := r.dial("a.test", "http/1.1")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 10\r\n\r\nhalf")
	w := <-began
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for {
		_ = http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0))
		select {
		case err := <-read:
			if !isTimeout(err) {
				t.Errorf("the read failed with %v", err)
			}
			return
		case <-time.After(10 * time.Millisecond): // it may not have waited yet
		case <-ctx.Done():
			t.Fatal("the read waits on")
		}
	}
}

func TestAHandlerThatRunsLongLearnsThatItsConnectionWasClosedHere(t *testing.T) {
	begun, over := make(chan struct{}), make(chan struct{})
	r := start(t, Config{DisableQUIC: true}, Handlers{Visitor: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(begun)
		<-r.Context().Done()
		close(over)
	})})
	c, err := r.dial("a.test", "http/1.1")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ask(t, c, "/")
	<-begun
	awaitLook(t, r, false)
	r.tcp.closeConns(false)
	select {
	case <-over:
	case <-time.After(10 * time.Second):
		t.Error("the handler waits on")
	}
}
