package tlsmux

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"wormhole/shared/tunnel"
)

// streams returns the two ends of a stream of a new session.
func streams(t *testing.T) (near, far *stream) {
	t.Helper()
	agent, edge := pair(t, Options{}, Options{})
	n, err := edge.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f, err := agent.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return n.(*stream), f.(*stream)
}

// held is how many bytes of chunks the stream's session has.
func held(st *stream) int64 { return st.s.table.mem.held.Load() }

func TestWhatIsLentIsWhatReadWouldReturn(t *testing.T) {
	near, far := streams(t)
	const size = 24 << 20
	sent := make(chan [32]byte, 1)
	go func() {
		random, sum := rand.NewChaCha8([32]byte{1}), sha256.New()
		piece := make([]byte, 100<<10)
		for left := size; left > 0; {
			p := piece[:min(left, 1+rand.IntN(len(piece)))]
			_, _ = random.Read(p)
			sum.Write(p)
			if _, err := far.Write(p); err != nil {
				t.Errorf("Write: %v", err)
				break
			}
			left -= len(p)
		}
		_ = far.CloseWrite()
		sent <- [32]byte(sum.Sum(nil))
	}()
	got, total, lent := sha256.New(), 0, 0
	buf := make([]byte, 9000)
	for {
		var b []byte
		var err error
		if rand.IntN(4) > 0 {
			if b, err = near.Lend(); b != nil {
				lent++
			} else if err == nil && !near.Ready() {
				t.Fatal("nothing was lent, and a Read would wait")
			}
		}
		if b == nil && err == nil {
			var n int
			n, err = near.Read(buf)
			b = buf[:n]
		}
		got.Write(b)
		total += len(b)
		near.GiveBack()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			break
		}
	}
	if total != size || [32]byte(got.Sum(nil)) != <-sent {
		t.Errorf("%d bytes came, of %d, or other ones", total, size)
	}
	if lent < 100 {
		t.Errorf("lent %d times in %d MiB, want many", lent, size>>20)
	}
	if n := held(near); n != 0 {
		t.Errorf("%d bytes are held at the end, want none", n)
	}
}

func TestWhatIsLentOutlivesTheStream(t *testing.T) {
	near, far := streams(t)
	want := bytes.Repeat([]byte("lent."), 64<<10/5)
	if _, err := far.Write(want); err != nil {
		t.Fatal(err)
	}
	var b []byte
	for b == nil {
		var err error
		if b, err = near.Lend(); err != nil {
			t.Fatal(err)
		}
	}
	_ = near.Close()
	if _, err := near.Lend(); err == nil {
		t.Error("a closed stream lends")
	}
	other, err := near.s.Open(t.Context()) // whose bytes would take the place
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			s, err := far.s.Accept(t.Context())
			if err != nil {
				return
			}
			_, _ = s.Write(make([]byte, 128<<10))
		}
	}()
	if _, err := io.ReadFull(other, make([]byte, 128<<10)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, want[:len(b)]) {
		t.Error("what was lent has changed")
	}
	near.GiveBack()
	near.GiveBack() // does nothing
	for deadline := time.Now().Add(5 * time.Second); held(near) != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes are held at the end, want none", held(near))
		}
	}
}

func TestLendTellsHowTheStreamEnds(t *testing.T) {
	near, far := streams(t)
	if near.Ready() {
		t.Error("ready before anything came")
	}
	_ = near.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if b, err := near.Lend(); b != nil || err == nil {
		t.Errorf("got %d bytes, %v after the deadline", len(b), err)
	}
	_ = near.SetReadDeadline(time.Time{})
	if err := far.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := near.Lend(); !errors.Is(err, io.EOF) || !near.Ready() {
		t.Errorf("got %v, ready: %t, want EOF", err, near.Ready())
	}
	near, far = streams(t)
	far.Abort()
	if _, err := near.Lend(); !errors.Is(err, tunnel.ErrAborted) || !near.Ready() {
		t.Errorf("got %v, ready: %t, want it aborted", err, near.Ready())
	}
}
