package tlsmux

import (
	"crypto/tls"
	"errors"
	"io"
	"runtime"
	"testing"
	"time"

	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
)

// hostile returns an edge's session and, as its agent, a TLS connection that has
// said hello and opened the control stream, and may write any frames it likes.
func hostile(t *testing.T, opt Options) (conn *tls.Conn, edge tunnel.Session) {
	t.Helper()
	client, server := rawPair(t)
	serverTLS, clientTLS := tlsConfigs(t)
	accepted := make(chan tunnel.Session, 1)
	go func() {
		s, _, _, err := Accept(t.Context(), tls.Server(server, serverTLS), welcomeAll, opt)
		if err != nil {
			t.Errorf("accept: %v", err)
		}
		accepted <- s
	}()
	clientTLS.NextProtos = []string{protocol.ALPN}
	conn = tls.Client(client, clientTLS)
	if _, err := tunnel.Greet(conn, &protocol.Hello{Token: "x"}); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(header{kind: typeWindow, flags: flagSYN, id: 1}.append(nil)); err != nil {
		t.Fatal(err)
	}
	edge = <-accepted
	if edge == nil {
		t.FailNow()
	}
	t.Cleanup(func() { edge.Close(); conn.Close() })
	return conn, edge
}

// TestC7HostileAgentLosesItsSession: row C7 of the fault list.
func TestC7HostileAgentLosesItsSession(t *testing.T) {
	data := func(id uint32, flags uint16, body int) []byte {
		return append(header{kind: typeData, id: id, flags: flags, length: uint32(body)}.append(nil), make([]byte, body)...)
	}
	syn := func(id uint32) []byte { return header{kind: typeWindow, flags: flagSYN, id: id}.append(nil) }
	many := func(frame []byte) []byte {
		var b []byte
		for range 1000 {
			b = append(b, frame...)
		}
		return b
	}
	var next uint32 = 1
	for _, attack := range []struct {
		name string
		want error // what the session ends with
		opt  Options
		once []byte // written first
		loop func() []byte
	}{
		{name: "window overrun", want: errWindow, loop: func() []byte { return data(1, 0, 32<<10) }},
		{name: "window overrun by one frame", want: errWindow, loop: func() []byte { return data(1, 0, initialWindow+1) }},
		{name: "duplicate id", want: errDuplicate, loop: func() []byte { return syn(1) }},
		{name: "an id of the edge's", want: errStreamID, loop: func() []byte { return syn(2) }},
		{name: "one-byte frames", want: errTiny, once: nil, loop: func() []byte { return many(data(1, 0, 1)) }},
		{name: "empty frames", want: errTiny, loop: func() []byte { return many(data(1, 0, 0)) }},
		{name: "frames of no stream", want: errTiny, loop: func() []byte { return many(data(77, 0, 100)) }},
		{name: "empty window updates", want: errTiny, loop: func() []byte { return many(header{kind: typeWindow, id: 1}.append(nil)) }},
		{name: "window without end", want: errWindow, loop: func() []byte {
			return many(header{kind: typeWindow, id: 1, length: 1<<32 - 1}.append(nil))
		}},
		{name: "ping flood", want: errPings, loop: func() []byte { return many(header{kind: typePing, flags: flagSYN}.append(nil)) }},
		{name: "pong flood", want: errTiny, loop: func() []byte { return many(header{kind: typePing, flags: flagACK}.append(nil)) }},
		{name: "stream flood", want: errPeerStreams, loop: func() []byte { next += 2; return syn(next) }},
		{name: "streams full of data", want: errPeerStreams, loop: func() []byte { next += 2; return data(next, flagSYN, 32<<10) }},
		{name: "flood of streams nobody wants", want: errPeerStreams, opt: Options{RefuseStreams: true}, loop: func() []byte { next += 2; return syn(next) }},
		{name: "unwanted streams full of data", want: errPeerStreams, opt: Options{RefuseStreams: true}, loop: func() []byte { next += 2; return data(next, flagSYN, 1<<10) }},
		{name: "data after the end", want: errAfterEnd, once: data(1, flagFIN, 10), loop: func() []byte { return data(1, 0, 10) }},
		{name: "two ends", want: errAfterEnd, once: data(1, flagFIN, 10), loop: func() []byte { return data(1, flagFIN, 0) }},
		{name: "wrong version", want: errFrame, loop: func() []byte { return header{version: 1}.append(nil) }},
		{name: "unknown type", want: errFrame, loop: func() []byte { return header{kind: 9}.append(nil) }},
		{name: "go away", want: errGoAway, loop: func() []byte { return header{kind: typeGoAway}.append(nil) }},
	} {
		try := func(t *testing.T) (took time.Duration) {
			conn, edge := hostile(t, attack.opt)
			next = 1
			drained := make(chan struct{})
			go func() {
				defer close(drained)
				_, _ = io.Copy(io.Discard, conn)
			}()
			before := heap()
			start, giveUp := time.Now(), time.After(15*time.Second)
			_, err := conn.Write(attack.once)
			for err == nil {
				_, err = conn.Write(attack.loop())
				select {
				case <-edge.Done():
					err = edge.Err()
				case <-giveUp:
					t.Fatal("the session is still there")
				default:
				}
			}
			select {
			case <-edge.Done():
			case <-giveUp:
				t.Fatal("the session is still there")
			}
			took = time.Since(start)
			if !errors.Is(edge.Err(), attack.want) {
				t.Errorf("err = %v, want %v", edge.Err(), attack.want)
			}
			if grown := int64(heap()) - int64(before); grown > 8<<20 {
				t.Errorf("heap grew by %d KiB", grown>>10)
			}
			conn.Close()
			<-drained
			return took
		}
		t.Run(attack.name, func(t *testing.T) {
			// The attack itself keeps this machine busy; one session that ends in time shows
			// that it is not the edge that is late. Its other promises hold each time.
			took := try(t)
			for tries := 2; tries > 0 && took > time.Second; tries-- {
				took = min(took, try(t))
			}
			if took > time.Second {
				t.Errorf("the soonest of three sessions ended after %v, want at most a second", took)
			}
		})
	}
}

func TestAPeerThatReadsNothingCannotMakeTheEdgeHoldMuch(t *testing.T) {
	conn, edge := hostile(t, Options{})
	before := heap()
	st, err := edge.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// The peer grants everything and reads nothing.
	if _, err := conn.Write(header{kind: typeWindow, flags: flagACK, id: 2, length: 1 << 31}.append(nil)); err != nil {
		t.Fatal(err)
	}
	st.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	chunk := make([]byte, 64<<10)
	for err == nil {
		_, err = st.Write(chunk)
	}
	if grown := int64(heap()) - int64(before); grown > 1<<20 {
		t.Errorf("heap grew by %d KiB for what a peer does not read", grown>>10)
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
