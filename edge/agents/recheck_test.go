package agents

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"log/slog"
	"math/big"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"wormhole/edge/balance"
	"wormhole/shared/protocol"
	"wormhole/shared/token"
	"wormhole/shared/tunnel/tlsmux"
)

// fickle verifies every token, and may then find it revoked.
type fickle struct {
	revoked atomic.Bool
	limits  token.Limits
}

func (f *fickle) Verify(raw string) (*token.Claims, error) {
	return &token.Claims{ID: raw, Hosts: []string{"app.example.com"}, Limits: f.limits, ExpiresAt: time.Now().Add(time.Hour)}, nil
}

func (f *fickle) Check(*token.Claims) error {
	if f.revoked.Load() {
		return &token.Error{Code: protocol.CodeTokenRevoked, Reason: "the token was revoked"}
	}
	return nil
}

// counted counts the registrations.
type counted struct{ attached atomic.Int32 }

func (c *counted) Attach(string, *balance.Backend) func() {
	c.attached.Add(1)
	return func() { c.attached.Add(-1) }
}

// A revocation may land between the token's verification and the moment at which
// Revoke finds the tunnel.
func TestATokenRevokedDuringAdmissionServesNothing(t *testing.T) {
	tokens, sites := &fickle{}, &counted{}
	tokens.revoked.Store(true)
	goAway := admitted(t, tokens, sites, nil)
	if goAway.Code != protocol.CodeTokenRevoked {
		t.Errorf("the agent is told %q, want %q", goAway.Code, protocol.CodeTokenRevoked)
	}
	if n := sites.attached.Load(); n != 0 {
		t.Errorf("%d registrations, want none", n)
	}
}

func TestATokenRevokedDuringItsRefreshServesNothing(t *testing.T) {
	tokens, sites := &fickle{}, &counted{}
	goAway := admitted(t, tokens, sites, func(control net.Conn) {
		tokens.revoked.Store(true)
		if err := protocol.WriteMessage(control, protocol.TypeToken, protocol.TokenRefresh{Token: "second"}); err != nil {
			t.Fatal(err)
		}
	})
	if goAway.Code != protocol.CodeTokenRevoked {
		t.Errorf("the agent is told %q, want %q", goAway.Code, protocol.CodeTokenRevoked)
	}
	if n := sites.attached.Load(); n != 0 {
		t.Errorf("%d registrations, want none", n)
	}
}

// admitted lets an agent in, calls then, and returns the GoAway that it gets.
func admitted(t *testing.T, tokens Tokens, sites Sites, then func(control net.Conn)) (goAway protocol.GoAway) {
	t.Helper()
	door, err := New(Config{Node: "n1"}, tokens, sites, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	serverTLS, clientTLS := identity(t)
	l, err := tls.Listen("tcp", "127.0.0.1:0", serverTLS)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() { // ends with the session
		defer close(served)
		conn, err := l.Accept()
		if err == nil {
			door.ServeTLS(context.Background(), conn.(*tls.Conn))
		}
	}()
	defer func() {
		_ = l.Close()
		_ = door.Close()
		<-served
	}()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	hello := &protocol.Hello{Token: "first", Instance: strings.Repeat("0", 32), Ready: true}
	session, _, err := tlsmux.Dial(t.Context(), conn, clientTLS, hello, tlsmux.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	control := session.Control()
	_ = control.SetDeadline(time.Now().Add(10 * time.Second))
	if then != nil {
		then(control)
	}
	for {
		typ, payload, err := protocol.ReadMessage(control, protocol.MaxMessage)
		if err != nil {
			t.Fatalf("no GoAway: %v", err)
		}
		if typ == protocol.TypeGoAway {
			if err := protocol.Decode(payload, &goAway); err != nil {
				t.Fatal(err)
			}
			return goAway
		}
	}
}

// identity makes an edge's certificate.
func identity(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "edge"}, DNSNames: []string{"edge.localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, NextProtos: []string{protocol.ALPN}, MinVersion: tls.VersionTLS13},
		&tls.Config{RootCAs: roots, ServerName: "edge.localhost", MinVersion: tls.VersionTLS13}
}
