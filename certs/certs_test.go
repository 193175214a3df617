package certs

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"wormhole/shared/hostname"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// below allows *.parent under the wildcard, and host itself.
func below(patterns ...string) func(string) (string, bool) {
	return func(host string) (string, bool) {
		for _, p := range patterns {
			if hostname.Match(p, host) {
				return p, true
			}
		}
		return "", false
	}
}

func newInternal(t *testing.T, cfg InternalConfig) *Internal {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	ca, err := NewInternal(cfg, discard())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// handshake completes a TLS handshake for name that trusts pool, and returns the
// certificate the server presented.
func handshake(source Certificates, name string, pool *x509.CertPool) (*x509.Certificate, error) {
	clientSide, serverSide := net.Pipe()
	defer clientSide.Close()
	go func() {
		defer serverSide.Close()
		_ = tls.Server(serverSide, &tls.Config{GetCertificate: source.GetCertificate}).Handshake()
	}()
	client := tls.Client(clientSide, &tls.Config{ServerName: name, RootCAs: pool})
	if err := client.Handshake(); err != nil {
		return nil, err
	}
	return client.ConnectionState().PeerCertificates[0], nil
}

func TestInternalIssuesWhatClientsVerify(t *testing.T) {
	ca := newInternal(t, InternalConfig{Allow: below("app.example.com", "*.apps.example.com", "*.localhost")})
	text, err := os.ReadFile(ca.CAPath())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		t.Fatal("the CA file holds no certificate")
	}
	for host, name := range map[string]string{
		"app.example.com":    "app.example.com",
		"x.apps.example.com": "*.apps.example.com",
		"hello.localhost":    "hello.localhost", // OpenSSL takes no wildcard over one label
	} {
		cert, err := handshake(ca, host, pool)
		if err != nil {
			t.Errorf("%s: %v", host, err)
			continue
		}
		if len(cert.DNSNames) != 1 || cert.DNSNames[0] != name {
			t.Errorf("%s has a certificate for %q, want %q", host, cert.DNSNames, name)
		}
	}
}

func TestInternalRefusesWhatPolicyDoes(t *testing.T) {
	asked := 0
	ca := newInternal(t, InternalConfig{Allow: func(string) (string, bool) { asked++; return "", false }})
	for _, name := range []string{"", "other.example.com", "127.0.0.1", "a_b.example.com", "%65.com"} {
		if _, err := ca.GetCertificate(&tls.ClientHelloInfo{ServerName: name}); !errors.Is(err, ErrUnknownName) {
			t.Errorf("%q: %v, want ErrUnknownName", name, err)
		}
	}
	if asked != 1 {
		t.Errorf("policy was asked %d times, want once: only for what is a host name", asked)
	}
	if len(ca.leaves) != 0 {
		t.Errorf("%d leaves are kept", len(ca.leaves))
	}
}

func TestInternalServesTheDefaultToClientsWithoutAName(t *testing.T) {
	ca := newInternal(t, InternalConfig{Allow: below("edge.example.com"), Default: "edge.example.com"})
	cert, err := ca.GetCertificate(&tls.ClientHelloInfo{})
	if err != nil || cert.Leaf.DNSNames[0] != "edge.example.com" {
		t.Fatalf("got %v, %v", cert, err)
	}
}

func TestInternalKeepsItsCAAndItsSecret(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	first := newInternal(t, InternalConfig{Dir: dir, Allow: below()})
	second := newInternal(t, InternalConfig{Dir: dir, Allow: below()})
	if !first.CA().Equal(second.CA()) {
		t.Fatal("a second start made another CA")
	}
	for name, want := range map[string]os.FileMode{caKeyFile: 0o600, caCertFile: 0o644, ".": 0o700 | os.ModeDir} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode() != want {
			t.Errorf("%s has mode %v (%v), want %v", name, info.Mode(), err, want)
		}
	}
	public, err := os.ReadFile(first.CAPath())
	if err != nil || bytes.Contains(public, []byte("PRIVATE")) {
		t.Fatalf("the CA file is unreadable or holds a key: %v", err)
	}
	entries, _ := os.ReadDir(dir)
	if len(entries) != 2 {
		t.Errorf("the directory holds %v, want two files", entries)
	}
}

func TestInternalMakesOneCAWhenManyStart(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	cas := make([]*Internal, 16)
	for i := range cas {
		wg.Go(func() { cas[i], _ = NewInternal(InternalConfig{Dir: dir, Allow: below()}, discard()) })
	}
	wg.Wait()
	for _, ca := range cas {
		if ca == nil || !ca.CA().Equal(cas[0].CA()) {
			t.Fatal("processes that started together have different CAs")
		}
	}
}

func TestInternalNeverReplacesADamagedCA(t *testing.T) {
	dir := t.TempDir()
	newInternal(t, InternalConfig{Dir: dir, Allow: below()})
	path := filepath.Join(dir, caKeyFile)
	for name, content := range map[string]string{"empty": "", "cut": "-----BEGIN PRIVATE KEY-----\nMIG", "other": "hello"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := NewInternal(InternalConfig{Dir: dir, Allow: below()}, discard()); err == nil {
			t.Errorf("%s: the CA opened", name)
		}
		if now, _ := os.ReadFile(path); string(now) != content {
			t.Errorf("%s: the file was changed", name)
		}
	}
}

func TestInternalRenewsBeforeTheEnd(t *testing.T) {
	now := time.Now()
	ca := newInternal(t, InternalConfig{Allow: below("a.example.com"), Now: func() time.Time { return now }})
	hello := &tls.ClientHelloInfo{ServerName: "a.example.com"}
	first, err := ca.GetCertificate(hello)
	if err != nil {
		t.Fatal(err)
	}
	now = now.Add(leafLife / 2)
	if same, _ := ca.GetCertificate(hello); same != first {
		t.Error("a certificate with half of its life left was replaced")
	}
	now = now.Add(leafLife / 4)
	next, err := ca.GetCertificate(hello)
	if err != nil || next == first || !next.Leaf.NotAfter.After(first.Leaf.NotAfter) {
		t.Errorf("a certificate near its end was not replaced: %v", err)
	}
}

func TestInternalKeepsABoundedNumberOfLeaves(t *testing.T) {
	ca := newInternal(t, InternalConfig{Allow: below("*.localhost"), MaxLeaves: 5})
	for i := range 50 {
		if _, err := ca.GetCertificate(&tls.ClientHelloInfo{ServerName: fmt.Sprintf("h%d.localhost", i)}); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(ca.leaves); n != 5 {
		t.Fatalf("%d leaves, want 5", n)
	}
}

func TestInternalIssuesOnceForHandshakesAtOnce(t *testing.T) {
	ca := newInternal(t, InternalConfig{Allow: below("a.example.com")})
	var (
		wg    sync.WaitGroup
		certs [32]*tls.Certificate
	)
	for i := range certs {
		wg.Go(func() { certs[i], _ = ca.GetCertificate(&tls.ClientHelloInfo{ServerName: "A.example.com"}) })
	}
	wg.Wait()
	for _, c := range certs {
		if c == nil || c != certs[0] {
			t.Fatal("handshakes at once got different certificates")
		}
	}
}

// writePair writes a self-signed certificate for names with an ECDSA or RSA key.
func writePair(t *testing.T, dir, base string, useRSA bool, names ...string) Pair {
	t.Helper()
	ca := newInternal(t, InternalConfig{Allow: below()})
	cert, err := ca.ca.issueLeaf(names[0], time.Now())
	if err != nil {
		t.Fatal(err)
	}
	template := *cert.Leaf
	template.DNSNames = names
	var key any
	var public any
	if useRSA {
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		key, public = k, k.Public()
	} else {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		key, public = k, k.Public()
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, ca.ca.cert, public, ca.ca.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pair := Pair{Cert: filepath.Join(dir, base+".pem"), Key: filepath.Join(dir, base+"-key.pem")}
	for path, block := range map[string]*pem.Block{
		pair.Cert: {Type: "CERTIFICATE", Bytes: der},
		pair.Key:  {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		if err := replaceFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return pair
}

func serverCert(t *testing.T, source Certificates, name string) *tls.Certificate {
	t.Helper()
	cert, err := source.GetCertificate(&tls.ClientHelloInfo{ServerName: name})
	if err != nil {
		t.Fatalf("%q: %v", name, err)
	}
	return cert
}

func TestFilesAreChosenByName(t *testing.T) {
	dir := t.TempDir()
	f, err := NewFiles(FilesConfig{Pairs: []Pair{
		writePair(t, dir, "wild", false, "*.example.com"),
		writePair(t, dir, "exact", false, "a.example.com", "example.org"),
	}}, discard())
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"a.example.com": "a.example.com", "A.EXAMPLE.com": "a.example.com", "b.example.com": "*.example.com", "example.org": "a.example.com", "": "*.example.com",
	} {
		if got := serverCert(t, f, name).Leaf.DNSNames[0]; got != want {
			t.Errorf("%q is served with %q, want %q", name, got, want)
		}
	}
	for _, name := range []string{"example.com", "x.b.example.com", "example.net", "127.0.0.1"} {
		if _, err := f.GetCertificate(&tls.ClientHelloInfo{ServerName: name}); !errors.Is(err, ErrUnknownName) {
			t.Errorf("%q: %v, want ErrUnknownName", name, err)
		}
	}
	if got := f.Names(); len(got) != 3 {
		t.Errorf("Names() = %q", got)
	}
}

func TestFilesServeTheKeyTheClientKnows(t *testing.T) {
	dir := t.TempDir()
	f, err := NewFiles(FilesConfig{Pairs: []Pair{
		writePair(t, dir, "ec", false, "a.example.com"),
		writePair(t, dir, "rsa", true, "a.example.com"),
	}}, discard())
	if err != nil {
		t.Fatal(err)
	}
	onlyRSA := &tls.ClientHelloInfo{
		ServerName: "a.example.com", SupportedVersions: []uint16{tls.VersionTLS12},
		CipherSuites:     []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256},
		SignatureSchemes: []tls.SignatureScheme{tls.PSSWithSHA256}, SupportedCurves: []tls.CurveID{tls.X25519}, SupportedPoints: []uint8{0},
	}
	cert, err := f.GetCertificate(onlyRSA)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := cert.PrivateKey.(*rsa.PrivateKey); !ok {
		t.Fatalf("a client that knows RSA only is served a %T", cert.PrivateKey)
	}
}

func TestFilesAreReadAgainWhenTheyChange(t *testing.T) {
	dir := t.TempDir()
	pair := writePair(t, dir, "a", false, "a.example.com")
	var logged bytes.Buffer
	f, err := NewFiles(FilesConfig{Pairs: []Pair{pair}}, slog.New(slog.NewTextHandler(&logged, nil)))
	if err != nil {
		t.Fatal(err)
	}
	first := serverCert(t, f, "a.example.com")
	if n := f.Reload(); n != 0 || serverCert(t, f, "a.example.com") != first {
		t.Fatal("unchanged files were read again")
	}

	if err := replaceFile(pair.Cert, []byte("not a certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if n := f.Reload(); n != 0 || serverCert(t, f, "a.example.com") != first {
			t.Fatal("a broken file took the place of a good one")
		}
	}
	if n := strings.Count(logged.String(), "level=ERROR"); n != 1 {
		t.Errorf("the broken file was reported %d times, want once", n)
	}

	writePair(t, dir, "a", false, "a.example.com", "b.example.com")
	if n := f.Reload(); n != 1 || serverCert(t, f, "b.example.com") == first {
		t.Fatal("the new certificate is not served")
	}
	if err := os.Remove(pair.Key); err != nil {
		t.Fatal(err)
	}
	f.Reload()
	serverCert(t, f, "b.example.com")
}

func TestFilesRunSeesChanges(t *testing.T) {
	dir := t.TempDir()
	pair := writePair(t, dir, "a", false, "a.example.com")
	f, err := NewFiles(FilesConfig{Pairs: []Pair{pair}, Interval: time.Millisecond}, discard())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	writePair(t, dir, "a", false, "b.example.com")
	for ctx.Err() == nil {
		if _, err := f.GetCertificate(&tls.ClientHelloInfo{ServerName: "b.example.com"}); err == nil {
			break
		}
		<-time.After(time.Millisecond)
	}
	if ctx.Err() != nil {
		t.Error("the change was not seen")
	}
	cancel()
	if err := <-done; err == nil {
		t.Error("Run ended without an error")
	}
}

func TestNewFilesListsEveryFault(t *testing.T) {
	dir := t.TempDir()
	a, b := writePair(t, dir, "a", false, "a.example.com"), writePair(t, dir, "b", false, "b.example.com")
	_, err := NewFiles(FilesConfig{Pairs: []Pair{{"/no/such.pem", a.Key}, {a.Cert, b.Key}, a}}, discard())
	if err == nil || !strings.Contains(err.Error(), "/no/such.pem") || !strings.Contains(err.Error(), b.Key) {
		t.Fatalf("got %v", err)
	}
	if _, err := NewFiles(FilesConfig{}, discard()); err == nil {
		t.Fatal("no files were accepted")
	}
}

type sourceFunc func(*tls.ClientHelloInfo) (*tls.Certificate, error)

func (f sourceFunc) GetCertificate(h *tls.ClientHelloInfo) (*tls.Certificate, error) { return f(h) }

func TestChainTakesTheFirstThatHasOne(t *testing.T) {
	one, broken := &tls.Certificate{}, errors.New("broken")
	has := sourceFunc(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return one, nil })
	unknown := sourceFunc(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, ErrUnknownName })
	fails := sourceFunc(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, broken })
	for name, c := range map[string]struct {
		chain Chain
		cert  *tls.Certificate
		err   error
	}{
		"none":                 {nil, nil, ErrUnknownName},
		"all unknown":          {Chain{unknown, unknown}, nil, ErrUnknownName},
		"second":               {Chain{unknown, has}, one, nil},
		"in spite of a fault":  {Chain{fails, has}, one, nil},
		"the fault is told":    {Chain{unknown, fails, unknown}, nil, broken},
		"no further than need": {Chain{has, fails}, one, nil},
	} {
		cert, err := c.chain.GetCertificate(&tls.ClientHelloInfo{ServerName: "a.example.com"})
		if cert != c.cert || !errors.Is(err, c.err) {
			t.Errorf("%s: got %v, %v, want %v, %v", name, cert, err, c.cert, c.err)
		}
	}
}

func BenchmarkInternalGetCertificate(b *testing.B) {
	ca, err := NewInternal(InternalConfig{Dir: b.TempDir(), Allow: below("a.example.com")}, discard())
	if err != nil {
		b.Fatal(err)
	}
	for name, hello := range map[string]*tls.ClientHelloInfo{
		"known": {ServerName: "a.example.com"}, "unknown": {ServerName: "nobody.example.com"},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _ = ca.GetCertificate(hello)
			}
		})
	}
}

func TestFilesTellWhatTheyHold(t *testing.T) {
	ca := newSigner(t)
	dir := t.TempDir()
	cert := ca.leaf(t, "a.example.com")
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	pair := Pair{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	for path, block := range map[string]*pem.Block{
		pair.Cert: {Type: "CERTIFICATE", Bytes: cert.Certificate[0]}, pair.Key: {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	files, err := NewFiles(FilesConfig{Pairs: []Pair{pair}}, discard())
	if err != nil {
		t.Fatal(err)
	}
	hosts := files.Hosts()
	if len(hosts) != 1 || hosts[0].Host != "a.example.com" || hosts[0].State != StateValid || hosts[0].Serial == "" || hosts[0].Issuer == "" {
		t.Errorf("the files tell %+v", hosts)
	}
}
