package gather

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
)

// sizes is a writer that notes how much each write had.
type sizes struct {
	bytes.Buffer
	writes []int
}

func (s *sizes) Write(p []byte) (int, error) {
	s.writes = append(s.writes, len(p))
	return s.Buffer.Write(p)
}

func TestWhatIsWrittenWhileHeldGoesOutAtOnce(t *testing.T) {
	under := new(sizes)
	w := Writer{W: under}
	_, _ = w.Write([]byte("a"))
	w.Hold()
	_, _ = w.Write([]byte("b"))
	_, _ = w.Write([]byte("c"))
	if got := under.String(); got != "a" {
		t.Errorf("before Release %q was written, want a", got)
	}
	if err := w.Release(); err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write([]byte("d"))
	if got := under.String(); got != "abcd" || len(under.writes) != 3 {
		t.Errorf("got %q in writes of %v, want abcd in three", got, under.writes)
	}
	w.Hold()
	if err := w.Release(); err != nil || len(under.writes) != 3 {
		t.Errorf("Release with nothing kept: %v, %d writes", err, len(under.writes))
	}
}

func TestEveryByteComesInOrderWhateverTheSizes(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	under, want := new(sizes), new(bytes.Buffer)
	w := Writer{W: under}
	noise := make([]byte, 4*Limit)
	for i := range noise {
		noise[i] = byte(random.Uint32())
	}
	for range 50 {
		hold := random.IntN(3) > 0
		if hold {
			w.Hold()
		}
		for range random.IntN(8) {
			p := noise[random.IntN(2*Limit):][:random.IntN(2*Limit)]
			want.Write(p)
			if n, err := w.Write(p); n != len(p) || err != nil {
				t.Fatalf("Write: %d, %v", n, err)
			}
		}
		if hold {
			if err := w.Release(); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(under.Next(under.Len()), want.Next(want.Len())) {
				t.Fatal("the bytes differ after Release")
			}
		}
	}
}

func TestFourRecordsFitBetweenHoldAndRelease(t *testing.T) {
	const record = 5 + 16<<10 + 1 + 16 // RFC 8446, section 5.2: head, content and its type, tag
	under := new(sizes)
	w := Writer{W: under}
	w.Hold()
	for range 4 {
		_, _ = w.Write(make([]byte, record))
	}
	if err := w.Release(); err != nil || len(under.writes) != 1 {
		t.Errorf("%v, writes of %v, want one", err, under.writes)
	}
}

func TestALateErrorIsToldAndStays(t *testing.T) {
	broken := errors.New("broken")
	r, pipe := io.Pipe()
	_ = r.CloseWithError(broken)
	w := Writer{W: pipe}
	w.Hold()
	if _, err := w.Write([]byte("a")); err != nil {
		t.Fatalf("held: %v", err)
	}
	if err := w.Release(); !errors.Is(err, broken) {
		t.Errorf("Release: %v, want the write's error", err)
	}
	if _, err := w.Write([]byte("b")); !errors.Is(err, broken) {
		t.Errorf("the next Write: %v, want the same error", err)
	}
	w.Hold()
	if _, err := w.Write(make([]byte, 2*Limit)); !errors.Is(err, broken) {
		t.Errorf("a held Write: %v, want the same error", err)
	}
	if err := w.Release(); !errors.Is(err, broken) {
		t.Errorf("the next Release: %v, want the same error", err)
	}
}

func TestOthersMayWriteWhileHeld(t *testing.T) {
	under := new(sizes)
	w := Writer{W: under}
	var others sync.WaitGroup
	for range 4 {
		others.Go(func() {
			for range 100 {
				_, _ = w.Write(make([]byte, 100))
			}
		})
	}
	for range 100 {
		w.Hold()
		_, _ = w.Write(make([]byte, 1000))
		_ = w.Release()
	}
	others.Wait()
	if got := under.Len(); got != 4*100*100+100*1000 {
		t.Errorf("%d bytes were written, want %d", got, 4*100*100+100*1000)
	}
}

func TestReleaseNowTakesWhatTheSocketTakes(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	_ = client.(*net.TCPConn).SetWriteBuffer(16 << 10)
	_ = server.(*net.TCPConn).SetReadBuffer(16 << 10)

	w, sent := Writer{W: client}, new(bytes.Buffer)
	piece := make([]byte, 10_000)
	write := func() {
		for i := range piece {
			piece[i] = byte(rand.Uint32())
		}
		sent.Write(piece)
		if n, err := w.Write(piece); n != len(piece) || err != nil {
			t.Fatalf("Write: %d, %v", n, err)
		}
	}
	all := true
	for all {
		if sent.Len() > 64<<20 {
			t.Fatal("the socket takes everything")
		}
		w.Hold()
		write()
		if all, err = w.ReleaseNow(); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		if all, err := w.ReleaseNow(); all || err != nil {
			t.Fatalf("ReleaseNow on a socket that takes nothing: %t, %v", all, err)
		}
	}
	got := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(server)
		got <- b
	}()
	write() // behind what is left
	w.Hold()
	write()
	if err := w.Release(); err != nil {
		t.Fatal(err)
	}
	_ = client.(*net.TCPConn).CloseWrite()
	if b := <-got; !bytes.Equal(b, sent.Bytes()) {
		t.Errorf("%d bytes came of %d, or others", len(b), sent.Len())
	}
	_ = client.Close()
	w.Hold()
	_, _ = w.Write(piece)
	if all, err := w.ReleaseNow(); !all || err == nil {
		t.Errorf("ReleaseNow on a closed socket: %t, %v", all, err)
	}
}

func TestReleaseNowLeavesAllToTheNextWriteWithoutASocket(t *testing.T) {
	under := new(sizes)
	w := Writer{W: under}
	w.Hold()
	_, _ = w.Write([]byte("a"))
	if all, err := w.ReleaseNow(); all || err != nil {
		t.Errorf("got %t, %v, want it kept", all, err)
	}
	_, _ = w.Write([]byte("b"))
	if got := under.String(); got != "ab" {
		t.Errorf("%q was written, want ab", got)
	}
	w.Hold()
	if all, err := w.ReleaseNow(); !all || err != nil {
		t.Errorf("with nothing kept: %t, %v", all, err)
	}
}
