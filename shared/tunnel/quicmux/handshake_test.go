package quicmux

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
)

// acceptOne runs Accept with admit on the listener's next connection.
func acceptOne(ln *quic.Listener, admit tunnel.Admit) <-chan error {
	done := make(chan error, 1)
	go func() {
		conn, err := ln.Accept(context.Background())
		if err == nil {
			var s tunnel.Session
			if s, _, _, err = Accept(context.Background(), conn, admit, Options{}); err == nil {
				defer s.Close()
			}
		}
		done <- err
	}()
	return done
}

func TestARejectReachesTheAgent(t *testing.T) {
	ln, clientTLS := listen(t)
	want := &protocol.Reject{Code: protocol.CodeTokenRevoked, Reason: "revoked today"}
	result := acceptOne(ln, func(context.Context, *protocol.Hello, net.Addr) (*protocol.Welcome, error) { return nil, want })
	_, _, err := Dial(t.Context(), ln.Addr().String(), clientTLS, &protocol.Hello{}, Options{})
	var got *protocol.Reject
	if !errors.As(err, &got) || *got != *want {
		t.Errorf("dial = %v, want the edge's reject", err)
	}
	if err := <-result; !errors.As(err, &got) {
		t.Errorf("accept = %v, want the reject", err)
	}
}

func TestC12GarbageBeforeAuthentication(t *testing.T) {
	ln, clientTLS := listen(t)
	clientTLS.NextProtos = []string{protocol.ALPN}
	never := func(context.Context, *protocol.Hello, net.Addr) (*protocol.Welcome, error) {
		t.Error("admission was asked")
		return nil, errors.New("no")
	}
	for name, say := range map[string][]byte{
		"wrong type": {byte(protocol.TypeReady), 0, 0, 2, '{', '}'},
		"not JSON":   {byte(protocol.TypeHello), 0, 0, 2, 'h', 'i'},
		"too large":  append([]byte{byte(protocol.TypeHello), 0xff, 0xff, 0xff}, bytes.Repeat([]byte{'x'}, 32<<10)...),
	} {
		t.Run(name, func(t *testing.T) {
			result := acceptOne(ln, never)
			conn, err := quic.DialAddr(t.Context(), ln.Addr().String(), clientTLS, config(1))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.CloseWithError(0, "")
			st, err := conn.OpenStream()
			if err != nil {
				t.Fatal(err)
			}
			st.Write(say)
			typ, payload, err := protocol.ReadMessage(st, protocol.MaxMessage)
			reject := new(protocol.Reject)
			if err != nil || typ != protocol.TypeReject || protocol.Decode(payload, reject) != nil || reject.Code != protocol.CodeBadHello {
				t.Errorf("answer = %d %s %v, want a reject with bad_hello", typ, payload, err)
			}
			if _, err := io.Copy(io.Discard, st); err != nil {
				t.Errorf("the reject is not followed by a clean end: %v", err)
			}
			if _, err := conn.OpenStream(); err == nil {
				t.Error("a second stream was allowed")
			}
			if err := <-result; err == nil {
				t.Error("accepted")
			}
		})
	}
}

func TestASilentConnectionIsCutOff(t *testing.T) {
	ln, clientTLS := listen(t)
	clientTLS.NextProtos = []string{protocol.ALPN}
	result := acceptOne(ln, welcomeAll)
	conn, err := quic.DialAddr(t.Context(), ln.Addr().String(), clientTLS, config(1))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseWithError(0, "")
	start := time.Now()
	if err := <-result; err == nil || time.Since(start) > protocol.HelloTimeout+time.Second {
		t.Errorf("accept = %v after %v, want an error within %v", err, time.Since(start), protocol.HelloTimeout)
	}
	<-conn.Context().Done()
}

func TestDialGivesUpWithItsContext(t *testing.T) {
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}) // nobody answers
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	_, clientTLS := listen(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, _, err := Dial(ctx, socket.LocalAddr().String(), clientTLS, &protocol.Hello{}, Options{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dial = %v, want the context's error", err)
	}
}
