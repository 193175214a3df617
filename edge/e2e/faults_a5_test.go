package e2e

import (
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"wormhole/edge/edgetest/oracle"
)

func TestA5LongStreamsAtDrain(t *testing.T) {
	deadline := scaled(4*time.Second, 20*time.Second)
	s := newStage(t, 1, "--drain-timeout", deadline.String())
	s.app(t, "app", host, []int{0})
	s.app(t, "chat", chatHost, []int{0})
	edge := s.Edges[0]
	edge.AwaitReady(t, 2)

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
	told := l.Elapsed()
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
	oracle.Row{
		ID: "A5", Done: fmt.Sprintf("edge with %d open streams told to stop, deadline %s", r.Streams, deadline),
		Figure: fmt.Sprintf("%d closed before the deadline, %d later than 1 s after it (last %s after it), %d left open, %d gRPC not UNAVAILABLE",
			early, late, (last - deadline).Round(time.Millisecond), stillOpen, wrongCode),
		Limit: "0 before, all closed 1 s after, gRPC UNAVAILABLE",
		OK:    early+late+wrongCode+stillOpen == 0 && r.Good() && r.Streams == scaled(38, 80),
	}.Verdict(t)
}
