// Package tunneltest is the contract of package tunnel as tests. Every carrier
// runs them.
package tunneltest

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"wormhole/shared/tunnel"
)

// Connect returns the two ends of a fresh session: edge opens streams, agent
// accepts them. The suite closes both; Connect's own clean-up may do so again.
type Connect func(t testing.TB) (edge, agent tunnel.Session)

// patience is how long anything that should happen may take.
const patience = 20 * time.Second

// Run runs every test of the contract.
func Run(t *testing.T, connect Connect) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, Connect)
	}{
		{"BytesArriveInOrder", bytesArriveInOrder},
		{"BothEndsNameAStreamAlike", bothEndsNameAStreamAlike},
		{"HalfCloseLeavesTheOtherDirectionOpen", halfClose},
		{"WriteAfterCloseWriteFails", writeAfterCloseWrite},
		{"AbortIsErrAbortedOnBothEnds", abortBothEnds},
		{"AbortWakesBlockedReadAndWrite", abortWakes},
		{"CloseWithoutEndAbortsForThePeer", closeWithoutEnd},
		{"CloseAfterBothEndsAbortsNothing", closeAfterBothEnds},
		{"SessionDeathIsErrAbortedNotEOF", sessionDeath},
		{"EndedSessionRefusesOpenAndAccept", endedSession},
		{"OpenAndAcceptGiveUpWithTheirContext", contexts},
		{"OpenNeverWaitsPastItsContext", openNeverWaits},
		{"ReadDeadlines", readDeadlines},
		{"WriteDeadlines", writeDeadlines},
		{"SlowReaderGetsAllInBoundedMemory", slowReader},
		{"StalledStreamsDoNotStallOthers", stalledStreams},
		{"ManyStreamsAtOnce", manyStreams},
		{"ThousandOpensAtOnce", thousandOpens},
		{"ControlWorksBesideBulk", controlBesideBulk},
		{"TenThousandStreamsLeaveNothing", tenThousandStreams},
		{"TenThousandAbortsLeaveNothing", tenThousandAborts},
		{"CloseIsIdempotentAndLeavesNoGoroutine", closeLeavesNothing},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, connect) })
	}
}

// serve accepts the agent's streams until the session ends, each handled by its
// own goroutine. It returns when the test is over.
func serve(t testing.TB, agent tunnel.Session, handle func(tunnel.Stream)) {
	t.Helper()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			st, err := agent.Accept(context.Background())
			if err != nil {
				return
			}
			wg.Go(func() { handle(st) })
		}
	})
	t.Cleanup(func() { agent.Close(); wg.Wait() })
}

// echo sends back what comes, and ends as the peer does.
func echo(st tunnel.Stream) {
	defer st.Close()
	if _, err := io.Copy(st, st); err == nil {
		_ = st.CloseWrite()
	}
}

// both opens a stream, writes its first byte and returns its two ends, past it.
func both(t testing.TB, edge, agent tunnel.Session) (near, far tunnel.Stream) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	near, err := edge.Open(ctx)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	if _, err := near.Write([]byte{1}); err != nil {
		t.Fatalf("write: %v", err)
	}
	far, err = agent.Accept(ctx)
	if err != nil {
		t.Fatalf("accept: %v", err)
	}
	if _, err := io.ReadFull(far, make([]byte, 1)); err != nil {
		t.Fatalf("read: %v", err)
	}
	return near, far
}

// wantErr reports an error that is not want.
func wantErr(t testing.TB, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: error = %v, want %v", what, got, want)
	}
}

// eventually waits until ok, which it asks again and again.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// random returns n bytes from a seeded source.
func random(n int) []byte {
	b := make([]byte, n)
	source := rand.NewChaCha8([32]byte{1})
	source.Read(b)
	return b
}

func bytesArriveInOrder(t *testing.T, connect Connect) {
	edge, agent := connect(t)
	near, far := both(t, edge, agent)
	sent := random(3 << 20)
	go func() {
		sizes := rand.New(rand.NewPCG(1, 2))
		for rest := sent; len(rest) > 0; {
			n := min(len(rest), 1+sizes.IntN(100_000))
			if _, err := near.Write(rest[:n]); err != nil {
				t.Errorf("write: %v", err)
				return
			}
			rest = rest[n:]
		}
		if err := near.CloseWrite(); err != nil {
			t.Errorf("close write: %v", err)
		}
	}()
	got, err := io.ReadAll(far)
	if err != nil || sha256.Sum256(got) != sha256.Sum256(sent) {
		t.Errorf("read %d bytes and %v, want the %d bytes sent", len(got), err, len(sent))
	}
}

func bothEndsNameAStreamAlike(t *testing.T, connect Connect) {
	edge, agent := connect(t)
	seen := map[uint64]bool{edge.Control().ID(): true}
	if edge.Control().ID() != agent.Control().ID() {
		t.Errorf("control stream is %d and %d", edge.Control().ID(), agent.Control().ID())
	}
	for range 10 {
		near, far := both(t, edge, agent)
		if near.ID() != far.ID() || seen[near.ID()] {
			t.Errorf("ids %d and %d, want the same and not seen before", near.ID(), far.ID())
		}
		seen[near.ID()] = true
	}
	if edge.Streams() != 10 || agent.Streams() != 10 {
		t.Errorf("streams = %d and %d, want 10", edge.Streams(), agent.Streams())
	}
}

func halfClose(t *testing.T, connect Connect) {
	edge, agent := connect(t)
	near, far := both(t, edge, agent)
	near.Write([]byte("question"))
	if err := near.CloseWrite(); err != nil {
		t.Fatalf("close write: %v", err)
	}
	if got, err := io.ReadAll(far); err != nil || string(got) != "question" {
		t.Errorf("far read %q and %v", got, err)
	}
	if n, err := far.Read(make([]byte, 1)); n != 0 || err != io.EOF { //nolint:errorlint // the contract is io.EOF itself
		t.Errorf("second read after END = %d, %v, want io.EOF again", n, err)
	}
	far.Write([]byte("answer"))
	if err := far.CloseWrite(); err != nil {
		t.Fatalf("close write: %v", err)
	}
	if got, err := io.ReadAll(near); err != nil || string(got) != "answer" {
		t.Errorf("near read %q and %v", got, err)
	}
	eventually(t, "both ends count no stream", func() bool { return edge.Streams() == 0 && agent.Streams() == 0 })
}

func writeAfterCloseWrite(t *testing.T, connect Connect) {
	edge, agent := connect(t)
	near, _ := both(t, edge, agent)
	near.CloseWrite()
	if n, err := near.Write([]byte("x")); n != 0 || err == nil {
		t.Errorf("write = %d, %v, want an error", n, err)
	}
}

func abortBothEnds(t *testing.T, connect Connect) {
	for _, by := range []string{"opener", "acceptor"} {
		t.Run(by, func(t *testing.T) {
			edge, agent := connect(t)
			near, far := both(t, edge, agent)
			first, second := near, far
			if by == "acceptor" {
				first, second = far, near
			}
			second.Write([]byte("not read before the abort"))
			first.Abort()
			first.Abort()
			_, err := first.Read(make([]byte, 1))
			wantErr(t, "aborter's read", err, tunnel.ErrAborted)
			_, err = first.Write([]byte("x"))
			wantErr(t, "aborter's write", err, tunnel.ErrAborted)
			_, err = io.ReadAll(second)
			wantErr(t, "peer's read", err, tunnel.ErrAborted)
			eventually(t, "the peer's write fails", func() bool {
				_, err = second.Write([]byte("x"))
				return err != nil
			})
			wantErr(t, "peer's write", err, tunnel.ErrAborted)
			eventually(t, "both ends count no stream", func() bool { return edge.Streams() == 0 && agent.Streams() == 0 })
			if near, far := both(t, edge, agent); near == nil || far == nil {
				t.Error("the session does not work after an abort")
			}
		})
	}
}

// fill writes to st until nobody takes more, and returns the error that ends it.
func fill(st tunnel.Stream) <-chan error {
	done := make(chan error, 1)
	go func() {
		chunk := make([]byte, 64<<10)
		for {
			if _, err := st.Write(chunk); err != nil {
				done <- err
				return
			}
		}
	}()
	return done
}

func abortWakes(t *testing.T, connect Connect) {
	edge, agent := connect(t)
	near, _ := both(t, edge, agent)
	read := make(chan error, 1)
	go func() {
		_, err := near.Read(make([]byte, 1))
		read <- err
	}()
	wrote := fill(near)
	near.Abort()
	wantErr(t, "blocked read", <-read, tunnel.ErrAborted)
	wantErr(t, "blocked write", <-wrote, tunnel.ErrAborted)
}

func closeWithoutEnd(t *testing.T, connect Connect) {
	edge, agent := connect(t)
	near, far := both(t, edge, agent)
	near.Write([]byte("half of it"))
	near.Close()
	near.Close()
	_, err := io.ReadAll(far)
	wantErr(t, "peer's read", err, tunnel.ErrAborted)
	if _, err := near.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("own read after close: %v, want an error and not io.EOF", err)
	}
}

func closeAfterBothEnds(t *testing.T, connect Connect) {
	edge, agent := connect(t)
	near, far := both(t, edge, agent)
	big := random(200 << 10) // less than any window: nobody needs to read for it to go out
	near.CloseWrite()
	if _, err := far.Read(make([]byte, 1)); err != io.EOF { //nolint:errorlint // the contract is io.EOF itself
		t.Fatalf("far read %v, want io.EOF", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		far.Write(big)
		far.CloseWrite()
		far.Close()
		far.Abort()
	}()
	got, err := io.ReadAll(near)
	<-done
	if err != nil || len(got) != len(big) {
		t.Errorf("near read %d bytes and %v, want all %d: closing took them back", len(got), err, len(big))
	}
}

func sessionDeath(t *testing.T, connect Connect) {
	for _, by := range []string{"edge", "agent"} {
		t.Run(by, func(t *testing.T) {
			edge, agent := connect(t)
			near, far := both(t, edge, agent)
			wrote := fill(far)
			if _, err := io.ReadFull(near, make([]byte, 1<<20)); err != nil {
				t.Fatalf("read: %v", err)
			}
			if by == "edge" {
				edge.Close()
			} else {
				agent.Close()
			}
			_, err := io.Copy(io.Discard, near)
			wantErr(t, "edge's read", err, tunnel.ErrAborted)
			wantErr(t, "agent's write", <-wrote, tunnel.ErrAborted)
			_, err = far.Read(make([]byte, 1))
			wantErr(t, "agent's read", err, tunnel.ErrAborted)
			_, err = edge.Control().Read(make([]byte, 1))
			wantErr(t, "edge's read of control", err, tunnel.ErrAborted)
			for _, s := range []tunnel.Session{edge, agent} {
				select {
				case <-s.Done():
				case <-time.After(patience):
					t.Fatal("the session did not end")
				}
				if s.Err() == nil {
					t.Error("ended without an error")
				}
			}
		})
	}
}

func endedSession(t *testing.T, connect Connect) {
	edge, agent := connect(t)
	if edge.Err() != nil {
		t.Errorf("err of a live session = %v, want nil", edge.Err())
	}
	accepting := make(chan error, 1)
	go func() {
		_, err := agent.Accept(context.Background())
		accepting <- err
	}()
	edge.Close()
	wantErr(t, "closer's err", edge.Err(), tunnel.ErrSessionClosed)
	_, err := edge.Open(t.Context())
	wantErr(t, "open", err, tunnel.ErrSessionClosed)
	_, err = edge.Accept(t.Context())
	wantErr(t, "accept", err, tunnel.ErrSessionClosed)
	wantErr(t, "peer's accept", <-accepting, tunnel.ErrSessionClosed)
	<-agent.Done()
	_, err = agent.Accept(t.Context())
	wantErr(t, "peer's second accept", err, tunnel.ErrSessionClosed)
}

func contexts(t *testing.T, connect Connect) {
	edge, agent := connect(t)
	ctx, cancel := context.WithCancel(t.Context())
	accepting := make(chan error, 1)
	go func() {
		_, err := agent.Accept(ctx)
		accepting <- err
	}()
	cancel()
	wantErr(t, "accept", <-accepting, context.Canceled)
	_, err := edge.Open(ctx)
	wantErr(t, "open", err, context.Canceled)
	both(t, edge, agent) // the session is none the worse
}

func openNeverWaits(t *testing.T, connect Connect) {
	edge, _ := connect(t) // nobody accepts
	for range 10_000 {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		start := time.Now()
		st, err := edge.Open(ctx)
		cancel()
		if took := time.Since(start); took > 5*time.Second {
			t.Fatalf("open took %v with 50ms to do it", took)
		}
		if err != nil {
			wantErr(t, "open", err, tunnel.ErrTooManyStreams)
			return
		}
		st.Write([]byte{1})
	}
	t.Error("10,000 streams opened that nobody accepts")
}

func readDeadlines(t *testing.T, connect Connect) {
	edge, agent := connect(t)
	near, far := both(t, edge, agent)
	near.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	_, err := near.Read(make([]byte, 1))
	wantTimeout(t, "read", err)

	far.Write([]byte("late"))
	_, err = near.Read(make([]byte, 4))
	wantTimeout(t, "read with a deadline that has passed", err)

	near.SetReadDeadline(time.Time{})
	if _, err := io.ReadFull(near, make([]byte, 4)); err != nil {
		t.Errorf("read without a deadline: %v", err)
	}
	blocked := make(chan error, 1)
	go func() {
		_, err := near.Read(make([]byte, 1))
		blocked <- err
	}()
	near.SetReadDeadline(time.Unix(1, 0))
	wantTimeout(t, "blocked read", <-blocked)
}

func writeDeadlines(t *testing.T, connect Connect) {
	edge, agent := connect(t)
	near, far := both(t, edge, agent)
	near.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	wantTimeout(t, "write that nobody reads", <-fill(near))
	near.SetWriteDeadline(time.Time{})
	blocked := fill(near)
	near.SetDeadline(time.Unix(1, 0))
	wantTimeout(t, "blocked write", <-blocked)
	near.SetDeadline(time.Time{})
	go io.Copy(io.Discard, far)
	if _, err := near.Write(make([]byte, 8<<20)); err != nil {
		t.Errorf("write without a deadline: %v", err)
	}
}

func wantTimeout(t *testing.T, what string, err error) {
	t.Helper()
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("%s: error = %v, want a timeout", what, err)
	}
}

func slowReader(t *testing.T, connect Connect) {
	const total = 64 << 20
	edge, agent := connect(t)
	near, far := both(t, edge, agent)
	before := heap()
	sum := make(chan [32]byte, 1)
	go func() {
		hash := sha256.New()
		chunk := random(1 << 20)
		for range total / len(chunk) {
			if _, err := far.Write(chunk); err != nil {
				t.Errorf("write: %v", err)
				break
			}
			hash.Write(chunk)
		}
		far.CloseWrite()
		sum <- [32]byte(hash.Sum(nil))
	}()
	hash := sha256.New()
	var most uint64
	for got := 0; ; {
		if got%(16<<20) == 0 {
			time.Sleep(100 * time.Millisecond) // lets everything that will fill up do so
			most = max(most, heap())
		}
		n, err := io.CopyN(hash, near, 1<<20)
		got += int(n)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("read: %v after %d bytes", err, got)
		}
	}
	if want := <-sum; [32]byte(hash.Sum(nil)) != want {
		t.Error("the bytes read are not those written")
	}
	if grown := int64(most) - int64(before); grown > 24<<20 {
		t.Errorf("heap grew by %d KiB for one slow reader, want at most 24 MiB", grown>>10)
	}
}

// heap returns the bytes in use after a collection.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func stalledStreams(t *testing.T, connect Connect) {
	edge, agent := connect(t)
	for range 8 {
		near, far := both(t, edge, agent)
		defer near.Abort()
		far.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
		<-fill(far) // as much as near's window takes
	}
	near, far := both(t, edge, agent)
	go echo(far)
	exchange(t, near, random(3<<20))
}

// exchange sends b to an echo, ends, and checks what comes back.
func exchange(t testing.TB, st tunnel.Stream, b []byte) {
	t.Helper()
	go func() {
		if _, err := st.Write(b); err != nil {
			t.Errorf("write: %v", err)
		}
		if err := st.CloseWrite(); err != nil {
			t.Errorf("close write: %v", err)
		}
	}()
	got, err := io.ReadAll(st)
	if err != nil || sha256.Sum256(got) != sha256.Sum256(b) {
		t.Errorf("echo of %d bytes: %d bytes and %v", len(b), len(got), err)
	}
	st.Close()
}

func manyStreams(t *testing.T, connect Connect) {
	edge, agent := connect(t)
	serve(t, agent, echo)
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			for j := range 10 {
				st, err := edge.Open(t.Context())
				if err != nil {
					t.Errorf("open: %v", err)
					return
				}
				exchange(t, st, random(1+(i*j)*97))
			}
		})
	}
	wg.Wait()
}

func thousandOpens(t *testing.T, connect Connect) {
	edge, agent := connect(t)
	serve(t, agent, echo)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var wg sync.WaitGroup
	opened, gate := make(chan struct{}, 1000), make(chan struct{})
	for range 1000 {
		wg.Go(func() {
			st, err := edge.Open(ctx)
			opened <- struct{}{}
			if err != nil {
				t.Errorf("open: %v", err)
				return
			}
			<-gate // all of them are open at once
			exchange(t, st, []byte("short"))
		})
	}
	for range 1000 {
		<-opened
	}
	close(gate)
	wg.Wait()
}

func controlBesideBulk(t *testing.T, connect Connect) {
	edge, agent := connect(t)
	near, far := both(t, edge, agent)
	go io.Copy(io.Discard, near)
	fill(far)
	go func() { // the edge answers beats
		_, _ = io.Copy(edge.Control(), edge.Control())
	}()
	for i := range 100 {
		agent.Control().SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := agent.Control().Write([]byte("beat")); err != nil {
			t.Fatalf("write %d: %v", i, err)
		}
		if _, err := io.ReadFull(agent.Control(), make([]byte, 4)); err != nil {
			t.Fatalf("read %d: %v", i, err)
		}
	}
}

// repeat runs do with each stream of n, eight at a time.
func repeat(t *testing.T, edge tunnel.Session, n int, do func(tunnel.Stream)) {
	t.Helper()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range n / 8 {
				st, err := edge.Open(t.Context())
				if err != nil {
					t.Errorf("open: %v", err)
					return
				}
				do(st)
			}
		})
	}
	wg.Wait()
}

// leavesNothing checks that after do the ends hold what they held before.
func leavesNothing(t *testing.T, edge, agent tunnel.Session, warmUp, do func()) {
	t.Helper()
	nothing := func() bool { return edge.Streams() == 0 && agent.Streams() == 0 }
	warmUp()
	eventually(t, "no stream is open", nothing)
	goroutines, before := runtime.NumGoroutine(), heap()
	do()
	eventually(t, "no stream is open", nothing)
	eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= goroutines+2 })
	if grown := int64(heap()) - int64(before); grown > 2<<20 {
		t.Errorf("heap grew by %d KiB over 10,000 streams", grown>>10)
	}
}

func tenThousandStreams(t *testing.T, connect Connect) {
	edge, agent := connect(t)
	serve(t, agent, echo)
	use := func(st tunnel.Stream) {
		st.Write([]byte("hello"))
		st.CloseWrite()
		if got, err := io.ReadAll(st); err != nil || string(got) != "hello" {
			t.Errorf("read %q and %v", got, err)
		}
		st.Close()
	}
	leavesNothing(t, edge, agent,
		func() { repeat(t, edge, 800, use) },
		func() { repeat(t, edge, 10_000, use) })
}

func tenThousandAborts(t *testing.T, connect Connect) {
	edge, agent := connect(t)
	serve(t, agent, echo)
	use := func(st tunnel.Stream) {
		st.Write([]byte("hello"))
		if st.ID()%8 < 4 { // half of them while the peer answers, half before
			st.Read(make([]byte, 2))
		}
		st.Abort()
		st.Close()
	}
	leavesNothing(t, edge, agent,
		func() { repeat(t, edge, 800, use) },
		func() { repeat(t, edge, 10_000, use) })
}

func closeLeavesNothing(t *testing.T, connect Connect) {
	before := runtime.NumGoroutine()
	edge, agent := connect(t)
	near, far := both(t, edge, agent)
	wrote := fill(near)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { edge.Close() })
	}
	wg.Wait()
	edge.Close()
	<-wrote
	agent.Close()
	far.Close()
	near.Abort()
	eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before+2 })
}
