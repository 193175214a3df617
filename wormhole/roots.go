package main

import (
	"crypto/x509"
	"sync"

	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// provideRoots has certificates checked against the bundled roots where the system has
// none, as in an image FROM scratch. To parse the bundle takes 0.7 MiB for good, so
// that is done only there, and only if something is to be checked against public roots.
var provideRoots = sync.OnceFunc(func() {
	if system, err := x509.SystemCertPool(); err == nil && !system.Equal(x509.NewCertPool()) {
		return
	}
	x509.SetFallbackRoots(bundledRoots())
})

// bundledRoots are those of Mozilla's trust store.
func bundledRoots() *x509.CertPool {
	roots := x509.NewCertPool()
	for root := range bundle.Roots() {
		cert, err := x509.ParseCertificate(root.Certificate)
		switch {
		case err != nil: // not one of this release can fail; its test would
		case root.Constraint != nil:
			roots.AddCertWithConstraint(cert, root.Constraint)
		default:
			roots.AddCert(cert)
		}
	}
	return roots
}
