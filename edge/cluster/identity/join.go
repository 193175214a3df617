package identity

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// ALPNJoin is what a newcomer offers on a member's public port.
const ALPNJoin = "wormhole-join/1"

// Sizes of the two messages, in bytes, and the time for all of it.
const (
	maxRequest  = 16 << 10
	maxGrant    = 4 << 20
	joinTimeout = 10 * time.Second
)

// Request is what a newcomer says: one JSON object.
type Request struct {
	Token  string            `json:"token"`
	Node   string            `json:"node"`
	Region string            `json:"region,omitempty"`
	Key    ed25519.PublicKey `json:"key"`
}

// Grant is the answer: what makes the newcomer a member.
type Grant struct {
	// Refused says why there is nothing else in the answer.
	Refused string `json:"refused,omitempty"`

	Network     string `json:"network"`
	Certificate []byte `json:"certificate"`
	Authority   []byte `json:"authority"`
	// Members are the edges there are, as the members bucket of the store has them,
	// so that the newcomer finds store and mesh.
	Members []json.RawMessage `json:"members"`
	// Store says where the network's store is, if it was ever moved.
	Store json.RawMessage `json:"store,omitempty"`
	// Files are further things the newcomer should have, by name.
	Files map[string][]byte `json:"files,omitempty"`
}

// Join asks the member at addr, whose authority must have the fingerprint pin, to
// make node one of the network's edges. The key that the certificate is for is
// made here and leaves the machine never.
func Join(ctx context.Context, addr, pin string, req Request) (*Identity, *Grant, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	req.Key = public
	dialer := tls.Dialer{Config: &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{ALPNJoin},
		ServerName: serverName,
		// Nothing of the member is known but the fingerprint that came with the token.
		InsecureSkipVerify: true,
		VerifyConnection:   func(state tls.ConnectionState) error { return checkPin(state, pin) },
	}}
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, nil, fmt.Errorf("join at %s: %w", addr, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := json.NewEncoder(conn).Encode(req); err != nil {
		return nil, nil, fmt.Errorf("join at %s: %w", addr, err)
	}
	var grant Grant
	if err := json.NewDecoder(io.LimitReader(conn, maxGrant)).Decode(&grant); err != nil {
		return nil, nil, fmt.Errorf("join at %s: %w", addr, err)
	}
	if grant.Refused != "" {
		return nil, nil, fmt.Errorf("join at %s: refused: %s", addr, grant.Refused)
	}
	if Fingerprint(grant.Authority) != pin {
		return nil, nil, fmt.Errorf("join at %s: the member speaks for another authority than the token", addr)
	}
	id, err := New(key, grant.Certificate, grant.Authority)
	if err != nil {
		return nil, nil, fmt.Errorf("join at %s: %w", addr, err)
	}
	if id.Node() != req.Node {
		return nil, nil, fmt.Errorf("join at %s: the certificate is for %s", addr, id.Node())
	}
	return id, &grant, nil
}

// checkPin accepts a chain that ends in the authority with the fingerprint pin.
func checkPin(state tls.ConnectionState, pin string) error {
	chain := state.PeerCertificates
	if len(chain) != 2 || Fingerprint(chain[1].Raw) != pin {
		return errors.New("the edge there does not belong to the network of the join token")
	}
	roots := x509.NewCertPool()
	roots.AddCert(chain[1])
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, DNSName: serverName})
	return err
}

// JoinServer is the TLS configuration for newcomers: they have no certificate yet.
func (id *Identity) JoinServer() *tls.Config {
	c := id.base(ALPNJoin)
	c.SessionTicketsDisabled = true
	return c
}

// ServeJoin answers one newcomer with what decide says, and closes conn. The text
// of an error from decide is sent to the newcomer.
func ServeJoin(ctx context.Context, conn net.Conn, decide func(context.Context, Request) (*Grant, error)) error {
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var req Request
	if err := json.NewDecoder(io.LimitReader(conn, maxRequest)).Decode(&req); err != nil {
		return fmt.Errorf("read join request: %w", err)
	}
	grant, err := decide(ctx, req)
	if err != nil {
		grant = &Grant{Refused: err.Error()}
	}
	return errors.Join(err, json.NewEncoder(conn).Encode(grant))
}
