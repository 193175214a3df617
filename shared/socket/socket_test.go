package socket

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// pair returns two ends of a connection, both direct, and closes them at the end.
func pair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	out, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	in, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	a, b = Direct(out), Direct(in)
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// All of 32 MiB arrives each way at once, through readers slower than the kernel's
// buffers.
func TestBytesArriveWholeBothWays(t *testing.T) {
	a, b := pair(t)
	data := make([]byte, 32<<20)
	_, _ = rand.Read(data)
	want := sha256.Sum256(data)
	var wg sync.WaitGroup
	for _, c := range []net.Conn{a, b} {
		wg.Go(func() {
			n, err := c.Write(data)
			if n != len(data) || err != nil {
				t.Errorf("wrote %d of %d: %v", n, len(data), err)
			}
			if err := TCP(c).CloseWrite(); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			h, buf, n := sha256.New(), make([]byte, 9001), 0
			for {
				k, err := c.Read(buf)
				h.Write(buf[:k])
				if n += k; n%7 == 0 {
					runtime.Gosched()
				}
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
			if !bytes.Equal(h.Sum(nil), want[:]) {
				t.Errorf("%d bytes of %d arrived, or others", n, len(data))
			}
		})
	}
	wg.Wait()
}

// Errors are those that the net package returns: callers tell them apart.
func TestErrorsAreThoseOfNet(t *testing.T) {
	for _, direct := range []bool{false, true} {
		name, wrap := "net", func(c net.Conn) net.Conn { return TCP(c) }
		if direct {
			name, wrap = "direct", func(c net.Conn) net.Conn { return c }
		}
		t.Run(name, func(t *testing.T) {
			buf := make([]byte, 1<<20)

			a, b := pair(t)
			a, b = wrap(a), wrap(b)
			_ = a.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
			var timeout net.Error
			if n, err := a.Read(buf); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &timeout) || !timeout.Timeout() {
				t.Errorf("read after its deadline: %d, %v", n, err)
			} else if !strings.HasPrefix(err.Error(), "read tcp 127.0.0.1:") {
				t.Errorf("words of the error: %v", err)
			}
			_ = a.SetReadDeadline(time.Time{})
			_ = a.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
			wrote := 0
			for { // until the kernel takes no more
				n, err := a.Write(buf)
				if wrote += n; err != nil {
					if !errors.Is(err, os.ErrDeadlineExceeded) || !strings.HasPrefix(err.Error(), "write tcp ") {
						t.Errorf("write after its deadline: %v", err)
					}
					break
				}
			}
			_ = TCP(a).CloseWrite()
			if n, err := io.Copy(io.Discard, struct{ io.Reader }{b}); n != int64(wrote) || err != nil {
				t.Errorf("%d bytes were said to be written, %d arrived: %v", wrote, n, err)
			}

			a, b = pair(t)
			a, b = wrap(a), wrap(b)
			_ = TCP(b).SetLinger(0)
			_ = b.Close()
			if _, err := a.Read(buf); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("read from a connection that was reset: %v", err)
			}
			if _, err := a.Write(buf); !errors.Is(err, syscall.EPIPE) {
				t.Errorf("write to a connection that was reset: %v", err)
			}

			a, b = pair(t)
			a, b = wrap(a), wrap(b)
			time.AfterFunc(20*time.Millisecond, func() { _ = a.Close() })
			if _, err := a.Read(buf); !errors.Is(err, net.ErrClosed) {
				t.Errorf("read from a connection that was closed: %v", err)
			}
			if _, err := a.Write(buf); !errors.Is(err, net.ErrClosed) {
				t.Errorf("write to a connection that was closed: %v", err)
			}
			if n, err := b.Read(buf); n != 0 || !errors.Is(err, io.EOF) {
				t.Errorf("read at the end: %d, %v", n, err)
			}
			if n, err := b.Read(nil); n != 0 || err != nil {
				t.Errorf("read of nothing: %d, %v", n, err)
			}
		})
	}
}

// A deadline in the past ends a read that waits, and the connection goes on after.
func TestADeadlineInterruptsAndCanBeLifted(t *testing.T) {
	a, b := pair(t)
	ended := make(chan error)
	go func() {
		_, err := a.Read(make([]byte, 1))
		ended <- err
	}()
	time.Sleep(20 * time.Millisecond)
	_ = a.SetReadDeadline(time.Unix(1, 0))
	if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("interrupted read: %v", err)
	}
	_ = a.SetReadDeadline(time.Time{})
	_, _ = b.Write([]byte("x"))
	var got [2]byte
	if n, err := a.Read(got[:]); n != 1 || err != nil || got[0] != 'x' {
		t.Errorf("read after it: %d %q %v", n, got[:n], err)
	}
}

// What is no TCP connection stays what it is.
func TestOthersAreLeftAlone(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if Direct(a) != a || TCP(a) != nil {
		t.Error("a pipe was taken for a TCP connection")
	}
}

func BenchmarkExchange(b *testing.B) {
	for _, kind := range []string{"net", "direct"} {
		b.Run(kind, func(b *testing.B) {
			x, y := pair(b)
			if kind == "net" {
				x, y = TCP(x), TCP(y)
			}
			go func() {
				buf := make([]byte, 512)
				for {
					n, err := y.Read(buf)
					if err != nil {
						return
					}
					if _, err := y.Write(buf[:n]); err != nil {
						return
					}
				}
			}()
			buf := make([]byte, 300)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := x.Write(buf); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(x, buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
