package agents

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"wormhole/edge/upstream"
	"wormhole/shared/protocol"
	"wormhole/shared/token"
	"wormhole/shared/tunnel"
	"wormhole/shared/tunnel/tlsmux"
)

// patience is how long a test waits for what must come.
const patience = 10 * time.Second

// doorway is a door behind a listener.
type doorway struct {
	t         *testing.T
	door      *Door
	addr      string
	clientTLS *tls.Config
}

func openDoorway(t *testing.T, cfg Config) *doorway {
	t.Helper()
	cfg.Node = "n1"
	door, err := New(cfg, &fickle{}, &counted{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	serverTLS, clientTLS := identity(t)
	l, err := tls.Listen("tcp", "127.0.0.1:0", serverTLS)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { // ends with the listener
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { door.ServeTLS(context.Background(), conn.(*tls.Conn)) })
		}
	})
	ctx, stop := context.WithCancel(context.Background())
	serving.Go(func() { _ = door.Run(ctx) })
	t.Cleanup(func() {
		stop()
		_ = l.Close()
		_ = door.Close()
		serving.Wait()
	})
	return &doorway{t, door, l.Addr().String(), clientTLS}
}

// arrival is one connection of an agent.
type arrival struct {
	tunnel.Session
	welcome *protocol.Welcome
	raw     net.Conn
	streams chan tunnel.Stream // those that the edge opened and that were answered OK
	said    chan protocol.Type // what the edge said on the control stream
}

func (d *doorway) dial(hello *protocol.Hello) (*arrival, error) {
	conn, err := net.Dial("tcp", d.addr)
	if err != nil {
		d.t.Fatal(err)
	}
	s, welcome, err := tlsmux.Dial(d.t.Context(), conn, d.clientTLS, hello, tlsmux.Options{})
	if err != nil {
		return nil, err
	}
	eventually(d.t, "the edge has noticed", func() bool {
		for _, t := range d.door.Tunnels() {
			if t.id == welcome.Tunnel {
				return slices.ContainsFunc(*t.carriers.Load(), func(c *carrier) bool { return c.session.RemoteAddr().String() == s.LocalAddr().String() })
			}
		}
		return false
	})
	a := &arrival{s, welcome, conn, make(chan tunnel.Stream, 100), make(chan protocol.Type, 100)}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			stream, err := s.Accept(context.Background())
			if err != nil {
				return
			}
			if _, err := protocol.ReadStreamHeader(stream); err != nil {
				continue
			}
			if _, err := stream.Write([]byte{byte(protocol.AnswerOK)}); err == nil {
				a.streams <- stream
			}
		}
	})
	serving.Go(func() {
		for {
			typ, _, err := protocol.ReadMessage(s.Control(), protocol.MaxMessage)
			if err != nil {
				return
			}
			a.said <- typ
		}
	})
	d.t.Cleanup(func() {
		_ = s.Close()
		serving.Wait()
	})
	return a, nil
}

func (d *doorway) mustDial(hello *protocol.Hello) *arrival {
	d.t.Helper()
	a, err := d.dial(hello)
	if err != nil {
		d.t.Fatal(err)
	}
	return a
}

// pair is a tunnel of two connections.
func (d *doorway) pair() (t *Tunnel, first, second *arrival) {
	d.t.Helper()
	first = d.mustDial(hello("token"))
	second = d.mustDial(joining("token", first.welcome.Tunnel))
	if t = d.door.Tunnels()[0]; t.Connections() != 2 {
		d.t.Fatalf("%d connections, want 2", t.Connections())
	}
	return t, first, second
}

func joining(token, id string) *protocol.Hello {
	h := hello(token)
	h.Tunnel = id
	return h
}

// open opens a stream and returns it with the agent's end, which is on one of
// arrivals.
func (d *doorway) open(t *Tunnel, on *arrival) (upstream.Stream, tunnel.Stream) {
	d.t.Helper()
	s, err := t.OpenStream(d.t.Context(), protocol.StreamHeader{Kind: protocol.KindHTTP})
	if err != nil {
		d.t.Fatal(err)
	}
	select {
	case far := <-on.streams:
		return s, far
	case <-time.After(patience):
		d.t.Fatal("the stream is not on the connection where it belongs")
	}
	return nil, nil
}

// pour makes the stream bulk, from the agent to the edge.
func (d *doorway) pour(s upstream.Stream, far tunnel.Stream) {
	d.t.Helper()
	written := make(chan error, 1)
	go func() { // ends with the read below
		_, err := far.Write(make([]byte, 2*tunnel.BulkBytes))
		written <- err
	}()
	if _, err := io.ReadFull(s, make([]byte, 2*tunnel.BulkBytes)); err != nil {
		d.t.Fatal(err)
	}
	if err := <-written; err != nil {
		d.t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

func TestAConnectionJoinsItsTunnel(t *testing.T) {
	d := openDoorway(t, Config{MaxTunnels: 1})
	tun, first, second := d.pair()
	if first.welcome.Connections != 4 || second.welcome.Tunnel != first.welcome.Tunnel {
		t.Errorf("welcomed with %+v and %+v", first.welcome, second.welcome)
	}
	if n := len(d.door.Tunnels()); n != 1 {
		t.Errorf("%d tunnels, want one", n)
	}
	if n := d.door.sites.(*counted).attached.Load(); n != 1 {
		t.Errorf("registered %d times, want once", n)
	}
	if tun.session.RemoteAddr().String() != first.LocalAddr().String() {
		t.Error("the tunnel's first connection is another")
	}
}

func TestNobodyJoinsWhatIsNotHis(t *testing.T) {
	d := openDoorway(t, Config{})
	id := d.mustDial(hello("token")).welcome.Tunnel
	stranger := joining("token", id)
	stranger.Instance = strings.Repeat("b", 32)
	for name, h := range map[string]*protocol.Hello{
		"another process":      stranger,
		"another token":        joining("stolen", id),
		"no such tunnel":       joining("token", "0123456789abcdef"),
		"the name of a tunnel": joining("token", id+" "),
	} {
		var reject *protocol.Reject
		if _, err := d.dial(h); !errors.As(err, &reject) || *reject != *noTunnel() || reject.Code.Permanent() {
			t.Errorf("%s: %v, want %v", name, err, noTunnel())
		}
	}
	if n := d.door.Tunnels()[0].Connections(); n != 1 {
		t.Errorf("the tunnel has %d connections", n)
	}
	eventually(t, "four refusals are counted", func() bool { return d.door.Refusals()[protocol.CodeNoTunnel] == 4 })
}

func TestATunnelHasNoMoreConnectionsThanItMay(t *testing.T) {
	d := openDoorway(t, Config{Connections: 2})
	tun, first, second := d.pair()
	var reject *protocol.Reject
	if _, err := d.dial(joining("token", first.welcome.Tunnel)); !errors.As(err, &reject) || reject.Code != protocol.CodeTooManyTunnels {
		t.Errorf("third connection: %v, want %s", err, protocol.CodeTooManyTunnels)
	}
	_ = second.Close()
	eventually(t, "one connection", func() bool { return tun.Connections() == 1 })
	eventually(t, "its place is free", func() bool {
		_, err := d.dial(joining("token", first.welcome.Tunnel))
		return err == nil
	})
}

func TestAnEdgeWithLittleMemoryTakesOneConnection(t *testing.T) {
	d := openDoorway(t, Config{SessionMemory: SessionMemory / 2})
	first := d.mustDial(hello("token"))
	if n := first.welcome.Connections; n > 1 {
		t.Errorf("the agent is told of %d connections", n)
	}
	var reject *protocol.Reject
	if _, err := d.dial(joining("token", first.welcome.Tunnel)); !errors.As(err, &reject) || reject.Code != protocol.CodeTooManyTunnels {
		t.Errorf("second connection: %v, want %s", err, protocol.CodeTooManyTunnels)
	}
}

func TestNoConnectionJoinsATunnelThatDrains(t *testing.T) {
	d := openDoorway(t, Config{})
	first := d.mustDial(hello("token"))
	if err := protocol.WriteMessage(first.Control(), protocol.TypeDrain, protocol.Drain{}); err != nil {
		t.Fatal(err)
	}
	first.hears(t, protocol.TypeDrainAck)
	var reject *protocol.Reject
	if _, err := d.dial(joining("token", first.welcome.Tunnel)); !errors.As(err, &reject) || reject.Code != protocol.CodeNoTunnel {
		t.Errorf("joining: %v, want %s", err, protocol.CodeNoTunnel)
	}
}

func (a *arrival) hears(t *testing.T, want protocol.Type) {
	t.Helper()
	for {
		select {
		case typ := <-a.said:
			if typ == want {
				return
			}
		case <-time.After(patience):
			t.Fatalf("no message of type %d came", want)
		}
	}
}

func TestADrainIsAcknowledgedOnEveryConnection(t *testing.T) {
	d := openDoorway(t, Config{})
	_, first, second := d.pair()
	if err := protocol.WriteMessage(first.Control(), protocol.TypeDrain, protocol.Drain{}); err != nil {
		t.Fatal(err)
	}
	first.hears(t, protocol.TypeDrainAck)
	second.hears(t, protocol.TypeDrainAck)
}

func TestStreamsAreOpenedWhereNoBulkIs(t *testing.T) {
	d := openDoorway(t, Config{})
	tun, first, second := d.pair()
	kept, _ := d.open(tun, first)
	bulk, far := d.open(tun, first)
	if behind(kept) {
		t.Error("a stream is behind bulk before there is any")
	}
	d.pour(bulk, far)
	other, otherFar := d.open(tun, second)
	if !behind(kept) || !behind(bulk) || behind(other) {
		t.Errorf("beside bulk: the streams of its connection are behind it: %v, %v; that of the other: %v", behind(kept), behind(bulk), behind(other))
	}
	// With bulk on both it is no use to avoid one.
	d.pour(other, otherFar)
	if behind(kept) || behind(other) {
		t.Error("streams are avoided although no connection is free")
	}
	bulk.(upstream.Placed).Rest()
	d.open(tun, first)
	if !behind(other) {
		t.Error("a stream behind the only bulk is not avoided")
	}
	_ = other.Close()
	_, _ = d.open(tun, first)
}

// What is lent to the reader does not pass Read.
func TestBytesThatAreLentAreBulkToo(t *testing.T) {
	d := openDoorway(t, Config{})
	tun, first, second := d.pair()
	bulk, far := d.open(tun, first)
	written := make(chan error, 1)
	go func() { // ends with the loop below
		_, err := far.Write(make([]byte, 2*tunnel.BulkBytes))
		written <- err
	}()
	l := bulk.(interface{ Lender() upstream.Lender }).Lender()
	lent := 0
	for got := 0; got < 2*tunnel.BulkBytes; {
		b, err := l.Lend()
		if err != nil {
			t.Fatal(err)
		}
		got, lent = got+len(b), lent+len(b)
		l.GiveBack()
		if len(b) == 0 {
			n, err := bulk.Read(make([]byte, 4<<10))
			if err != nil {
				t.Fatal(err)
			}
			got += n
		}
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	if lent < tunnel.BulkBytes {
		t.Fatalf("%d bytes were lent: the test shows nothing", lent)
	}
	d.open(tun, second)
}

func behind(s upstream.Stream) bool { return s.(upstream.Placed).Behind() }

func TestATunnelOutlivesAConnectionThatJoined(t *testing.T) {
	d := openDoorway(t, Config{})
	tun, first, second := d.pair()
	bulk, far := d.open(tun, first)
	d.pour(bulk, far)
	lost, _ := d.open(tun, second)
	_ = second.raw.Close()
	if _, err := lost.Read(make([]byte, 1)); !errors.Is(err, tunnel.ErrAborted) {
		t.Errorf("read on the connection that died: %v, want %v", err, tunnel.ErrAborted)
	}
	if _, ok := lost.Delivered(t.Context()); ok {
		t.Error("what was delivered is known of a stream whose connection died")
	}
	_ = lost.Close()
	eventually(t, "one connection", func() bool { return tun.Connections() == 1 })
	d.open(tun, first)
	if n := d.door.sites.(*counted).attached.Load(); n != 1 {
		t.Errorf("%d registrations, want one", n)
	}
}

// Between a connection's death and its noticing, streams are opened there in vain.
func TestAStreamFindsItsWayWhenItsConnectionDies(t *testing.T) {
	d := openDoorway(t, Config{})
	tun, first, second := d.pair()
	bulk, far := d.open(tun, first)
	d.pour(bulk, far)
	dying := (*tun.carriers.Load())[1]
	_ = second.raw.Close()
	<-dying.session.Done()
	joined := append([]*carrier{tun.first()}, dying)
	tun.carriers.Store(&joined)
	d.open(tun, first)
}

func TestConnectionsEndWithTheFirst(t *testing.T) {
	d := openDoorway(t, Config{})
	_, first, second := d.pair()
	_ = first.raw.Close()
	select {
	case <-second.Done():
	case <-time.After(patience):
		t.Fatal("a connection outlives its tunnel")
	}
	eventually(t, "no tunnel", func() bool { return len(d.door.Tunnels()) == 0 })
	if n := d.door.sites.(*counted).attached.Load(); n != 0 {
		t.Errorf("%d registrations, want none", n)
	}
}

func TestARevokedTokenEndsEveryConnection(t *testing.T) {
	d := openDoorway(t, Config{})
	_, first, second := d.pair()
	d.door.Revoke("token")
	for _, a := range []*arrival{first, second} {
		select {
		case <-a.Done():
		case <-time.After(patience):
			t.Fatal("a connection outlives its token")
		}
	}
}

func TestTheLimitOfStreamsSpansAllConnections(t *testing.T) {
	d := openDoorway(t, Config{MaxStreams: 3})
	tun, first, second := d.pair()
	bulk, far := d.open(tun, first)
	d.pour(bulk, far)
	one, _ := d.open(tun, second)
	d.open(tun, second)
	if _, err := tun.OpenStream(t.Context(), protocol.StreamHeader{Kind: protocol.KindHTTP}); !errors.Is(err, tunnel.ErrTooManyStreams) {
		t.Errorf("fourth stream: %v, want %v", err, tunnel.ErrTooManyStreams)
	}
	if n := tun.Streams(); n != 3 {
		t.Errorf("%d streams are open, want 3", n)
	}
	_ = one.Close()
	_ = one.Close()
	d.open(tun, second)
	if _, err := tun.OpenStream(t.Context(), protocol.StreamHeader{Kind: protocol.KindHTTP}); !errors.Is(err, tunnel.ErrTooManyStreams) {
		t.Errorf("fourth stream: %v, want %v", err, tunnel.ErrTooManyStreams)
	}
}

func TestATokenMayHaveLessStreams(t *testing.T) {
	d := openDoorway(t, Config{MaxStreams: 3})
	d.door.tokens.(*fickle).limits = token.Limits{MaxStreams: 1}
	first := d.mustDial(hello("token"))
	if n := first.welcome.MaxStreams; n != 1 {
		t.Errorf("the agent is told of %d streams, want one", n)
	}
	tun := d.door.Tunnels()[0]
	one, _ := d.open(tun, first)
	if _, err := tun.OpenStream(t.Context(), protocol.StreamHeader{Kind: protocol.KindHTTP}); !errors.Is(err, tunnel.ErrTooManyStreams) {
		t.Errorf("second stream: %v, want %v", err, tunnel.ErrTooManyStreams)
	}
	_ = one.Close()
	d.open(tun, first)
}

// Streams of two connections may have the same number.
func TestEndsAreReportedOnTheStreamsConnection(t *testing.T) {
	d := openDoorway(t, Config{})
	tun, first, second := d.pair()
	one, far := d.open(tun, first)
	d.pour(one, far)
	other, _ := d.open(tun, second)
	if one.ID() != other.ID() {
		t.Fatalf("streams %d and %d: the test shows nothing", one.ID(), other.ID())
	}
	end := protocol.StreamEnd{Stream: other.ID(), Delivered: 7, Clean: true}
	if err := protocol.WriteMessage(second.Control(), protocol.TypeStreamEnd, end.Encode()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if n, ok := other.Delivered(ctx); !ok || n != 7 {
		t.Errorf("%d bytes were delivered (%v), want 7", n, ok)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if n, ok := one.Delivered(ctx); ok {
		t.Errorf("the other stream of that number was told %d", n)
	}
}

func TestASilentConnectionIsAvoidedAndThenClosed(t *testing.T) {
	d := openDoorway(t, Config{SuspectAfter: 300 * time.Millisecond, DeadAfter: 1500 * time.Millisecond})
	tun, first, second := d.pair()
	done := make(chan struct{})
	var beating sync.WaitGroup
	defer beating.Wait()
	defer close(done)
	beating.Go(func() {
		for seq := uint64(1); ; seq++ {
			_ = protocol.WriteMessage(first.Control(), protocol.TypeBeat, protocol.AppendBeat(seq))
			select {
			case <-done:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	bulk, far := d.open(tun, first)
	d.pour(bulk, far)
	kept, _ := d.open(tun, second)
	joined := (*tun.carriers.Load())[1]
	eventually(t, "the connection is suspect", joined.silent)
	if tun.choose() == joined {
		t.Error("a stream would be opened on a connection that is silent")
	}
	_ = bulk.Close()
	if !behind(kept) {
		t.Error("a stream on a connection that is silent is used again")
	}
	select {
	case <-second.Done():
	case <-time.After(patience):
		t.Error("a silent connection stays")
	}
	eventually(t, "one connection", func() bool { return tun.Connections() == 1 })
	if isClosed(first.Done()) {
		t.Error("the tunnel ended with it")
	}
}
