package edgetest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"os"
	"testing"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// Roots is a pool with the authorities in the PEM files.
func Roots(tb testing.TB, files ...string) *x509.CertPool {
	tb.Helper()
	pool := x509.NewCertPool()
	for _, file := range files {
		pem, err := os.ReadFile(file)
		if err != nil {
			tb.Fatal(err)
		}
		if !pool.AppendCertsFromPEM(pem) {
			tb.Fatalf("no certificate in %s", file)
		}
	}
	return pool
}

// clientFor asks for any host by dialling what addr returns at that moment. It
// follows no redirects and asks for no compression.
func clientFor(tb testing.TB, proto, caFile string, addr func() string) *http.Client {
	tb.Helper()
	conf := &tls.Config{RootCAs: Roots(tb, caFile), MinVersion: tls.VersionTLS12}
	stay := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if proto == "h3" {
		transport := &http3.Transport{
			TLSClientConfig: conf,
			Dial: func(ctx context.Context, _ string, tc *tls.Config, qc *quic.Config) (*quic.Conn, error) {
				return quic.DialAddr(ctx, addr(), tc, qc)
			},
		}
		tb.Cleanup(func() { _ = transport.Close() })
		return &http.Client{Transport: transport, CheckRedirect: stay}
	}
	transport := &http.Transport{
		TLSClientConfig:     conf,
		MaxIdleConnsPerHost: 256,
		DisableCompression:  true,
		Protocols:           new(http.Protocols),
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, addr())
		},
	}
	switch proto {
	case "h1":
		transport.Protocols.SetHTTP1(true)
	case "h2":
		transport.Protocols.SetHTTP2(true)
	default:
		tb.Fatalf("unknown protocol %q", proto)
	}
	tb.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, CheckRedirect: stay}
}
