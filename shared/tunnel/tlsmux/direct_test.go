package tlsmux

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wormhole/shared/pipe"
	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
)

// middle joins streams of two sessions, as an edge does that relays.
type middle struct {
	left, right tunnel.Session // the far ends: left opens, right accepts
	queued      bool           // everything through the queues
	taken       atomic.Int64   // frames that went past the queues
	refused     atomic.Int64
}

// counted counts what a sink takes.
type counted struct {
	tunnel.Sink
	m *middle
}

func (c counted) Offer(p []byte) bool {
	if c.Sink.Offer(p) {
		c.m.taken.Add(1)
		return true
	}
	c.m.refused.Add(1)
	return false
}

// What the first byte of a stream asks of the middle.
const toJoin, toEcho = 'j', 'e'

// newMiddle joins streams of a session to new ones of another. wrap is put around the
// connection of the one who accepts at the end.
func newMiddle(t testing.TB, wrap func(*net.TCPConn) net.Conn) *middle {
	t.Helper()
	m := new(middle)
	var accepting tunnel.Session
	m.left, accepting = pair(t, Options{}, Options{MaxIncoming: 1024})

	client, server := rawPair(t)
	serverTLS, clientTLS := tlsConfigs(t)
	var opening tunnel.Session
	done := make(chan error, 1)
	go func() {
		var err error
		_ = server.SetWriteBuffer(16 << 10)
		under := &gathering{Conn: server}
		under.W = server
		opening, _, _, err = Accept(t.Context(), tls.Server(under, serverTLS), welcomeAll, Options{WriteTimeout: time.Minute})
		done <- err
	}()
	var err error
	if m.right, _, err = Dial(t.Context(), wrap(client), clientTLS, &protocol.Hello{Token: "x"}, Options{WriteTimeout: time.Minute}); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			a, err := accepting.Accept(context.Background())
			if err != nil {
				return
			}
			wg.Go(func() {
				var first [1]byte
				if _, err := io.ReadFull(a, first[:]); err != nil || first[0] == toEcho {
					_, _ = io.Copy(a, a)
					_ = a.Close()
					return
				}
				b, err := opening.Open(context.Background())
				if err != nil {
					_ = a.Close()
					return
				}
				if !m.queued {
					tunnel.DirectOf(a).PassTo(counted{tunnel.DirectOf(b), m})
					tunnel.DirectOf(b).PassTo(counted{tunnel.DirectOf(a), m})
				}
				pipe.Join(context.Background(), a, b, 0)
			})
		}
	})
	t.Cleanup(func() {
		for _, s := range []tunnel.Session{m.left, m.right, accepting, opening} {
			_ = s.Close()
		}
		wg.Wait()
	})
	return m
}

func unwrapped(c *net.TCPConn) net.Conn { return c }

// stream returns both ends of a stream through the middle.
func (m *middle) stream(t testing.TB) (left, right tunnel.Stream) {
	t.Helper()
	left, err := m.left.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := left.Write([]byte{toJoin, 1}); err != nil {
		t.Fatal(err)
	}
	if right, err = m.right.Accept(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(right, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return left, right
}

func TestWhatIsPassedOnKeepsItsOrder(t *testing.T) {
	m := newMiddle(t, unwrapped)
	var all sync.WaitGroup
	send := func(st tunnel.Stream, seed uint64, total int) {
		sizes, source := rand.New(rand.NewPCG(seed, 1)), randomOf(seed)
		piece := make([]byte, 60<<10)
		for total > 0 {
			n := 1 + sizes.IntN(1500)
			if sizes.IntN(50) == 0 {
				n = len(piece)
			}
			p := piece[:min(n, total)]
			_, _ = source.Read(p)
			if _, err := st.Write(p); err != nil {
				t.Errorf("Write: %v", err)
				return
			}
			total -= len(p)
			if sizes.IntN(20) == 0 {
				time.Sleep(time.Duration(sizes.IntN(200)) * time.Microsecond) // so that readers wait
			}
		}
		if err := st.CloseWrite(); err != nil {
			t.Errorf("CloseWrite: %v", err)
		}
	}
	receive := func(st tunnel.Stream, seed uint64, total int) {
		got, err := io.ReadAll(st)
		want := make([]byte, total)
		_, _ = io.ReadFull(randomOf(seed), want)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes and %v came of %d, or other ones", len(got), err, total)
		}
	}
	const streams, size = 8, 2 << 20
	for i := range uint64(streams) {
		left, right := m.stream(t)
		all.Go(func() { send(left, 2*i, size) })
		all.Go(func() { send(right, 2*i+1, size) })
		all.Go(func() { receive(left, 2*i+1, size) })
		all.Go(func() { receive(right, 2*i, size) })
	}
	all.Wait()
	if n := m.taken.Load(); n < 1000 {
		t.Errorf("%d frames were passed on directly, want many", n)
	}
	t.Logf("%d frames went past the queues, %d were refused", m.taken.Load(), m.refused.Load())
}

func randomOf(seed uint64) io.Reader { return rand.NewChaCha8([32]byte{byte(seed)}) }

func TestPassingOnTellsHowStreamsEnd(t *testing.T) {
	m := newMiddle(t, unwrapped)
	left, right := m.stream(t)
	for range 20 {
		if _, err := left.Write([]byte("short")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(right, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := left.Write([]byte("last")); err != nil {
		t.Fatal(err)
	}
	if err := left.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(right); string(got) != "last" || err != nil {
		t.Errorf("got %q, %v, want the last bytes and their end", got, err)
	}
	right.Abort()
	if _, err := io.ReadAll(left); !errors.Is(err, tunnel.ErrAborted) {
		t.Errorf("got %v, want it aborted", err)
	}

	left, right = m.stream(t)
	_ = m.right.Close()
	if _, err := left.Read(make([]byte, 1)); !errors.Is(err, tunnel.ErrAborted) {
		t.Errorf("got %v when the session behind died, want it aborted", err)
	}
	_ = right.Close()
}

// stalling is a connection that can be made to read nothing.
type stalling struct {
	*net.TCPConn
	gate *sync.RWMutex
}

func (s stalling) Read(p []byte) (int, error) {
	n, err := s.TCPConn.Read(p)
	s.gate.RLock() // after the read, which may have begun before
	defer s.gate.RUnlock()
	return n, err
}

// An agent that takes nothing must not stop the goroutine that receives from another
// edge, on which all that this edge relays depends.
func TestAPeerThatTakesNothingHoldsUpNobodyElse(t *testing.T) {
	var gate sync.RWMutex
	m := newMiddle(t, func(c *net.TCPConn) net.Conn {
		_ = c.SetReadBuffer(8 << 10)
		return stalling{c, &gate}
	})
	const streams, size = 4, 150 << 10
	var left, right [streams]tunnel.Stream
	for i := range streams {
		left[i], right[i] = m.stream(t)
	}
	other, err := m.left.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Write([]byte{toEcho}); err != nil {
		t.Fatal(err)
	}
	gate.Lock()
	var sending sync.WaitGroup
	for i := range streams {
		sending.Go(func() {
			source := randomOf(uint64(i))
			p := make([]byte, 1000)
			for rest := size; rest > 0; rest -= len(p) {
				p = p[:min(len(p), rest)]
				_, _ = source.Read(p)
				if _, err := left[i].Write(p); err != nil {
					t.Errorf("Write: %v", err)
				}
				// One at a time, so that the reader waits and frames go past it.
				time.Sleep(20 * time.Microsecond)
			}
			_ = left[i].CloseWrite()
		})
	}
	stop := make(chan struct{})
	go func() { sending.Wait(); close(stop) }()
	var slowest time.Duration
	for over := false; !over; {
		select {
		case <-stop:
			over = true
		default:
		}
		began := time.Now()
		_ = other.SetReadDeadline(began.Add(5 * time.Second))
		_, err := other.Write([]byte("x"))
		if err == nil {
			_, err = io.ReadFull(other, make([]byte, 1))
		}
		if err != nil {
			t.Errorf("beside a session whose peer takes nothing: %v", err)
			over = true
		}
		slowest = max(slowest, time.Since(began))
	}
	gate.Unlock()
	<-stop
	for i := range streams {
		got, err := io.ReadAll(right[i])
		want := make([]byte, size)
		_, _ = io.ReadFull(randomOf(uint64(i)), want)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes and %v came of %d, or other ones", len(got), err, size)
		}
	}
	t.Logf("slowest exchange beside it %v", slowest)
}
