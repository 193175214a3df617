package tlsmux

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
)

// acceptOne runs Accept with admit on one connection and returns its error.
func acceptOne(t *testing.T, admit tunnel.Admit) (client net.Conn, clientTLS *tls.Config, result <-chan error) {
	t.Helper()
	client, server := rawPair(t)
	serverTLS, clientTLS := tlsConfigs(t)
	done := make(chan error, 1)
	go func() {
		s, _, _, err := Accept(context.Background(), tls.Server(server, serverTLS), admit, Options{})
		done <- err
		if err == nil {
			<-s.Done() // the agent closes
			s.Close()
		}
	}()
	return client, clientTLS, done
}

func TestARejectReachesTheAgent(t *testing.T) {
	want := &protocol.Reject{Code: protocol.CodeTokenExpired, Reason: "expired yesterday", RetryAfterMillis: 5}
	client, clientTLS, result := acceptOne(t, func(context.Context, *protocol.Hello, net.Addr) (*protocol.Welcome, error) {
		return nil, want
	})
	_, _, err := Dial(t.Context(), client, clientTLS, &protocol.Hello{Token: strings.Repeat("x", 4000)}, Options{})
	var got *protocol.Reject
	if !errors.As(err, &got) || *got != *want {
		t.Errorf("dial = %v, want the edge's reject", err)
	}
	if err := <-result; !errors.As(err, &got) {
		t.Errorf("accept = %v, want the reject", err)
	}
}

func TestAdmissionsOtherErrorsStayInside(t *testing.T) {
	secret := errors.New("database password is hunter2")
	client, clientTLS, result := acceptOne(t, func(context.Context, *protocol.Hello, net.Addr) (*protocol.Welcome, error) {
		return nil, secret
	})
	_, _, err := Dial(t.Context(), client, clientTLS, &protocol.Hello{}, Options{})
	var got *protocol.Reject
	if !errors.As(err, &got) || got.Code != protocol.CodeInternal || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("dial = %v, want code internal without the reason", err)
	}
	if err := <-result; !errors.Is(err, secret) {
		t.Errorf("accept = %v, want admission's error", err)
	}
}

func TestTheEdgeHearsTheWholeHello(t *testing.T) {
	want := protocol.Hello{Token: "t", Instance: "i", Hosts: []string{"a.example"}, Ready: true}
	client, clientTLS, result := acceptOne(t, func(ctx context.Context, hello *protocol.Hello, remote net.Addr) (*protocol.Welcome, error) {
		if hello.Token != want.Token || hello.Hosts[0] != want.Hosts[0] || remote == nil {
			t.Errorf("hello = %+v from %v", hello, remote)
		}
		if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) > protocol.HelloTimeout {
			t.Errorf("admission has no deadline")
		}
		return &protocol.Welcome{Tunnel: "t9", MaxStreams: 7}, nil
	})
	agent, welcome, err := Dial(t.Context(), client, clientTLS, &want, Options{})
	if err != nil || welcome.Tunnel != "t9" || welcome.MaxStreams != 7 {
		t.Fatalf("dial = %+v, %v", welcome, err)
	}
	if err := <-result; err != nil {
		t.Errorf("accept: %v", err)
	}
	agent.Close()
}

// TestC12GarbageBeforeAuthentication: row C12 of the fault list.
func TestC12GarbageBeforeAuthentication(t *testing.T) {
	never := func(context.Context, *protocol.Hello, net.Addr) (*protocol.Welcome, error) {
		t.Error("admission was asked")
		return nil, errors.New("no")
	}
	huge := append([]byte{byte(protocol.TypeHello), 0xff, 0xff, 0xff}, bytes.Repeat([]byte{'x'}, 1<<20)...)
	for name, say := range map[string][]byte{
		"wrong type":  {byte(protocol.TypeReady), 0, 0, 2, '{', '}'},
		"not JSON":    {byte(protocol.TypeHello), 0, 0, 2, 'h', 'i'},
		"too large":   huge,
		"random":      bytes.Repeat([]byte{0xd5}, 64<<10),
		"yamux frame": header{kind: typeWindow, flags: flagSYN, id: 1}.append(nil),
	} {
		t.Run(name, func(t *testing.T) {
			client, clientTLS, result := acceptOne(t, never)
			clientTLS.NextProtos = []string{protocol.ALPN}
			conn := tls.Client(client, clientTLS)
			go conn.Write(say)
			typ, payload, err := protocol.ReadMessage(conn, protocol.MaxMessage)
			reject := new(protocol.Reject)
			if err == nil && (typ != protocol.TypeReject || protocol.Decode(payload, reject) != nil || reject.Code != protocol.CodeBadHello) {
				t.Errorf("answer = %d %s, want a reject with bad_hello", typ, payload)
			}
			io.Copy(io.Discard, conn)
			conn.Close()
			if err := <-result; err == nil {
				t.Error("accepted")
			}
		})
	}
}

func TestASlowHelloIsCutOff(t *testing.T) {
	client, clientTLS, result := acceptOne(t, welcomeAll)
	clientTLS.NextProtos = []string{protocol.ALPN}
	conn := tls.Client(client, clientTLS)
	if err := conn.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	conn.Write([]byte{byte(protocol.TypeHello)})
	err := <-result
	if took := time.Since(start); err == nil || took > protocol.HelloTimeout+time.Second {
		t.Errorf("accept = %v after %v, want an error within %v", err, took, protocol.HelloTimeout)
	}
}

func TestOldTLSAndOtherProtocolsAreRefused(t *testing.T) {
	for name, change := range map[string]func(*tls.Config){
		"TLS 1.2": func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12; c.NextProtos = []string{protocol.ALPN} },
		"no ALPN": func(c *tls.Config) { c.NextProtos = nil },
	} {
		t.Run(name, func(t *testing.T) {
			client, clientTLS, result := acceptOne(t, welcomeAll)
			change(clientTLS)
			conn := tls.Client(client, clientTLS)
			_ = conn.HandshakeContext(t.Context())
			if err := <-result; err == nil {
				t.Error("accepted")
			}
		})
	}
}

func TestDialGivesUpWithItsContext(t *testing.T) {
	client, _ := rawPair(t) // nobody answers
	_, clientTLS := tlsConfigs(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := Dial(ctx, client, clientTLS, &protocol.Hello{}, Options{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dial = %v, want the context's error", err)
	}
	if _, err := client.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the connection is still open")
	}
}
