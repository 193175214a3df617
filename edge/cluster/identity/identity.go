// Package identity says who an edge is to other edges: the network's own
// certificate authority, the node certificate of each edge, and how a newcomer
// gets one.
//
// Everything between edges is mutual TLS with these certificates, and rows on the
// bus are signed with the key of one. The authority's key lives in the network's
// store, so that every member can admit a newcomer.
package identity

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

const (
	caLife    = 20 * 365 * 24 * time.Hour
	nodeLife  = 365 * 24 * time.Hour
	clockSkew = 24 * time.Hour

	// serverName is in every node certificate, for those who verify by name.
	serverName = "edge.wormhole.internal"
)

// CA is the authority over node certificates.
type CA struct {
	cert *x509.Certificate
	key  ed25519.PrivateKey
}

// NewCA makes the authority of a network.
func NewCA(network string) (*CA, error) {
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{Organization: []string{"Wormhole"}, CommonName: "edges of " + network},
		NotBefore:    now.Add(-clockSkew), NotAfter: now.Add(caLife),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &CA{cert: cert, key: key}, err
}

// ParseCA reads what PEM wrote.
func ParseCA(text []byte) (*CA, error) {
	cert, key, err := parsePair(text)
	if err != nil {
		return nil, fmt.Errorf("authority of edges: %w", err)
	}
	if !cert.IsCA {
		return nil, errors.New("authority of edges: the certificate is not that of an authority")
	}
	return &CA{cert: cert, key: key}, nil
}

// PEM is the authority with its private key.
func (ca *CA) PEM() ([]byte, error) { return pairPEM(ca.cert, ca.key) }

// Certificate is the authority's certificate, DER.
func (ca *CA) Certificate() []byte { return ca.cert.Raw }

// Issue signs a certificate for the node's key.
func (ca *CA) Issue(node string, key ed25519.PublicKey) ([]byte, error) {
	if !ValidNode(node) || len(key) != ed25519.PublicKeySize {
		return nil, errors.New("not a node's id and key")
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{Organization: []string{"Wormhole"}, CommonName: node},
		DNSNames:     []string{serverName},
		NotBefore:    now.Add(-clockSkew), NotAfter: now.Add(nodeLife),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	return x509.CreateCertificate(rand.Reader, template, ca.cert, key, ca.key)
}

// Fingerprint is the SHA-256 of an authority's certificate in hex.
func Fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// ValidNode reports whether s has the form of a node's id: 16 hexadecimal digits.
func ValidNode(s string) bool {
	if len(s) != 16 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// Identity is one edge's certificate and key. It is not changed after it was made,
// and may be used concurrently.
type Identity struct {
	node string
	key  ed25519.PrivateKey
	cert *x509.Certificate
	ca   *x509.Certificate
	pool *x509.CertPool
}

// New puts an identity together from a certificate that an authority issued.
func New(key ed25519.PrivateKey, cert, ca []byte) (*Identity, error) {
	id := &Identity{key: key, pool: x509.NewCertPool()}
	var err error
	if id.cert, err = x509.ParseCertificate(cert); err != nil {
		return nil, fmt.Errorf("node certificate: %w", err)
	}
	if id.ca, err = x509.ParseCertificate(ca); err != nil {
		return nil, fmt.Errorf("authority of edges: %w", err)
	}
	public, ok := id.cert.PublicKey.(ed25519.PublicKey)
	if !ok || !public.Equal(key.Public()) {
		return nil, errors.New("node certificate: it is for another key")
	}
	id.pool.AddCert(id.ca)
	id.node, _, err = id.Verify(cert)
	return id, err
}

// Node is the edge's id.
func (id *Identity) Node() string { return id.node }

// Certificate is the node certificate, DER; Authority that of who issued it.
func (id *Identity) Certificate() []byte { return id.cert.Raw }
func (id *Identity) Authority() []byte   { return id.ca.Raw }

// Public is the node's key for others to verify with.
func (id *Identity) Public() ed25519.PublicKey { return id.key.Public().(ed25519.PublicKey) }

// Sign signs text with the node's key.
func (id *Identity) Sign(text []byte) []byte { return ed25519.Sign(id.key, text) }

// Old reports whether the certificate should be renewed.
func (id *Identity) Old(now time.Time) bool { return now.After(id.cert.NotAfter.Add(-nodeLife / 2)) }

// Renewed is the same edge with a new certificate.
func (id *Identity) Renewed(ca *CA) (*Identity, error) {
	cert, err := ca.Issue(id.node, id.Public())
	if err != nil {
		return nil, err
	}
	return New(id.key, cert, ca.cert.Raw)
}

// Verify returns the node and key of a node certificate of this network.
func (id *Identity) Verify(der []byte) (node string, key ed25519.PublicKey, err error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return "", nil, err
	}
	return id.verify(cert)
}

func (id *Identity) verify(cert *x509.Certificate) (string, ed25519.PublicKey, error) {
	_, err := cert.Verify(x509.VerifyOptions{
		Roots: id.pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return "", nil, fmt.Errorf("not a certificate of this network's edges: %w", err)
	}
	key, ok := cert.PublicKey.(ed25519.PublicKey)
	if !ok || !ValidNode(cert.Subject.CommonName) {
		return "", nil, errors.New("not a node certificate")
	}
	return cert.Subject.CommonName, key, nil
}

// Peer returns the node at the other end of a connection made with one of the
// configurations below.
func (id *Identity) Peer(state tls.ConnectionState) (string, error) {
	if len(state.PeerCertificates) == 0 {
		return "", errors.New("the peer showed no certificate")
	}
	node, _, err := id.verify(state.PeerCertificates[0])
	return node, err
}

// Server is for accepting edges that speak alpn. allow may refuse a node that is
// known no more; nil admits every certificate of the network.
func (id *Identity) Server(alpn string, allow func(node string) error) *tls.Config {
	c := id.base(alpn)
	c.ClientAuth = tls.RequireAnyClientCert
	c.VerifyConnection = id.check("", allow)
	c.SessionTicketsDisabled = true
	return c
}

// Client is for dialling the edge node, any edge of the network if it is empty.
func (id *Identity) Client(alpn, node string) *tls.Config {
	c := id.base(alpn)
	c.ServerName = serverName
	// The certificate names a node, not the address it was dialled at.
	c.InsecureSkipVerify = true
	c.VerifyConnection = id.check(node, nil)
	return c
}

// Routes is for a mesh in which everybody dials and accepts.
func (id *Identity) Routes(allow func(node string) error) *tls.Config {
	c := id.base("")
	c.ServerName = serverName
	c.RootCAs, c.ClientCAs = id.pool, id.pool
	c.ClientAuth = tls.RequireAndVerifyClientCert
	c.VerifyConnection = id.check("", allow)
	return c
}

func (id *Identity) base(alpn string) *tls.Config {
	c := &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{{Certificate: [][]byte{id.cert.Raw, id.ca.Raw}, PrivateKey: id.key, Leaf: id.cert}},
	}
	if alpn != "" {
		c.NextProtos = []string{alpn}
	}
	return c
}

func (id *Identity) check(want string, allow func(string) error) func(tls.ConnectionState) error {
	return func(state tls.ConnectionState) error {
		node, err := id.Peer(state)
		if err != nil {
			return err
		}
		if want != "" && node != want {
			return fmt.Errorf("the edge there is %s, not %s", node, want)
		}
		if allow != nil {
			return allow(node)
		}
		return nil
	}
}

// Files of an identity's directory.
const (
	nodeFile = "node.pem" // certificate and key, 0600
	caFile   = "edges-ca.pem"
)

// Load reads the identity in dir; fs.ErrNotExist if there is none.
func Load(dir string) (*Identity, error) {
	pair, err := os.ReadFile(filepath.Join(dir, nodeFile))
	if err != nil {
		return nil, err
	}
	cert, key, err := parsePair(pair)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, nodeFile), err)
	}
	text, err := os.ReadFile(filepath.Join(dir, caFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is missing", filepath.Join(dir, caFile))
	} else if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s is damaged", filepath.Join(dir, caFile))
	}
	return New(key, cert.Raw, block.Bytes)
}

// Save writes the identity to dir, which must exist.
func (id *Identity) Save(dir string) error {
	authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: id.ca.Raw})
	if err := replace(filepath.Join(dir, caFile), authority, 0o644); err != nil {
		return err
	}
	pair, err := pairPEM(id.cert, id.key)
	if err != nil {
		return err
	}
	// Last, since its presence says that there is an identity.
	return replace(filepath.Join(dir, nodeFile), pair, 0o600)
}

func replace(path string, text []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func pairPEM(cert *x509.Certificate, key ed25519.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = errors.Join(
		pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}),
		pem.Encode(&b, &pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	return b.Bytes(), err
}

func parsePair(text []byte) (cert *x509.Certificate, key ed25519.PrivateKey, err error) {
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		switch block.Type {
		case "CERTIFICATE":
			if cert, err = x509.ParseCertificate(block.Bytes); err != nil {
				return nil, nil, err
			}
		case "PRIVATE KEY":
			any, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return nil, nil, err
			}
			var ok bool
			if key, ok = any.(ed25519.PrivateKey); !ok {
				return nil, nil, fmt.Errorf("want an Ed25519 key, got %T", any)
			}
		}
	}
	if cert == nil || key == nil {
		return nil, nil, errors.New("want a certificate and a private key")
	}
	if public, ok := cert.PublicKey.(ed25519.PublicKey); !ok || !public.Equal(key.Public()) {
		return nil, nil, errors.New("certificate and key do not belong together")
	}
	return cert, key, nil
}

func serial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:])  // never fails
	b[0] = b[0]&0x7f | 0x40 // positive and never short (RFC 5280, section 4.1.2.2)
	return new(big.Int).SetBytes(b[:])
}
