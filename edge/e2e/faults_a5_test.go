package e2e

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"wormhole/edge/edgetest"
	"wormhole/edge/edgetest/oracle"
)

func TestA5LongStreamsAtDrain(t *testing.T) {
	deadline := scaled(4*time.Second, 20*time.Second)
	s := newStage(t, 1, "--drain-timeout", deadline.String())
	s.app(t, "app", host, []int{0})
	s.app(t, "chat", chatHost, []int{0})
	edge := s.Edges[0]
	rawToken := s.Token(t, "--host", otherHost, "--kind", "tcp")
	edgetest.Start(t, s.AgentEnv(rawToken, []int{0}, "WORMHOLE_NAME=raw", "WORMHOLE_ENDPOINT="+rawApp(t)), binaries.Wormhole)
	edge.AwaitReady(t, 3)
	raw := keepRaw(t, rawPortOf(t, edge.EdgeProcess, otherHost, ""), scaled(3, 5))

	at := oracle.At(edge.HTTPS)
	h1 := s.client(t, "h1", host, at)
	every := 50 * time.Millisecond // the end is seen so late
	l := oracle.Start(oracle.Plan{
		WebSockets: scaled(20, 50), Events: scaled(12, 20), Chats: scaled(6, 10), Every: every,
		WebSocketClients: []*oracle.Client{h1},
		EventClients:     []*oracle.Client{h1, s.client(t, "h2", host, at), s.client(t, "h3", host, at)},
		ChatClients:      []*oracle.Client{s.client(t, "h2", chatHost, at)},
	})
	awaitOpen(t, l, scaled(20+12+6, 50+20+10))
	told, toldAt := l.Elapsed(), time.Now()
	edge.Signal(syscall.SIGTERM)
	edge.Exit(t, deadline+5*time.Second)
	for end := time.Now().Add(2 * time.Second); l.Open() > 0 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	run := l.Stop()
	r := s.judge(t, run)

	early, late, wrongCode, stillOpen := 0, 0, 0, 0
	last := time.Duration(0)
	for _, e := range run.Endings {
		after := e.Ended - told
		switch {
		case e.ByUs:
			stillOpen++
			continue
		case after < deadline-100*time.Millisecond:
			early++
			t.Logf("%s over %s ended %s after SIGTERM: %v", e.Kind, e.Proto, after, e.Err)
		case after > deadline+time.Second:
			late++
		}
		last = max(last, after)
		if e.Kind == oracle.GRPC && status.Code(e.Err) != codes.Unavailable {
			wrongCode++
			t.Logf("gRPC sees %v", e.Err)
		}
		if errors.Is(e.Err, oracle.ErrLooksComplete) {
			t.Errorf("an event stream over %s was cut and looks complete", e.Proto)
		}
	}
	for _, one := range raw() {
		after := one.at.Sub(toldAt)
		switch {
		case one.err == nil:
			stillOpen++
		case after < deadline-100*time.Millisecond:
			early++
			t.Logf("raw TCP ended %s after SIGTERM: %v", after, one.err)
		case after > deadline+time.Second:
			late++
		}
		if errors.Is(one.err, io.EOF) || errors.Is(one.err, io.ErrUnexpectedEOF) {
			t.Error("a raw TCP connection was cut and looks complete")
		}
		last = max(last, after)
	}
	oracle.Row{
		ID: "A5", Done: fmt.Sprintf("edge with %d open streams and %d raw TCP connections told to stop, deadline %s", r.Streams, scaled(3, 5), deadline),
		Figure: fmt.Sprintf("%d closed before the deadline, %d later than 1 s after it (last %s after it), %d left open, %d gRPC not UNAVAILABLE",
			early, late, (last - deadline).Round(time.Millisecond), stillOpen, wrongCode),
		Limit: "0 before, all closed 1 s after, gRPC UNAVAILABLE",
		OK:    early+late+wrongCode+stillOpen == 0 && r.Good() && r.Streams == scaled(38, 80) && !t.Failed(),
	}.Verdict(t)
}

// cutAt is how and when a connection ended, err nil if it did not.
type cutAt struct {
	at  time.Time
	err error
}

// keepRaw keeps n raw TCP connections talking until they end or ended is called,
// which returns how each went.
func keepRaw(t *testing.T, addr string, n int) (ended func() []cutAt) {
	t.Helper()
	results := make([]cutAt, n)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range n {
		c := dialRaw(t, addr, "echo")
		if err := says(c, "first"); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for k := 0; ; k++ {
				if err := says(c, fmt.Sprint("word ", k)); err != nil {
					results[i] = cutAt{time.Now(), err}
					return
				}
				select {
				case <-stop:
					return
				case <-time.After(50 * time.Millisecond):
				}
			}
		})
	}
	return func() []cutAt {
		close(stop)
		wg.Wait()
		return results
	}
}
