package quicmux

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"go.uber.org/goleak"

	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
	"wormhole/shared/tunnel/tunneltest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// listen starts a listener as an edge has it, and returns what agents use.
func listen(t testing.TB) (*quic.Listener, *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "edge.test"},
		DNSNames:     []string{"edge.test"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	transport := &quic.Transport{Conn: socket}
	ln, err := transport.Listen(&tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		NextProtos:   []string{protocol.ALPN},
	}, ServerConfig())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ln.Close()
		transport.Close()
		socket.Close()
	})
	return ln, &tls.Config{RootCAs: pool, ServerName: "edge.test"}
}

func welcomeAll(context.Context, *protocol.Hello, net.Addr) (*protocol.Welcome, error) {
	return &protocol.Welcome{Tunnel: "t1", Node: "n1"}, nil
}

func TestContract(t *testing.T) {
	ln, clientTLS := listen(t)
	tunneltest.Run(t, func(t testing.TB) (edge, agent tunnel.Session) {
		t.Helper()
		type result struct {
			s   tunnel.Session
			err error
		}
		accepted := make(chan result, 1)
		go func() {
			conn, err := ln.Accept(context.Background())
			if err != nil {
				accepted <- result{nil, err}
				return
			}
			s, _, _, err := Accept(context.Background(), conn, welcomeAll, Options{})
			accepted <- result{s, err}
		}()
		agent, _, err := Dial(t.Context(), ln.Addr().String(), clientTLS, &protocol.Hello{Token: "x"}, Options{})
		if err != nil {
			t.Fatalf("dial: %v", err)
		}
		got := <-accepted
		if got.err != nil {
			t.Fatalf("accept: %v", got.err)
		}
		t.Cleanup(func() { agent.Close(); got.s.Close() })
		return got.s, agent
	})
}
