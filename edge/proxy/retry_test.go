package proxy_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wormhole/edge/balance"
	"wormhole/edge/site"
	"wormhole/edge/upstream"
	"wormhole/edge/upstream/upstreamtest"
	"wormhole/shared/protocol"
)

// ledger counts at the app how often each request was delivered.
type ledger struct {
	mu   sync.Mutex
	seen map[string]int
}

func (l *ledger) note(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen == nil {
		l.seen = map[string]int{}
	}
	l.seen[id]++
}

func (l *ledger) duplicates() (ids []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, n := range l.seen {
		if n > 1 {
			ids = append(ids, id)
		}
	}
	return ids
}

func (l *ledger) app(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	l.note(r.Header.Get("X-Id"))
	_, _ = fmt.Fprintf(w, "%d", len(body))
}

func TestA10RefusedRequestsGoElsewhere(t *testing.T) {
	for _, a := range []protocol.Answer{protocol.AnswerDraining, protocol.AnswerFull, protocol.AnswerAppDown, protocol.AnswerNotReady} {
		t.Run(fmt.Sprint(a), func(t *testing.T) {
			e := newEdge(t, nil)
			var l ledger
			e.app("good", l.app)
			bad := upstreamtest.New(t, func(net.Conn) {})
			bad.Refuse(&upstream.Refused{Answer: a})
			b := e.add("bad", bad)
			for i, size := range []int{1 << 10, 64 << 10, 5 << 20} {
				for try := range 4 {
					b.Report(0) // the bad one stays in the choice
					var body io.Reader = bytes.NewReader(make([]byte, size))
					if i == 2 {
						body = io.MultiReader(body) // of unknown length
					}
					r := e.request("POST", "/", body)
					r.Header.Set("X-Id", fmt.Sprintf("%d/%d", size, try))
					if status, got, _ := e.do(e.client, r); status != 200 || got != fmt.Sprint(size) {
						t.Errorf("POST of %d bytes: got %d %q", size, status, got)
					}
				}
			}
			if d := l.duplicates(); len(d) > 0 {
				t.Errorf("delivered twice: %v", d)
			}
		})
	}
}

// deadly is an app that takes a request and dies before it answers.
func deadly(l *ledger) func(net.Conn) {
	return func(c net.Conn) {
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		_, _ = io.CopyN(io.Discard, r.Body, 1)
		l.note(r.Header.Get("X-Id"))
	}
}

func TestA10PostIsNeverDeliveredTwice(t *testing.T) {
	for _, size := range []int{0, 1 << 10, 64 << 10, 2 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			e := newEdge(t, nil)
			var l ledger
			e.app("good", l.app)
			e.add("deadly", upstreamtest.New(t, deadly(&l)))
			failed := 0
			for i := range 30 {
				r := e.request("POST", "/", bytes.NewReader(make([]byte, size)))
				r.Header.Set("X-Id", fmt.Sprint(i))
				start := time.Now()
				status, _, _ := e.do(e.client, r)
				if status == 502 {
					failed++
				} else if status != 200 {
					t.Errorf("got %d", status)
				}
				if took := time.Since(start); took > 1500*time.Millisecond {
					t.Errorf("answered after %v", took)
				}
			}
			if failed == 0 {
				t.Error("the deadly app was never chosen: the test proves nothing")
			}
			if d := l.duplicates(); len(d) > 0 {
				t.Errorf("delivered twice: %v", d)
			}
		})
	}
}

func TestA10GetIsRetriedWhenNothingCameBack(t *testing.T) {
	e := newEdge(t, nil)
	var l ledger
	e.app("good", l.app)
	e.add("deadly", upstreamtest.New(t, deadly(&l)))
	for i := range 30 {
		r := e.request("GET", "/", nil)
		r.Header.Set("X-Id", fmt.Sprint(i))
		if status, _, _ := e.do(e.client, r); status != 200 {
			t.Errorf("got %d, want 200 from the other app", status)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if !slices.Contains(e.retried, "closed") {
		t.Errorf("retries: %v, want some after a close", e.retried)
	}
}

func TestNothingIsRetriedOnceTheClientGotSomething(t *testing.T) {
	e := newEdge(t, nil)
	var asked atomic.Int32
	e.add("a", upstreamtest.New(t, func(c net.Conn) {
		_, _ = http.ReadRequest(bufio.NewReader(c))
		asked.Add(1)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
	}))
	resp, err := e.client.Do(e.request("GET", "/", nil))
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		_ = resp.Body.Close()
	}
	if err == nil || asked.Load() != 1 {
		t.Errorf("error %v after %d deliveries, want an error after one", err, asked.Load())
	}
}

func TestAtMostTwoRetries(t *testing.T) {
	e := newEdge(t, nil)
	var l ledger
	for i := range 5 {
		e.add(fmt.Sprint(i), upstreamtest.New(t, deadly(&l)))
	}
	r := e.request("GET", "/", nil)
	r.Header.Set("X-Id", "1")
	if status, _, _ := e.do(e.client, r); status != 502 {
		t.Errorf("got %d, want 502", status)
	}
	if n := l.seen["1"]; n != 3 {
		t.Errorf("delivered %d times, want 3", n)
	}
}

func TestRetriesOfDeliveredRequestsStayInTheBudget(t *testing.T) {
	// 100 requests meet an app that holds them and dies with all of them at once. Of
	// the second deliveries no more than a fifth may run at the same time.
	e := newEdge(t, nil)
	const clients = 100
	var held, second, most atomic.Int32
	die := make(chan struct{})
	release := make(chan struct{})
	e.add("deadly", upstreamtest.New(t, func(c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			held.Add(1)
			<-die
		}
	}))
	var wg sync.WaitGroup
	var ok, failed atomic.Int32
	for range clients {
		wg.Go(func() {
			switch status, _, _ := e.get("/"); status {
			case 200:
				ok.Add(1)
			case 502:
				failed.Add(1)
			}
		})
	}
	waitFor(t, "all held", func() bool { return held.Load() == clients })
	e.app("good", func(w http.ResponseWriter, _ *http.Request) {
		n := second.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		<-release
		second.Add(-1)
		_, _ = io.WriteString(w, "late")
	})
	close(die)
	waitFor(t, "the rest failed", func() bool { return failed.Load() >= clients-clients/5 })
	close(release)
	wg.Wait()
	if most.Load() > clients/5 || most.Load() == 0 || ok.Load()+failed.Load() != clients {
		t.Errorf("%d retried at once, %d answered, %d failed; want 1-20 retried of 100", most.Load(), ok.Load(), failed.Load())
	}
}

func TestStaleStreamCostsNobodyARequest(t *testing.T) {
	// The app closes every connection after its first answer, without saying so.
	e := newEdge(t, nil)
	var l ledger
	e.add("a", upstreamtest.New(t, func(c net.Conn) {
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		l.note(r.Header.Get("X-Id"))
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	}))
	for i := range 200 {
		r := e.request("POST", "/", strings.NewReader("x"))
		r.Header.Set("X-Id", fmt.Sprint(i))
		if status, _, _ := e.do(e.client, r); status != 200 {
			t.Errorf("request %d got %d", i, status)
		}
	}
	if d := l.duplicates(); len(d) > 0 {
		t.Errorf("delivered twice: %v", d)
	}
}

func TestBackendThatDrainsWhileAloneIsWaitedOut(t *testing.T) {
	e := newEdge(t, func(r *site.Rules) { r.ParkingWait = 5 * time.Second })
	old := upstreamtest.New(t, func(net.Conn) {})
	old.Refuse(&upstream.Refused{Answer: protocol.AnswerDraining})
	b := e.add("old", old)
	var wg sync.WaitGroup
	wg.Go(func() {
		if status, body, _ := e.get("/"); status != 200 || body != "new" {
			t.Errorf("got %d %q, want 200 new", status, body)
		}
	})
	s, _ := e.sites.Lookup(host)
	waitFor(t, "parked", func() bool { return s.Pool().Parked.Taken() == 1 })
	b.Drain()
	e.app("new", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "new") })
	wg.Wait()
}

// An edge that was killed is taken for one that is cut off at first. Its agents come
// back elsewhere a little later than a request is held for what is cut off.
func TestWhatSeemedCutOffIsWaitedForLongerOnceItIsGone(t *testing.T) {
	e := newEdge(t, func(r *site.Rules) { r.ParkingWait = 5 * time.Second })
	up := upstream.New(upstreamtest.New(t, func(net.Conn) {}), upstream.Config{})
	t.Cleanup(func() { _ = up.Close() })
	far := balance.NewBackend(balance.Info{ID: "far", Name: "far", Far: true}, up)
	far.SetReady(false)
	detach := e.sites.Attach(host, far)
	s, _ := e.sites.Lookup(host)
	var wg sync.WaitGroup
	wg.Go(func() {
		if status, body, _ := e.get("/"); status != 200 || body != "new" {
			t.Errorf("got %d %q, want 200 new", status, body)
		}
	})
	waitFor(t, "parked", func() bool { return s.Pool().Parked.Taken() == 1 })
	if !s.Pool().OutOfReach() {
		t.Fatal("the site is not out of reach")
	}
	time.Sleep(500 * time.Millisecond)
	detach()
	time.Sleep(time.Second) // longer than what is cut off is waited for
	e.app("new", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "new") })
	wg.Wait()
}
