package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"sync"
	"time"

	"wormhole/shared/hostname"
)

const (
	caLife   = 10 * 365 * 24 * time.Hour
	leafLife = 7 * 24 * time.Hour
	// clockSkew is how far certificates are dated back, for clients whose clock is
	// behind.
	clockSkew = time.Hour
)

// InternalConfig says for what an Internal CA issues.
type InternalConfig struct {
	// Dir keeps the CA: ca-key.pem with its key and certificate (0600), and ca.pem
	// with the certificate alone, for clients to trust.
	Dir string
	// Allow says under which pattern a canonical host may have a certificate: the
	// host itself or the wildcard above it. It is asked in every handshake and must
	// not block.
	Allow func(host string) (pattern string, ok bool)
	// Default is the name for clients that send none; empty refuses them.
	Default string
	// MaxLeaves bounds the certificates kept in memory (default 10,000).
	MaxLeaves int
	// Now is the clock (default time.Now).
	Now func() time.Time
}

// Internal is a certificate authority of the edge's own. Leaves live for a week,
// are made when first asked for, kept in memory and replaced when a third of their
// life is left.
type Internal struct {
	cfg InternalConfig
	log *slog.Logger
	ca  *authority

	mu     sync.Mutex // guards leaves
	leaves map[string]*leaf
}

// leaf is one certificate, issued by the first handshake that needs it while
// others for the same name wait.
type leaf struct {
	issue sync.Once
	cert  *tls.Certificate
	err   error
	renew time.Time // when to replace it
}

// NewInternal opens the CA in cfg.Dir, or makes it if there is none.
func NewInternal(cfg InternalConfig, log *slog.Logger) (*Internal, error) {
	if cfg.Dir == "" || cfg.Allow == nil {
		return nil, errors.New("internal CA: a directory and a policy are required")
	}
	if cfg.MaxLeaves == 0 {
		cfg.MaxLeaves = 10_000
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	ca, made, err := openAuthority(cfg.Dir, cfg.Now())
	if err != nil {
		return nil, fmt.Errorf("internal CA: %w", err)
	}
	if made {
		log.Info("internal ca made", "path", ca.certPath)
	}
	return &Internal{cfg: cfg, log: log, ca: ca, leaves: make(map[string]*leaf)}, nil
}

// CAPath is the file with the CA's certificate in PEM.
func (c *Internal) CAPath() string { return c.ca.certPath }

// CA is the CA's certificate.
func (c *Internal) CA() *x509.Certificate { return c.ca.cert }

// GetCertificate implements Certificates.
func (c *Internal) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := hello.ServerName
	if name == "" {
		name = c.cfg.Default
	}
	host, err := hostname.Canonical(name)
	if err != nil {
		return nil, ErrUnknownName
	}
	pattern, ok := c.cfg.Allow(host)
	if !ok {
		return nil, ErrUnknownName
	}
	// OpenSSL and browsers do not take a wildcard over a single label, such as
	// *.localhost.
	if hostname.IsWildcard(pattern) && hostname.Parent(hostname.Parent(pattern)) == "" {
		pattern = host
	}
	l := c.leaf(pattern)
	l.issue.Do(func() {
		l.cert, l.err = c.ca.issueLeaf(pattern, c.cfg.Now())
		if l.err != nil {
			c.log.Error("internal ca cannot issue", "host", pattern, "err", l.err)
		}
	})
	return l.cert, l.err
}

// leaf returns the entry for a name, a new one if there is none or it is old.
func (c *Internal) leaf(name string) *leaf {
	now := c.cfg.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if l := c.leaves[name]; l != nil && now.Before(l.renew) {
		return l
	}
	if len(c.leaves) >= c.cfg.MaxLeaves {
		// A map yields its keys in random order, so this evicts a random leaf; to
		// make it again is cheap.
		for victim := range c.leaves {
			delete(c.leaves, victim)
			break
		}
	}
	l := &leaf{renew: now.Add(leafLife * 2 / 3)}
	c.leaves[name] = l
	return l
}

// authority is the key and certificate that sign leaves.
type authority struct {
	key      *ecdsa.PrivateKey
	cert     *x509.Certificate
	certPath string
}

func newAuthority(now time.Time) (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		// The number makes CAs of different edges differ for those who list them.
		Subject: pkix.Name{
			Organization: []string{"Wormhole"},
			CommonName:   "Wormhole internal CA " + hex.EncodeToString(serial.Bytes()[:4]),
		},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(caLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return key, der, err
}

func (a *authority) issueLeaf(name string, now time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		// A common name holds 64 bytes at most; verifiers read the SAN.
		Subject:               pkix.Name{Organization: []string{"Wormhole"}},
		DNSNames:              []string{name},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              minTime(now.Add(leafLife), a.cert.NotAfter),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: parsed}, nil
}

// newSerial returns 127 random bits, never few (RFC 5280, section 4.1.2.2 wants a
// positive number of at most 20 octets).
func newSerial() (*big.Int, error) {
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		return nil, err
	}
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b), nil
}

func minTime(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
