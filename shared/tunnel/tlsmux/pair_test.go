package tlsmux

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

	"go.uber.org/goleak"

	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testCert makes a self-signed certificate for edge.test.
func testCert(t testing.TB) (tls.Certificate, *x509.CertPool) {
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
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// rawPair returns two ends of a TCP connection over loopback.
func rawPair(t testing.TB) (client, server *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, _ := ln.Accept()
		accepted <- c
	}()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s := <-accepted
	if s == nil {
		t.Fatal("no connection accepted")
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

// tlsConfigs returns what an edge and its agents use.
func tlsConfigs(t testing.TB) (server, client *tls.Config) {
	cert, pool := testCert(t)
	server = &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{protocol.ALPN}}
	return server, &tls.Config{RootCAs: pool, ServerName: "edge.test"}
}

func welcomeAll(context.Context, *protocol.Hello, net.Addr) (*protocol.Welcome, error) {
	return &protocol.Welcome{Tunnel: "t1", Node: "n1"}, nil
}

// pair returns the two ends of a session.
func pair(t testing.TB, agentOpt, edgeOpt Options) (agent, edge tunnel.Session) {
	t.Helper()
	client, server := rawPair(t)
	serverTLS, clientTLS := tlsConfigs(t)
	type result struct {
		s   tunnel.Session
		err error
	}
	accepted := make(chan result, 1)
	go func() {
		s, _, _, err := Accept(t.Context(), tls.Server(server, serverTLS), welcomeAll, edgeOpt)
		accepted <- result{s, err}
	}()
	agent, welcome, err := Dial(t.Context(), client, clientTLS, &protocol.Hello{Token: "x"}, agentOpt)
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	got := <-accepted
	if got.err != nil {
		t.Fatalf("accept: %v", got.err)
	}
	if welcome.Tunnel != "t1" {
		t.Fatalf("welcome = %+v", welcome)
	}
	t.Cleanup(func() { agent.Close(); got.s.Close() })
	return agent, got.s
}
