package pipe

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tcpPair returns two ends of a TCP connection.
func tcpPair(t testing.TB) (*net.TCPConn, *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, _ := ln.Accept()
		accepted <- c
	}()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s := <-accepted
	t.Cleanup(func() { c.Close(); s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

// joined starts a Join between two TCP connections and returns their far ends.
func joined(t testing.TB, ctx context.Context, idle time.Duration) (left, right *net.TCPConn, result <-chan Result) {
	t.Helper()
	left, a := tcpPair(t)
	right, b := tcpPair(t)
	done := make(chan Result, 1)
	go func() { done <- Join(ctx, a, b, idle) }()
	return left, right, done
}

func TestHalfCloseAndBytesPassBothWays(t *testing.T) {
	left, right, result := joined(t, t.Context(), time.Minute)
	question := make([]byte, 3<<20)
	for i := range question {
		question[i] = byte(rand.Uint32())
	}
	go func() {
		left.Write(question)
		left.CloseWrite()
	}()
	got, err := io.ReadAll(right)
	if err != nil || sha256.Sum256(got) != sha256.Sum256(question) {
		t.Fatalf("right read %d bytes and %v, want the %d sent", len(got), err, len(question))
	}
	if _, err := right.Write([]byte("answer after the end")); err != nil {
		t.Fatal(err)
	}
	right.CloseWrite()
	if got, err := io.ReadAll(left); err != nil || string(got) != "answer after the end" {
		t.Errorf("left read %q and %v", got, err)
	}
	want := Result{AToB: int64(len(question)), BToA: 20, AEnded: true, BEnded: true}
	if got := <-result; got != want {
		t.Errorf("result = %+v, want %+v", got, want)
	}
}

func TestResetOnOneSideResetsTheOther(t *testing.T) {
	left, right, result := joined(t, t.Context(), time.Minute)
	left.Write([]byte("half a"))
	buf := make([]byte, 6)
	if _, err := io.ReadFull(right, buf); err != nil {
		t.Fatal(err)
	}
	left.SetLinger(0)
	left.Close()
	if _, err := right.Read(buf); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("right read %v, want a reset", err)
	}
	got := <-result
	if got.Err == nil || got.AEnded || got.AToB != 6 {
		t.Errorf("result = %+v, want an error after 6 bytes", got)
	}
}

// stream is a connection that knows aborts, like a tunnel's.
type stream struct {
	net.Conn
	aborted chan struct{}
}

func (s stream) Abort() { close(s.aborted); s.Close() }

func TestResetAbortsAStream(t *testing.T) {
	left, a := tcpPair(t)
	_, b := tcpPair(t)
	st := stream{b, make(chan struct{})}
	result := make(chan Result, 1)
	go func() { result <- Join(t.Context(), a, st, time.Minute) }()
	left.SetLinger(0)
	left.Close()
	<-st.aborted
	if got := <-result; got.Err == nil {
		t.Error("result has no error")
	}
}

func TestIdleEndsBothSides(t *testing.T) {
	left, right, result := joined(t, t.Context(), 40*time.Millisecond)
	if got := <-result; !errors.Is(got.Err, ErrIdle) {
		t.Errorf("err = %v, want ErrIdle", got.Err)
	}
	for _, c := range []net.Conn{left, right} {
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read = %v, want a reset", err)
		}
	}
}

func TestProgressInOneDirectionIsNotIdle(t *testing.T) {
	const idle = 200 * time.Millisecond
	left, right, result := joined(t, t.Context(), idle)
	go io.Copy(io.Discard, right)
	ticker := time.NewTicker(idle / 8)
	defer ticker.Stop()
	for range 24 { // three times idle, in one direction only
		<-ticker.C
		if _, err := left.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case got := <-result:
		t.Fatalf("ended with %+v while bytes moved", got)
	default:
	}
	left.CloseWrite()
	right.CloseWrite()
	if got := <-result; got.Err != nil || got.AToB != 24 {
		t.Errorf("result = %+v, want 24 bytes and no error", got)
	}
}

func TestContextEndsBothSides(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	left, _, result := joined(t, ctx, 0)
	reason := errors.New("told to")
	cancel(reason)
	if got := <-result; !errors.Is(got.Err, reason) {
		t.Errorf("err = %v, want the context's cause", got.Err)
	}
	if _, err := left.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read = %v, want a reset", err)
	}
}

func TestEndTowardsAConnWithoutHalfCloseIsAnError(t *testing.T) {
	left, a := tcpPair(t)
	b, far := net.Pipe()
	defer far.Close()
	result := make(chan Result, 1)
	go func() { result <- Join(t.Context(), a, b, 0) }()
	left.CloseWrite()
	if got := <-result; !errors.Is(got.Err, ErrNoHalfClose) || !got.AEnded {
		t.Errorf("result = %+v, want ErrNoHalfClose", got)
	}
}

func TestBulkAfterShortExchangesArrivesWhole(t *testing.T) {
	left, right, result := joined(t, t.Context(), time.Minute)
	go func() {
		for _, size := range []int{1, smallSize, smallSize + 1, largeSize * 3, 7, largeSize, 2, 1 << 20} {
			left.Write(bytes.Repeat([]byte{byte(size)}, size))
		}
		left.CloseWrite()
	}()
	got, err := io.ReadAll(right)
	if want := 1 + smallSize + smallSize + 1 + largeSize*3 + 7 + largeSize + 2 + 1<<20; err != nil || len(got) != want {
		t.Errorf("read %d bytes and %v, want %d", len(got), err, want)
	}
	right.CloseWrite()
	<-result
}

func BenchmarkExchange(b *testing.B) {
	left, right, _ := joined(b, b.Context(), time.Minute)
	go func() {
		buf := make([]byte, 300)
		for {
			if _, err := io.ReadFull(right, buf[:200]); err != nil {
				return
			}
			right.Write(buf)
		}
	}()
	buf := make([]byte, 300)
	b.ReportAllocs()
	for b.Loop() {
		left.Write(buf[:200])
		if _, err := io.ReadFull(left, buf); err != nil {
			b.Fatal(err)
		}
	}
	left.SetLinger(0)
	left.Close()
	right.Close()
}
