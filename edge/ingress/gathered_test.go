package ingress

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"
)

// counting is a listener whose connections count the large writes to them.
type counting struct {
	net.Listener
	writes atomic.Int64
}

func (l *counting) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return &counted{c, l}, err
}

type counted struct {
	net.Conn
	l *counting
}

func (c *counted) Write(p []byte) (int, error) {
	if len(p) > 8<<10 {
		c.l.writes.Add(1)
	}
	return c.Conn.Write(p)
}

func TestOneWriteOfAHandlerIsOneSystemCall(t *testing.T) {
	const pieces, size = 16, 64 << 10
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener := &counting{Listener: tcp}
	piece := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	r := start(t, Config{HTTPSListener: listener, DisableQUIC: true}, Handlers{Visitor: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1048576")
		_ = http.NewResponseController(w).Flush()
		for range pieces {
			if n, err := w.Write(piece); n != size || err != nil {
				t.Errorf("Write: %d, %v", n, err)
			}
		}
	})})
	client := r.client("h1")
	for range 2 { // records grow to 16 KiB within a connection's first 128 KiB
		listener.writes.Store(0)
		resp, err := client.Get("https://a.test/")
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !bytes.Equal(got, bytes.Repeat(piece, pieces)) {
			t.Fatalf("%d bytes came, %v", len(got), err)
		}
		if n := listener.writes.Load(); n > 2*pieces {
			t.Errorf("%d pieces of %d bytes took %d large writes, want one or two each", pieces, size, n)
		}
	}
}

// TestAWriteIsOnItsWayWhenItReturns: nothing stays in the gathering until the next.
func TestAWriteIsOnItsWayWhenItReturns(t *testing.T) {
	for _, size := range []int{16 << 10, 16<<10 + 1, 32 << 10, 64 << 10, 1 << 20} {
		next := make(chan struct{})
		r := start(t, Config{DisableQUIC: true}, Handlers{Visitor: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "2097152")
			_, _ = w.Write(make([]byte, size))
			_ = http.NewResponseController(w).Flush()
			<-next
		})})
		c, err := r.dial("a.test", "http/1.1")
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err == nil {
			_, err = io.CopyN(io.Discard, resp.Body, int64(size))
		}
		if err != nil {
			t.Errorf("a write of %d bytes: %v before the next", size, err)
		}
		close(next)
		_ = c.Close()
	}
}
