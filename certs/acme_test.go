package certs

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// memory is a Cache in memory that counts what is asked of it.
type memory struct {
	reads atomic.Int64

	mu      sync.Mutex // guards entries
	entries map[string][]byte
}

var _ Cache = (*memory)(nil)

func newMemory() *memory { return &memory{entries: make(map[string][]byte)} }

func (c *memory) Get(_ context.Context, kind, name string) ([]byte, error) {
	c.reads.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	if v, ok := c.entries[kind+" "+name]; ok {
		return v, nil
	}
	return nil, ErrCacheMiss
}

func (c *memory) Put(_ context.Context, kind, name string, value []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entries[kind+" "+name] = value
	return nil
}

func (c *memory) Update(_ context.Context, kind, name string, change func([]byte) ([]byte, error)) error {
	c.reads.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	value, err := change(c.entries[kind+" "+name])
	if err == nil {
		c.entries[kind+" "+name] = value
	}
	return err
}

func (c *memory) Delete(_ context.Context, kind, name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.entries, kind+" "+name)
	return nil
}

func (c *memory) Watch(ctx context.Context, _ string) (<-chan Change, error) {
	out := make(chan Change, 1)
	out <- Change{Ready: true}
	context.AfterFunc(ctx, func() { close(out) })
	return out, nil
}

func newACME(t testing.TB, cache Cache, cfg ACMEConfig) *ACME {
	t.Helper()
	cfg.Holder = "test"
	// Nobody listens there: what would be ordered fails.
	setDefault(&cfg.Directory, "https://127.0.0.1:1/dir")
	m, err := NewACME(cfg, cache, discard())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// signer makes certificates as a CA would, for tests that need many.
type signer struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newSigner(t testing.TB) *signer {
	t.Helper()
	key, der, err := newAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &signer{key, cert}
}

func (s *signer) leaf(t testing.TB, host string) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(90 * 24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, s.cert, key.Public(), s.key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der, s.cert.Raw}, PrivateKey: key}
}

func allowAll(host string) (string, bool) { return host, true }

// E8, F3: a flood of names that are not ours costs neither storage nor memory.
func TestE8FloodOfUnknownNamesReadsNothing(t *testing.T) {
	cache := newMemory()
	m := newACME(t, cache, ACMEConfig{Allow: func(string) (string, bool) { return "", false }, HTTP01: true})
	stop := runACME(t, m)
	defer stop()
	before := cache.reads.Load()
	passed := 0
	plain := m.HTTPHandler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { passed++ }))
	const flood = 20_000
	var start, end runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&start)
	for i := range flood {
		name := fmt.Sprintf("n%d.example.com", i)
		if _, err := m.GetCertificate(&tls.ClientHelloInfo{ServerName: name}); !errors.Is(err, ErrUnknownName) {
			t.Fatal(err)
		}
		challenge := &tls.ClientHelloInfo{ServerName: name, SupportedProtos: []string{"acme-tls/1"}}
		if _, err := m.GetCertificate(challenge); !errors.Is(err, ErrUnknownName) {
			t.Fatal(err)
		}
		if _, err := m.ChallengeCertificate(challenge); !errors.Is(err, ErrUnknownName) {
			t.Fatal(err)
		}
		r := httptest.NewRequest(http.MethodGet, fmt.Sprintf("http://%s/.well-known/acme-challenge/token%d", name, i), nil)
		plain.ServeHTTP(httptest.NewRecorder(), r)
	}
	runtime.GC()
	runtime.ReadMemStats(&end)
	if got := cache.reads.Load() - before; got != 0 {
		t.Errorf("%d reads of the cache, want 0", got)
	}
	if passed != flood {
		t.Errorf("%d of %d requests went on to the site", passed, flood)
	}
	if grown := int64(end.HeapAlloc) - int64(start.HeapAlloc); grown > 1<<20 {
		t.Errorf("memory grew by %d bytes", grown)
	}
}

// runACME runs m until the returned function is called.
func runACME(t testing.TB, m *ACME) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = m.Run(ctx) }()
	<-m.loaded
	return func() { cancel(); <-done }
}

func TestSubdomainsOfAWildcardAreCapped(t *testing.T) {
	wild := func(host string) (string, bool) { return "*.example.com", true }
	m := newACME(t, newMemory(), ACMEConfig{Allow: wild, MaxSubdomains: 5, Wait: time.Millisecond})
	for i := range 50 {
		_, err := m.GetCertificate(&tls.ClientHelloInfo{ServerName: fmt.Sprintf("n%d.example.com", i)})
		if unknown := errors.Is(err, ErrUnknownName); unknown != (i >= 5) {
			t.Errorf("name %d: %v", i, err)
		}
	}
	if got := len(m.Hosts()); got != 5 {
		t.Errorf("%d hosts are remembered, want 5", got)
	}
	if got := m.Stats().Capped; got != 45 {
		t.Errorf("%d names counted as refused, want 45", got)
	}
	// What is in the cache already is served even so.
	s := newSigner(t)
	value, err := encodeCert(s.leaf(t, "old.example.com"), 1)
	if err != nil {
		t.Fatal(err)
	}
	m.followCert(Change{Name: "old.example.com", Value: value})
	if _, err := m.GetCertificate(&tls.ClientHelloInfo{ServerName: "old.example.com"}); err != nil {
		t.Errorf("a stored certificate: %v", err)
	}
}

func TestLimitsPutOrdersOff(t *testing.T) {
	now := time.Now()
	m := newACME(t, newMemory(), ACMEConfig{
		Allow: allowAll, Now: func() time.Time { return now },
		Limits: &Limits{Orders: Limit{4, 3 * time.Hour}, PerDomain: Limit{2, 7 * 24 * time.Hour}, PerName: Limit{1, 7 * 24 * time.Hour}},
	})
	reserve := func(host string) error {
		h := newHost(host)
		if err := m.cache.Put(t.Context(), kindHost, host, []byte(`{}`)); err != nil {
			t.Fatal(err)
		}
		return m.reserve(t.Context(), h)
	}
	var off *putOff
	for i, c := range []struct {
		host  string
		until time.Duration // 0 is allowed
	}{
		{"a.example.com", 0},
		{"b.example.com", 0},
		{"c.example.com", 7 * 24 * time.Hour}, // the domain's second was the last
		{"a.example.co.uk", 0},
		{"b.example.co.uk", 0},
		{"example.org", 3 * time.Hour}, // the account's fourth was the last
	} {
		err := reserve(c.host)
		if (c.until == 0) != (err == nil) {
			t.Fatalf("%d: %s: %v", i, c.host, err)
		}
		if err != nil && (!errors.As(err, &off) || off.until.Sub(now).Round(time.Minute) != c.until) {
			t.Errorf("%s: %v until %v, want in %v", c.host, err, off.until, c.until)
		}
	}
	now = now.Add(3*time.Hour + time.Second)
	if err := reserve("example.org"); err != nil {
		t.Errorf("after the period: %v", err)
	}
	if err := m.cache.Put(t.Context(), kindHost, "a.example.org", fmt.Appendf(nil, `{"issued":[%d]}`, now.Unix())); err != nil {
		t.Fatal(err)
	}
	if err := m.reserve(t.Context(), newHost("a.example.org")); !errors.As(err, &off) {
		t.Errorf("the same name again: %v", err)
	}
	use := m.Stats().Budget
	if i := slices.IndexFunc(use, func(b BudgetUse) bool { return b.Limit == "domain" }); i < 0 || use[i].Most != 2 {
		t.Errorf("the metrics show %+v", use)
	}
}

func TestARecordThatIsChangedIsDamaged(t *testing.T) {
	s := newSigner(t)
	good, err := encodeCert(s.leaf(t, "a.example.com"), 7)
	if err != nil {
		t.Fatal(err)
	}
	var chains interned
	cert, fence, err := decodeCert(good, "a.example.com", &chains)
	if err != nil || fence != 7 || cert.Leaf.VerifyHostname("a.example.com") != nil {
		t.Fatalf("fence %d, %v", fence, err)
	}
	if _, _, err := decodeCert(good, "b.example.com", &chains); !errors.Is(err, ErrDamaged) {
		t.Errorf("for another host: %v", err)
	}
	for i := range good {
		bad := slices.Clone(good)
		bad[i] ^= 1
		if _, _, err := decodeCert(bad, "a.example.com", &chains); err != nil && !errors.Is(err, ErrDamaged) {
			t.Fatalf("byte %d: %v is not ErrDamaged", i, err)
		} else if err == nil && i > 12 && i < len(good)-3 && bad[i] != '"' {
			// Only a change that JSON does not see, such as the case of a key, may pass.
			if c, f, _ := decodeCert(bad, "a.example.com", &chains); f != 7 || !c.Leaf.Equal(cert.Leaf) {
				t.Fatalf("byte %d: a changed record passes", i)
			}
		}
	}
	for _, text := range []string{"", "{}", "null", "[]", `{"sha256":"","pem":""}`} {
		if _, _, err := decodeCert([]byte(text), "a.example.com", &chains); !errors.Is(err, ErrDamaged) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzDecodeCert(f *testing.F) {
	value, err := encodeCert(newSigner(f).leaf(f, "a.example.com"), 1)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(value)
	f.Add([]byte(`{"fence":1}`))
	f.Fuzz(func(t *testing.T, value []byte) {
		var chains interned
		cert, _, err := decodeCert(value, "a.example.com", &chains)
		if err != nil && !errors.Is(err, ErrDamaged) {
			t.Errorf("%v is not ErrDamaged", err)
		}
		if err == nil && (cert.Leaf == nil || cert.PrivateKey == nil) {
			t.Error("half a certificate")
		}
	})
}

// A lease is taken over only after its holder was silent, whatever the clocks say,
// and then the old holder can write no more.
func TestALeaseIsFenced(t *testing.T) {
	cache := newMemory()
	first := newACME(t, cache, ACMEConfig{Allow: allowAll, Lease: 300 * time.Millisecond})
	second := newACME(t, cache, ACMEConfig{
		Allow: allowAll, Lease: 300 * time.Millisecond,
		Now: func() time.Time { return time.Now().Add(48 * time.Hour) }, // does not make it quicker
	})
	second.cfg.Holder = "second"
	const host = "a.example.com"
	ctx, kill := context.WithCancel(t.Context())
	l, _, err := first.acquire(ctx, newHost(host), 0)
	if err != nil {
		t.Fatal(err)
	}
	h := newHost(host)
	for began := time.Now(); time.Since(began) < 600*time.Millisecond; time.Sleep(20 * time.Millisecond) {
		if _, _, err := second.acquire(t.Context(), h, 0); !errors.Is(err, errHeld) {
			t.Fatalf("a lease whose holder lives: %v", err)
		}
	}
	kill() // no more signs of life
	l.beat.Wait()
	silent := time.Now()
	var taken *lease
	for taken == nil {
		if taken, _, err = second.acquire(t.Context(), h, 0); err != nil && !errors.Is(err, errHeld) {
			t.Fatal(err)
		}
		if time.Since(silent) > 10*time.Second {
			t.Fatal("the lease was never taken over")
		}
		time.Sleep(5 * time.Millisecond)
	}
	if took := time.Since(silent); took < 200*time.Millisecond {
		t.Errorf("taken over after %v of silence", took)
	}
	if taken.fence <= l.fence {
		t.Errorf("fence %d after %d", taken.fence, l.fence)
	}
	s := newSigner(t)
	if err := second.keep(t.Context(), taken, s.leaf(t, host)); err != nil {
		t.Fatal(err)
	}
	if err := first.keep(t.Context(), l, s.leaf(t, host)); !errors.Is(err, errLeaseLost) {
		t.Errorf("what the old holder writes late: %v, want it refused", err)
	}
	first.giveBack(l, func(rec *hostRecord) { rec.Error = "late" })
	second.giveBack(taken, func(*hostRecord) {})
	rec, err := decodeHost(cache.entries[kindHost+" "+host], host)
	if err != nil || rec.Error != "" || rec.Holder != "" || rec.Fence != taken.fence {
		t.Errorf("record %+v, %v", rec, err)
	}
}

func TestTenThousandHostsFitInMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("makes ten thousand certificates")
	}
	const hosts = 10_000
	m := newACME(t, newMemory(), ACMEConfig{Allow: allowAll})
	s := newSigner(t)
	// A chain as long as that of a public CA.
	var start, end runtime.MemStats
	values := make([][]byte, 0, hosts)
	for i := range hosts {
		value, err := encodeCert(s.leaf(t, fmt.Sprintf("host-%d.example.com", i)), 1)
		if err != nil {
			t.Fatal(err)
		}
		values = append(values, value)
	}
	runtime.GC()
	runtime.ReadMemStats(&start)
	began := time.Now()
	for i, value := range values {
		m.followCert(Change{Name: fmt.Sprintf("host-%d.example.com", i), Value: value})
	}
	took := time.Since(began)
	runtime.GC()
	runtime.ReadMemStats(&end)
	used := int64(end.HeapAlloc) - int64(start.HeapAlloc)
	t.Logf("%d hosts hold %d KiB, loaded in %s", hosts, used>>10, took.Round(time.Millisecond))
	if used > 200<<20 {
		t.Errorf("%d hosts hold %d MiB, want at most 200", hosts, used>>20)
	}
	runtime.KeepAlive(values)
	if got := m.Stats().ByState[StateValid]; got != hosts {
		t.Errorf("%d hosts are valid", got)
	}
}

func BenchmarkKnownHost(b *testing.B) {
	for _, hosts := range []int{1, 10_000} {
		b.Run(fmt.Sprint(hosts), func(b *testing.B) {
			m := newACME(b, newMemory(), ACMEConfig{Allow: allowAll})
			cert := newSigner(b).leaf(b, "host.example.com")
			cert.Leaf, _ = x509.ParseCertificate(cert.Certificate[0])
			hello := make([]*tls.ClientHelloInfo, hosts)
			for i := range hello {
				name := fmt.Sprintf("host-%d.example.com", i)
				m.stored(name).serve(cert, 1)
				hello[i] = &tls.ClientHelloInfo{ServerName: name}
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if _, err := m.GetCertificate(hello[i]); err != nil {
					b.Fatal(err)
				}
				if i++; i == hosts {
					i = 0
				}
			}
		})
	}
}

func BenchmarkUnknownName(b *testing.B) {
	m := newACME(b, newMemory(), ACMEConfig{Allow: func(string) (string, bool) { return "", false }})
	hello := &tls.ClientHelloInfo{ServerName: "stranger.example.com"}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := m.GetCertificate(hello); err == nil {
			b.Fatal("a certificate")
		}
	}
}
