// Package certs gives TLS handshakes their certificates.
//
// A source of certificates has one method, GetCertificate, with the signature of
// tls.Config's field. Files serves key pairs that an operator looks after, Internal
// is a small CA of the edge's own for development and tests, and Chain asks several
// sources in turn. All may be called concurrently, and none does I/O or waits for a
// lock held over I/O during a handshake.
//
// A name that a source is not responsible for yields ErrUnknownName before
// anything else is looked at, so that a flood of such names costs nothing.
package certs

import (
	"crypto/tls"
	"errors"
)

// ErrUnknownName says that the source has no certificate for the name in the
// handshake and will not get one. Other errors mean that it should have had one.
var ErrUnknownName = errors.New("no certificate for this name")

// Certificates is a source of certificates.
type Certificates interface {
	// GetCertificate returns the certificate for a handshake. The result must not
	// be changed.
	GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error)
}

// Chain asks its sources in order and takes the first certificate. A source that
// fails does not keep the later ones from being asked. If none has a certificate,
// the error is the first that is not ErrUnknownName, else ErrUnknownName.
type Chain []Certificates

// GetCertificate implements Certificates.
func (c Chain) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	failure := ErrUnknownName
	for _, source := range c {
		cert, err := source.GetCertificate(hello)
		if err == nil && cert != nil {
			return cert, nil
		}
		if err != nil && errors.Is(failure, ErrUnknownName) {
			failure = err
		}
	}
	return nil, failure
}
