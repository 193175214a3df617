package main

import (
	"crypto/x509"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/crypto/x509roots/fallback/bundle"
)

func TestEveryBundledRootIsUnderstood(t *testing.T) {
	n := 0
	for root := range bundle.Roots() {
		n++
		if _, err := x509.ParseCertificate(root.Certificate); err != nil {
			t.Error(err)
		}
	}
	if n < 100 {
		t.Errorf("%d roots, want those of a trust store", n)
	}
}

// TestBundledRootsServeWhereTheSystemHasNone plays a system without roots, in a process
// of its own because roots are loaded once.
func TestBundledRootsServeWhereTheSystemHasNone(t *testing.T) {
	if os.Getenv("WORMHOLE_TEST_NO_ROOTS") != "" {
		provideRoots()
		pool, err := x509.SystemCertPool()
		if err != nil || pool.Equal(x509.NewCertPool()) {
			t.Fatalf("no roots: %v", err)
		}
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "WORMHOLE_TEST_NO_ROOTS=1", "SSL_CERT_FILE=/nonexistent", "SSL_CERT_DIR=/nonexistent")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "PASS") {
		t.Fatalf("%v\n%s", err, out)
	}
}
