package certs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"sync"
	"time"
)

// certRecord is a certificate in the cache.
type certRecord struct {
	Fence uint64 `json:"fence"`  // of the lease under which it was ordered
	Sum   string `json:"sha256"` // of Fence and PEM, in hexadecimal
	PEM   string `json:"pem"`    // key, then chain, leaf first
}

func (r *certRecord) sum() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d\n%s", r.Fence, r.PEM))
	return hex.EncodeToString(sum[:])
}

func encodeCert(cert *tls.Certificate, fence uint64) ([]byte, error) {
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	_ = pem.Encode(&text, &pem.Block{Type: "PRIVATE KEY", Bytes: key}) // a buffer never fails
	for _, der := range cert.Certificate {
		_ = pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	rec := certRecord{Fence: fence, PEM: text.String()}
	rec.Sum = rec.sum()
	return json.Marshal(rec)
}

// decodeCert checks an entry as a whole: its sum, that key and leaf belong
// together, and that the leaf is for host. Every error is ErrDamaged. Age is not
// looked at.
func decodeCert(value []byte, host string, chains *interned) (*tls.Certificate, uint64, error) {
	damaged := func(why string) (*tls.Certificate, uint64, error) {
		return nil, 0, fmt.Errorf("%w: certificate of %s: %s", ErrDamaged, host, why)
	}
	var rec certRecord
	if err := json.Unmarshal(value, &rec); err != nil {
		return damaged("it is not JSON")
	}
	if rec.Sum != rec.sum() {
		return damaged("its sum is wrong")
	}
	cert := new(tls.Certificate)
	for rest := []byte(rec.PEM); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		switch {
		case block.Type != "PRIVATE KEY":
			der := block.Bytes
			if len(cert.Certificate) > 0 {
				der = chains.of(der)
			}
			cert.Certificate = append(cert.Certificate, der)
		default:
			key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return damaged("its key cannot be read")
			}
			cert.PrivateKey = key
		}
	}
	if len(cert.Certificate) == 0 {
		return damaged("it holds no certificate")
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		return damaged("its leaf cannot be read")
	}
	key, ok := cert.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(leaf.PublicKey) {
		return damaged("key and leaf do not belong together")
	}
	if leaf.VerifyHostname(host) != nil {
		return damaged("it is for another name")
	}
	cert.Leaf = leaf
	return cert, rec.Fence, nil
}

// interned keeps one copy of each of the few intermediate certificates that
// thousands of chains end with.
type interned struct {
	mu  sync.Mutex // guards all
	all map[string][]byte
}

func (s *interned) of(der []byte) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if same, ok := s.all[string(der)]; ok {
		return same
	}
	const most = 64 // a CA that issues from more gains nothing here
	if s.all == nil || len(s.all) >= most {
		s.all = make(map[string][]byte)
	}
	s.all[string(der)] = der
	return der
}

// hostRecord is what all edges know of the orders for one host: the lease, and how
// the last ones ended. It stays when the lease is given back, so that Fence only
// ever grows.
type hostRecord struct {
	Fence  uint64 `json:"fence"`            // counts the leases
	Holder string `json:"holder,omitempty"` // who orders now
	Beat   uint64 `json:"beat,omitempty"`   // counts up while the holder lives

	Tries    []int64 `json:"tries,omitempty"`    // begun since the last success, Unix seconds, of the last hour
	Failures int     `json:"failures,omitempty"` // since the last success
	Wrong    int     `json:"wrong,omitempty"`    // of these, challenges that the CA did not find answered
	Error    string  `json:"error,omitempty"`    // of the last failure
	Next     int64   `json:"next,omitempty"`     // no try before, Unix seconds
	Issued   []int64 `json:"issued,omitempty"`   // of the last week, Unix seconds
}

func decodeHost(value []byte, host string) (rec hostRecord, err error) {
	if value == nil {
		return rec, nil
	}
	if err := json.Unmarshal(value, &rec); err != nil {
		return rec, fmt.Errorf("%w: orders for %s: %w", ErrDamaged, host, err)
	}
	return rec, nil
}

// within returns the times, in Unix seconds, that are younger than age.
func within(times []int64, age time.Duration, now time.Time) []int64 {
	var young []int64
	for _, t := range times {
		if now.Sub(time.Unix(t, 0)) < age {
			young = append(young, t)
		}
	}
	return young
}
