package tlsmux

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"reflect"
	"runtime"
	"sync"
	"testing"
	"time"
	"unsafe"

	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
)

// leftInYamux counts the streams, and the notes of unanswered SYNs, that yamux
// still keeps.
func leftInYamux(s tunnel.Session) (streams, syns int) {
	mux := s.(*session).mux
	inside := reflect.ValueOf(mux).Elem()
	lock := (*sync.Mutex)(unsafe.Pointer(inside.FieldByName("streamLock").UnsafeAddr())) // guards inflight
	lock.Lock()
	syns = inside.FieldByName("inflight").Len()
	lock.Unlock()
	return mux.NumStreams(), syns
}

func TestTenThousandAbortsLeaveNothingInYamux(t *testing.T) {
	agent, edge := pair(t, Options{}, Options{})
	var handlers sync.WaitGroup
	handlers.Go(func() {
		for {
			st, err := agent.Accept(context.Background())
			if err != nil {
				return
			}
			handlers.Go(func() {
				io.CopyN(st, st, 5)
				if st.ID()%3 == 0 {
					st.CloseWrite()
				}
				st.Close()
			})
		}
	})
	var openers sync.WaitGroup
	for i := range 8 {
		openers.Go(func() {
			for j := range 10_000 / 8 {
				st, err := edge.Open(t.Context())
				if err != nil {
					t.Errorf("open: %v", err)
					return
				}
				switch (i + j) % 4 {
				case 0: // aborted before anything was sent
				case 1:
					st.Write([]byte("hello"))
				case 2:
					st.Write([]byte("hello"))
					st.CloseWrite()
				case 3:
					st.Write([]byte("hello"))
					st.Read(make([]byte, 5))
				}
				st.Abort()
			}
		})
	}
	openers.Wait()
	// A last exchange: streams aborted here leave yamux with the next frame that comes.
	for range 2 {
		st, err := edge.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		st.Write([]byte("hello"))
		io.ReadFull(st, make([]byte, 5))
		st.Close()
	}
	deadline := time.Now().Add(10 * time.Second)
	for _, s := range []tunnel.Session{edge, agent} {
		for {
			streams, syns := leftInYamux(s)
			if s.Streams() == 0 && streams <= 3 && syns == 0 { // control, and the last two
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("left: %d open, %d streams and %d SYNs in yamux", s.Streams(), streams, syns)
			}
			runtime.Gosched()
		}
	}
	edge.(*session).table.mu.Lock()
	if got, want := edge.(*session).table.credits, edge.(*session).opt.synCredits(); got != want {
		t.Errorf("credits = %d, want all %d back", got, want)
	}
	edge.(*session).table.mu.Unlock()
	edge.Close()
	handlers.Wait()
}

// TestC1DeathOfThePeerIsNeverACleanEnd: what kill -9 does to a session.
func TestC1DeathOfThePeerIsNeverACleanEnd(t *testing.T) {
	for name, kill := range map[string]func(*session){
		"FIN": func(s *session) { s.raw.Close() },
		"RST": func(s *session) {
			raw := s.raw
			if g, ok := raw.(*gathering); ok {
				raw = g.Conn
			}
			raw.(*net.TCPConn).SetLinger(0)
			s.raw.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			agent, edge := pair(t, Options{}, Options{})
			done := make(chan struct{})
			go func() {
				defer close(done)
				st, err := agent.Accept(context.Background())
				if err != nil {
					t.Error(err)
					return
				}
				for err == nil {
					_, err = st.Write(make([]byte, 32<<10))
				}
			}()
			st, err := edge.Open(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(st, make([]byte, 1<<20)); err != nil {
				t.Fatal(err)
			}
			kill(agent.(*session))
			if _, err := io.Copy(io.Discard, st); !errors.Is(err, tunnel.ErrAborted) {
				t.Errorf("read = %v, want ErrAborted", err)
			}
			<-edge.Done()
			if err := edge.Err(); err == nil || errors.Is(err, tunnel.ErrSessionClosed) {
				t.Errorf("err = %v, want what happened to the connection", err)
			}
			<-done
		})
	}
}

func TestASilentPeerLosesItsSession(t *testing.T) {
	client, server := rawPair(t)
	serverTLS, clientTLS := tlsConfigs(t)
	opt := Options{KeepAlive: 50 * time.Millisecond, WriteTimeout: 150 * time.Millisecond}
	accepted := make(chan tunnel.Session, 1)
	go func() {
		s, _, _, err := Accept(context.Background(), tls.Server(server, serverTLS), welcomeAll, opt)
		if err != nil {
			t.Error(err)
		}
		accepted <- s
	}()
	clientTLS.NextProtos = []string{protocol.ALPN}
	silent := tls.Client(client, clientTLS)
	if _, err := tunnel.Greet(silent, &protocol.Hello{}); err != nil {
		t.Fatal(err)
	}
	silent.Write(header{kind: typeWindow, flags: flagSYN, id: 1}.append(nil))
	edge := <-accepted
	start := time.Now()
	<-edge.Done()
	if took := time.Since(start); took < 100*time.Millisecond || !errors.Is(edge.Err(), errSilent) {
		t.Errorf("ended after %v with %v, want 200ms and errSilent", took, edge.Err())
	}
}

func TestAnIdleSessionStaysAlive(t *testing.T) {
	opt := Options{KeepAlive: 120 * time.Millisecond, WriteTimeout: 200 * time.Millisecond}
	agent, edge := pair(t, opt, opt)
	select {
	case <-edge.Done():
		t.Errorf("ended: %v", edge.Err())
	case <-agent.Done():
		t.Errorf("ended: %v", agent.Err())
	case <-time.After(time.Second): // three times what a silent peer has
	}
}

func TestAboveTheMemoryCeilingTheLargestStreamIsAborted(t *testing.T) {
	const ceiling = 1 << 20
	agent, edge := pair(t, Options{}, Options{MemoryCeiling: ceiling})
	var stalled []tunnel.Stream
	for range 8 { // each fills its first window of 256 KiB, unread
		near, err := edge.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		far, err := agent.Accept(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		far.SetWriteDeadline(time.Now().Add(30 * time.Millisecond))
		for err == nil {
			_, err = far.Write(make([]byte, 16<<10))
		}
		stalled = append(stalled, near)
	}
	aborted := 0
	for _, st := range stalled {
		if st.(*stream).ended() != nil {
			aborted++
		}
	}
	held := edge.(*session).table.mem.held.Load()
	if aborted < 3 || aborted > 5 || held > ceiling {
		t.Errorf("%d of 8 streams aborted and %d bytes held, want about 4 and at most %d", aborted, held, ceiling)
	}
	if edge.Err() != nil {
		t.Errorf("the session ended: %v", edge.Err())
	}
}

func TestAWindowGrowsForAFastReader(t *testing.T) {
	agent, edge := pair(t, Options{}, Options{})
	near, err := edge.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	far, err := agent.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for i := 0; i < 32<<20; i += 32 << 10 {
			far.Write(make([]byte, 32<<10))
		}
		far.CloseWrite()
	}()
	if _, err := io.Copy(io.Discard, near); err != nil {
		t.Fatal(err)
	}
	recv := &near.(*stream).recv
	recv.mu.Lock()
	defer recv.mu.Unlock()
	if got := recv.window; got < 1<<20 {
		t.Errorf("window = %d KiB after 32 MiB, want it grown", got>>10)
	}
}

func TestAnIdleSessionIsSmall(t *testing.T) {
	const n = 100
	var edges []tunnel.Session
	before := inUse()
	for range n {
		_, edge := pair(t, Options{}, Options{})
		edges = append(edges, edge)
	}
	each := (inUse() - before) / n
	t.Logf("both ends of an idle session hold %d KiB", each>>10)
	// The goal is 40 KiB for an edge's end; this bound leaves room for what the race
	// detector and other tests add.
	if each > 120<<10 {
		t.Errorf("both ends of an idle session hold %d KiB, want at most 120", each>>10)
	}
	runtime.KeepAlive(edges)
}

// inUse returns the bytes of heap and stacks in use.
func inUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}
