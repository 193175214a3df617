package identity

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"io/fs"
	"net"
	"strings"
	"testing"
	"time"
)

const (
	node1 = "0123456789abcdef"
	node2 = "fedcba9876543210"
)

func newIdentity(t *testing.T, ca *CA, node string) *Identity {
	t.Helper()
	public, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue(node, public)
	if err != nil {
		t.Fatal(err)
	}
	id, err := New(key, cert, ca.Certificate())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func newCA(t *testing.T) *CA {
	t.Helper()
	ca, err := NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// shake performs a handshake and returns both ends' errors and what the server saw.
func shake(t *testing.T, server, client *tls.Config) (state tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	a, b := net.Pipe()
	deadline := time.Now().Add(5 * time.Second)
	_ = a.SetDeadline(deadline)
	_ = b.SetDeadline(deadline)
	here, there := tls.Server(a, server), tls.Client(b, client)
	done := make(chan error, 1)
	go func() { // ends with the deadline at the latest
		err := there.Handshake()
		if err == nil {
			_, err = there.Read(make([]byte, 1)) // in TLS 1.3 a refusal comes after the client's handshake
		}
		_ = b.Close()
		done <- err
	}()
	serverErr = here.Handshake()
	if serverErr == nil {
		_, _ = here.Write([]byte{1})
	}
	state = here.ConnectionState()
	_ = a.Close()
	return state, serverErr, <-done
}

func TestEdgesOfOneNetworkKnowEachOther(t *testing.T) {
	ca, foreign := newCA(t), newCA(t)
	one, two, stranger := newIdentity(t, ca, node1), newIdentity(t, ca, node2), newIdentity(t, foreign, node2)
	state, serverErr, clientErr := shake(t, one.Server("x/1", nil), two.Client("x/1", node1))
	if serverErr != nil || clientErr != nil {
		t.Fatal(serverErr, clientErr)
	}
	if peer, err := one.Peer(state); err != nil || peer != node2 {
		t.Errorf("the peer is %q, %v", peer, err)
	}
	if _, _, err := shake(t, one.Server("x/1", nil), two.Client("x/1", node2)); err == nil {
		t.Error("another edge than the one dialled was taken for it")
	}
	if _, err, _ := shake(t, one.Server("x/1", nil), stranger.Client("x/1", "")); err == nil {
		t.Error("an edge of another network was let in")
	}
	if _, err, _ := shake(t, one.Server("x/1", nil), &tls.Config{NextProtos: []string{"x/1"}, InsecureSkipVerify: true}); err == nil {
		t.Error("a client without a certificate was let in")
	}
	left := func(string) error { return errors.New("left") }
	if _, err, _ := shake(t, one.Server("x/1", left), two.Client("x/1", node1)); err == nil {
		t.Error("an edge that left was let in")
	}
	if _, err, _ := shake(t, one.Routes(nil), stranger.Routes(nil)); err == nil {
		t.Error("an edge of another network was let into the mesh")
	}
}

func TestAnIdentityIsKept(t *testing.T) {
	dir, ca := t.TempDir(), newCA(t)
	if _, err := Load(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("Load of nothing: %v", err)
	}
	id := newIdentity(t, ca, node1)
	if err := id.Save(dir); err != nil {
		t.Fatal(err)
	}
	again, err := Load(dir)
	if err != nil || again.Node() != node1 || !again.Public().Equal(id.Public()) {
		t.Fatalf("loaded %+v, %v", again, err)
	}
	text, err := ca.PEM()
	if err != nil {
		t.Fatal(err)
	}
	if kept, err := ParseCA(text); err != nil || Fingerprint(kept.Certificate()) != Fingerprint(ca.Certificate()) {
		t.Fatal(err)
	}
	if id.Old(time.Now()) || !id.Old(time.Now().Add(nodeLife*3/4)) {
		t.Error("wrong age for a renewal")
	}
	renewed, err := id.Renewed(ca)
	if err != nil || !renewed.Public().Equal(id.Public()) {
		t.Fatal(err)
	}
}

func TestANewcomerChecksWhomItJoins(t *testing.T) {
	ca := newCA(t)
	member := newIdentity(t, ca, node1)
	l, err := tls.Listen("tcp", "127.0.0.1:0", member.JoinServer())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // ends with the listener
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = ServeJoin(context.Background(), conn, func(_ context.Context, r Request) (*Grant, error) {
				if r.Token != "good" {
					return nil, errors.New("the token is bad")
				}
				cert, err := ca.Issue(r.Node, r.Key)
				return &Grant{Certificate: cert, Authority: ca.Certificate()}, err
			})
		}
	}()
	pin := Fingerprint(ca.Certificate())
	id, _, err := Join(t.Context(), l.Addr().String(), pin, Request{Token: "good", Node: node2})
	if err != nil || id.Node() != node2 {
		t.Fatalf("joined as %v, %v", id, err)
	}
	if _, _, err := Join(t.Context(), l.Addr().String(), pin, Request{Token: "bad", Node: node2}); err == nil || !strings.Contains(err.Error(), "the token is bad") {
		t.Errorf("a bad token: %v", err)
	}
	if _, _, err := Join(t.Context(), l.Addr().String(), Fingerprint(newCA(t).Certificate()), Request{Token: "good", Node: node2}); err == nil || !strings.Contains(err.Error(), "does not belong to the network") {
		t.Errorf("a member of another network: %v", err)
	}
}
