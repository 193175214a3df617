package agent

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
)

// several is an edge that takes that many connections for one tunnel.
func several(t *testing.T, p pki, connections int) *fakeEdge {
	edge := startEdge(t, p, "e1", "127.0.0.1:0")
	edge.set(func() {
		edge.admit = func(hello *protocol.Hello) (*protocol.Welcome, error) {
			w := edge.accepted()
			w.Connections = connections
			if hello.Tunnel != "" {
				w.Tunnel = hello.Tunnel
			}
			return w, nil
		}
	})
	return edge
}

// joinsSoon are waits for tests of further connections. Those that carry nothing are
// kept.
func joinsSoon() timing {
	q := quick()
	q.look, q.rejoin, q.unused = 10*time.Millisecond, 20*time.Millisecond, time.Hour
	// Beats are not the subject, and the machine may be busy.
	q.suspect, q.dead, q.deadAlways = 5*time.Second, 5*time.Second, 10*time.Second
	return q
}

// bulk opens a stream that moves bulk until the test ends or stop is called.
func (s *edgeSession) bulk() (stop func()) {
	t := s.edge.t
	t.Helper()
	stream, answer := s.openAs(sink)
	if answer != protocol.AnswerOK {
		t.Fatalf("answer %d, want OK", answer)
	}
	_ = stream.SetDeadline(time.Time{})
	ended := make(chan struct{})
	go func() { // ends with the stream
		defer close(ended)
		for block := make([]byte, 64<<10); ; {
			if _, err := stream.Write(block); err != nil {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	stop = func() {
		_ = stream.Close()
		<-ended
	}
	t.Cleanup(stop)
	return stop
}

func TestBulkMakesTheAgentOpenAFurtherConnection(t *testing.T) {
	p := newPKI(t)
	edge := several(t, p, 2)
	a, _ := startAgent(t, p, Config{Edges: []string{edge.addr}, timing: joinsSoon()})
	a.SetReady(true, "")
	first := edge.next()
	stop := first.bulk()
	second := edge.next()
	tunnelID := a.Status().Tunnels[0].Tunnel
	if h := second.hello; h.Tunnel != tunnelID || h.Token != "token-1" || h.Instance != first.hello.Instance || len(h.Hosts) != 0 {
		t.Errorf("hello is %+v, want one that joins %s", h, tunnelID)
	}
	stream, answer := second.open()
	if answer != protocol.AnswerOK {
		t.Fatalf("answer %d on the further connection, want OK", answer)
	}
	if _, err := io.WriteString(stream, "hello"); err != nil {
		t.Fatal(err)
	}
	_ = stream.CloseWrite()
	if got, err := io.ReadAll(stream); err != nil || string(got) != "hello" {
		t.Fatalf("read %q, %v", got, err)
	}
	// Its end is told on the connection that it was on.
	end, err := protocol.DecodeStreamEnd(second.hears(protocol.TypeStreamEnd))
	if err != nil || end.Stream != stream.ID() || end.Delivered != 5 || !end.Clean {
		t.Fatalf("stream end %+v, %v", end, err)
	}
	_ = stream.Close()

	// As many as the edge allows, even if all carry bulk.
	second.bulk()
	s := a.Status()
	if len(s.Tunnels) != 1 || s.Tunnels[0].Connections != 2 {
		t.Errorf("status %+v, want one tunnel of 2 connections", s.Tunnels)
	}
	stop()
	time.Sleep(100 * time.Millisecond)
	if n := edge.hellos(); n != 2 {
		t.Errorf("%d connections were opened, want 2", n)
	}
}

func TestAnEdgeThatKnowsOneConnectionSeesOne(t *testing.T) {
	p := newPKI(t)
	for name, c := range map[string]struct{ edge, agent int }{
		"an older edge":      {0, 4},
		"an edge with one":   {1, 4},
		"an agent with one":  {4, 1},
		"only short streams": {4, 4},
	} {
		t.Run(name, func(t *testing.T) {
			edge := several(t, p, c.edge)
			a, _ := startAgent(t, p, Config{Edges: []string{edge.addr}, Connections: c.agent, timing: joinsSoon()})
			a.SetReady(true, "")
			s := edge.next()
			if name != "only short streams" {
				s.bulk()
			}
			stream, _ := s.open()
			for range 50 {
				if _, err := stream.Write(make([]byte, 1000)); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(stream, make([]byte, 1000)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(4 * time.Millisecond)
			}
			_ = stream.Close()
			if n := edge.hellos(); n != 1 {
				t.Errorf("%d connections were opened, want one", n)
			}
		})
	}
}

func TestAFurtherConnectionThatIsRefusedHurtsNothing(t *testing.T) {
	p := newPKI(t)
	edge := several(t, p, 4)
	a, _ := startAgent(t, p, Config{Edges: []string{edge.addr}, timing: joinsSoon()})
	a.SetReady(true, "")
	first := edge.next()
	edge.set(func() {
		refusals := 3
		admit := edge.admit
		edge.admit = func(hello *protocol.Hello) (*protocol.Welcome, error) {
			if refusals--; refusals >= 0 {
				// Of a new tunnel this would be for good.
				return nil, &protocol.Reject{Code: protocol.CodeBadHello, Reason: "no"}
			}
			return admit(hello)
		}
	})
	first.bulk()
	second := edge.next()
	if second.hello.Tunnel == "" || edge.hellos() != 5 {
		t.Errorf("hello %+v after %d", second.hello, edge.hellos())
	}
	if s := a.Status(); len(s.Tunnels) != 1 || s.Totals.Failed != 0 || s.Totals.Opened != 1 || s.Refused != "" {
		t.Errorf("status %+v", s)
	}
}

func TestAFurtherConnectionThatCarriesNothingEnds(t *testing.T) {
	p := newPKI(t)
	edge := several(t, p, 2)
	soon := joinsSoon()
	soon.unused = 50 * time.Millisecond
	a, _ := startAgent(t, p, Config{Edges: []string{edge.addr}, timing: soon})
	a.SetReady(true, "")
	first := edge.next()
	stop := first.bulk()
	second := edge.next()
	stream, _ := second.open()
	stop()
	time.Sleep(200 * time.Millisecond)
	if isClosed(second.Done()) {
		t.Fatal("it ended with a stream open")
	}
	_ = stream.Close()
	select {
	case <-second.Done():
	case <-time.After(patience):
		t.Fatal("it stays open without a stream")
	}
	eventually(t, "one connection", func() bool { return a.Status().Tunnels[0].Connections == 1 })
	if isClosed(first.Done()) {
		t.Error("the tunnel ended with it")
	}
	// And comes again.
	first.bulk()
	edge.next()
}

func TestATunnelOutlivesAFurtherConnection(t *testing.T) {
	p := newPKI(t)
	edge := several(t, p, 2)
	a, _ := startAgent(t, p, Config{Edges: []string{edge.addr}, timing: joinsSoon()})
	a.SetReady(true, "")
	first := edge.next()
	first.bulk()
	second := edge.next()
	stream, _ := second.open()
	_ = second.raw.Close()
	if _, err := stream.Read(make([]byte, 1)); !errors.Is(err, tunnel.ErrAborted) {
		t.Errorf("its stream reads %v", err)
	}
	if _, answer := first.open(); answer != protocol.AnswerOK {
		t.Errorf("answer %d on the first connection, want OK", answer)
	}
	if s := a.Status(); len(s.Tunnels) != 1 || s.Totals.Lost != 0 {
		t.Errorf("status %+v", s)
	}
}

func TestFurtherConnectionsEndWithTheFirst(t *testing.T) {
	p := newPKI(t)
	edge := several(t, p, 2)
	a, _ := startAgent(t, p, Config{Edges: []string{edge.addr}, timing: joinsSoon()})
	a.SetReady(true, "")
	first := edge.next()
	first.bulk()
	second := edge.next()
	_ = first.raw.Close()
	select {
	case <-second.Done():
	case <-time.After(patience):
		t.Fatal("it outlives its tunnel")
	}
	if again := edge.next(); again.hello.Tunnel != "" {
		t.Errorf("the agent came back with %+v, want a new tunnel", again.hello)
	}
}

func TestADrainWaitsForEveryConnection(t *testing.T) {
	p := newPKI(t)
	edge := several(t, p, 2)
	edge.set(func() { edge.noAck = true })
	slow := joinsSoon()
	slow.ack = time.Hour
	a, _ := startAgent(t, p, Config{Edges: []string{edge.addr}, timing: slow})
	a.SetReady(true, "")
	first := edge.next()
	stop := first.bulk()
	second := edge.next()
	stream, _ := second.open()
	stop()
	drained := make(chan error, 1)
	go func() { drained <- a.Drain(context.Background()) }() // ends below
	for {
		if m := <-first.said; m.typ == protocol.TypeDrain {
			break
		}
	}
	first.say(protocol.TypeDrainAck, nil)
	eventually(t, "the first connection takes no more", func() bool {
		stream, answer := first.open()
		if answer != protocol.AnswerDraining {
			_ = stream.Close() // it came before the acknowledgement, and would be waited for
		}
		return answer == protocol.AnswerDraining
	})
	// What was sent on the other before its acknowledgement is on its way.
	late, answer := second.open()
	if answer != protocol.AnswerOK {
		t.Errorf("answer %d on the connection that was not acknowledged, want OK", answer)
	}
	second.say(protocol.TypeDrainAck, nil)
	eventually(t, "the second connection takes no more", func() bool {
		stream, answer := second.open()
		if answer != protocol.AnswerDraining {
			_ = stream.Close() // it came before the acknowledgement, and would be waited for
		}
		return answer == protocol.AnswerDraining
	})
	_ = late.Close()
	select {
	case err := <-drained:
		t.Fatalf("drained with a stream open: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	_ = stream.Close()
	select {
	case err := <-drained:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("the drain does not end")
	}
	for _, s := range []*edgeSession{first, second} {
		select {
		case <-s.Done():
		case <-time.After(patience):
			t.Error("a connection outlives the drain")
		}
	}
}
