package tlsmux

import (
	"errors"
	"io"
	"runtime"
	"testing"
	"time"

	"wormhole/shared/tunnel"
)

func TestStreamsNobodyWantsAreAbortedAtOnce(t *testing.T) {
	agent, edge := pair(t, Options{}, Options{RefuseStreams: true})
	for range 3 * smallBacklog { // more than could wait to be accepted
		st, err := agent.Open(t.Context())
		if errors.Is(err, tunnel.ErrAborted) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := st.Read(make([]byte, 1)); !errors.Is(err, tunnel.ErrAborted) {
			t.Fatalf("read = %v, want %v", err, tunnel.ErrAborted)
		}
		_ = st.Close()
	}
	if n := edge.Streams(); n != 0 {
		t.Errorf("%d streams are open", n)
	}
	echo(t, edge, agent)
}

func TestASessionThatWasIdleWritesAgain(t *testing.T) {
	opt := Options{KeepAlive: 4 * calm}
	agent, edge := pair(t, opt, opt)
	for range 5 {
		for range 3 {
			echo(t, edge, agent)
		}
		deadline := time.Now().Add(10 * time.Second)
		for out := edge.(*session).out; ; runtime.Gosched() {
			if time.Now().After(deadline) {
				t.Fatal("the idle session's writer is still there")
			}
			out.mu.Lock()
			running := out.running
			out.mu.Unlock()
			if !running {
				break
			}
		}
	}
}

// echo exchanges more than the outbox holds, so that its own goroutine writes.
func echo(t *testing.T, edge, agent tunnel.Session) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		st, err := agent.Accept(t.Context())
		if err != nil {
			return
		}
		_, _ = io.Copy(st, st)
		_ = st.CloseWrite()
		_ = st.Close()
	}()
	st, err := edge.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const size = 4 * outboxLimit
	go func() { // ends with the stream
		_, _ = st.Write(make([]byte, size))
		_ = st.CloseWrite()
	}()
	if n, err := io.Copy(io.Discard, st); n != size || err != nil {
		t.Errorf("%d bytes came back, %v; want %d", n, err, size)
	}
	_ = st.Close()
	<-done
}
