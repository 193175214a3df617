//go:build linux

package ingress

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// TestTakenIsWhatTheClientAcknowledged: what the kernel still accepts does not count.
func TestTakenIsWhatTheClientAcknowledged(t *testing.T) {
	const piece, pieces = 32 << 10, 4
	write, wrote := make(chan struct{}), make(chan struct{})
	requests := make(chan *http.Request, 1)
	r := start(t, Config{DisableQUIC: true}, Handlers{Visitor: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests <- r
		for range write {
			_, _ = w.Write(make([]byte, piece))
			_ = http.NewResponseController(w).Flush()
			wrote <- struct{}{}
		}
	})})
	c, err := r.dial("a.test", "http/1.1")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.NetConn().(*net.TCPConn).SetReadBuffer(4 << 10)
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
	request := <-requests
	defer close(write)

	// The client reads nothing: its kernel takes some, until it takes no more.
	var taken uint64
	still := 0
	for n := 0; n < pieces || still < 3; n++ {
		if n < pieces {
			write <- struct{}{}
			<-wrote
		}
		time.Sleep(100 * time.Millisecond)
		now, owed := Taken(request)
		if now == taken && owed {
			still++
		} else {
			still = 0
		}
		if taken = now; n > 100 {
			t.Fatalf("%d bytes taken, more owed: %t, and no end", now, owed)
		}
	}
	if taken == 0 || taken >= pieces*piece {
		t.Errorf("%d bytes of %d taken by one who does not read", taken, pieces*piece)
	}

	// It reads all of it.
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, resp.Body, pieces*piece); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		now, owed := Taken(request)
		if now > pieces*piece && !owed {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes taken, more owed: %t, after the client has read %d", now, owed, pieces*piece)
		}
	}
}

func TestNobodyKnowsWhatAClientOfQUICHasTaken(t *testing.T) {
	type answer struct {
		bytes uint64
		owed  bool
	}
	answers := make(chan answer, 1)
	r := start(t, Config{}, Handlers{Visitor: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		bytes, owed := Taken(r)
		answers <- answer{bytes, owed}
	})})
	if _, _, err := get(r.client("h3"), "https://a.test/"); err != nil {
		t.Fatal(err)
	}
	if got := <-answers; got != (answer{}) {
		t.Errorf("got %v, want that nothing is known", got)
	}
}
