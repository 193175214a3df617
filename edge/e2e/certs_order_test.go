package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wormhole/certs"
	"wormhole/edge/cluster/certcache"
	"wormhole/edge/cluster/store"
	"wormhole/edge/config"
	"wormhole/edge/edgetest"
)

// metric reads one sample of a node's metrics.
func metric(t *testing.T, n *edgetest.Node, sample string) float64 {
	t.Helper()
	resp, err := http.Get("http://" + n.Addr("admin") + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, sample+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	t.Fatalf("no sample %s", sample)
	return 0
}

// F2: the CA looks at an edge other than the one that orders, at once.
func TestF2AnyEdgeAnswersTheChallenge(t *testing.T) {
	for _, kind := range []string{"http-01", "tls-alpn-01"} {
		t.Run(kind, func(t *testing.T) {
			n := 25
			if long() {
				n = 50
			}
			p := startPebble(t, edgetest.PebbleConfig{SleepMax: delay()})
			p.Resolve(t, "", "127.0.0.2")
			nodes := certEdges(t, p, 3, func(c *config.Config) {
				if kind == "tls-alpn-01" {
					c.HTTP = ""
				}
			})
			hosts := numbered("f2-%02d.example.com", n)
			configure(t, nodes, hosts...)
			roots := p.Root(t)
			var wg sync.WaitGroup
			for i, h := range hosts {
				wg.Go(func() {
					if _, err := insist(p.Addr(1+i%2*2), h, roots, visitors); err != nil {
						t.Errorf("%s: %v", h, err)
					}
				})
			}
			wg.Wait()
			elsewhere := metric(t, nodes[0], `wormhole_edge_certificate_orders_total{result="issued"}`) +
				metric(t, nodes[2], `wormhole_edge_certificate_orders_total{result="issued"}`)
			t.Logf("%d orders, %d wrong answers; %v of them ordered by an edge that the CA did not ask", p.Orders(), p.Invalid(), elsewhere)
			if p.Orders() != n || p.Invalid() != 0 {
				t.Errorf("%d orders and %d wrong answers for %d hosts, want as many orders and none wrong", p.Orders(), p.Invalid(), n)
			}
			if elsewhere < float64(n)/4 {
				t.Errorf("only %v of %d were ordered by another edge; the test proves little", elsewhere, n)
			}
		})
	}
}

// F2, too: a disk that takes long for the answer does not waste the order.
func TestF2ASlowDiskCostsNoSecondOrder(t *testing.T) {
	t.Parallel() // it mostly waits
	p := startPebble(t, edgetest.PebbleConfig{})
	r := newRig(t, p, filepath.Join(t.TempDir(), "store"), "")
	r.plain(t, p)
	r.stall.Store(int64(6 * time.Second))
	r.serve("slow.example.com")
	r.await(t, "slow.example.com", certs.StateValid)
	if p.Orders() != 1 || p.Invalid() != 0 {
		t.Errorf("%d orders and %d wrong answers, want one order", p.Orders(), p.Invalid())
	}
}

// F3: names that are not ours are never ordered.
func TestF3StrangeNamesAreNeverOrdered(t *testing.T) {
	p := startPebble(t, edgetest.PebbleConfig{})
	nodes := certEdges(t, p, 1)
	configure(t, nodes, "ours.example.com", "removed.example.com")
	roots := p.Root(t)
	awaitCert(t, p, 1, "ours.example.com", roots, 30*time.Second)
	awaitCert(t, p, 1, "removed.example.com", roots, 30*time.Second)
	before := p.Orders()

	if known, err := nodes[0].DeleteSite(t.Context(), "removed.example.com"); !known || err != nil {
		t.Fatalf("delete site: %t, %v", known, err)
	}
	names := []string{"removed.example.com", "sub.ours.example.com", "example.com", "com", "*.example.com"}
	for range 1000 {
		names = append(names, fmt.Sprintf("%x.example%d.com", rand.Uint64(), rand.IntN(100)))
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, 32)
	for _, name := range names {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if _, err := shake(p.Addr(1), name, roots); !unrecognized(err) {
				t.Errorf("%s: %v, want the alert unrecognized_name", name, err)
			}
		})
	}
	wg.Wait()
	for _, name := range []string{"127.0.0.1", "::1", ""} { // sends no server name
		conn, err := tls.Dial("tcp", p.Addr(1), &tls.Config{ServerName: name, InsecureSkipVerify: true})
		if err == nil {
			conn.Close()
		}
	}
	for _, host := range []string{"removed.example.com", "stranger.example.com", "127.0.0.1"} {
		req, _ := http.NewRequest(http.MethodGet, "http://"+net.JoinHostPort("127.0.0.1", p.HTTP)+"/.well-known/acme-challenge/abc", nil)
		req.Host = host
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound && resp.StatusCode != http.StatusBadRequest {
			t.Errorf("plain HTTP for %s answers %d", host, resp.StatusCode)
		}
	}
	if got := p.Orders(); got != before {
		t.Errorf("%d orders were made", got-before)
	}
}

// rig is an ACME source by itself, with a clock that the test sets.
type rig struct {
	*certs.ACME
	store *store.Dir
	now   atomic.Int64 // what the clock is ahead, in nanoseconds
	fault atomic.Int64 // how long the store takes, or -1 to fail
	stall atomic.Int64 // how long the disk takes for the next answer to a challenge
	reads atomic.Int64
	stop  func()
	hosts sync.Map
	next  atomic.Pointer[rig] // answers the CA in the place of this one
}

func (r *rig) clock() time.Time        { return time.Now().Add(time.Duration(r.now.Load())) }
func (r *rig) advance(d time.Duration) { r.now.Add(int64(d)) }

// newRig starts a source on the store in dir, which a mirror may stand in for.
func newRig(t *testing.T, p *edgetest.Pebble, dir, mirror string, change ...func(*certs.ACMEConfig)) *rig {
	t.Helper()
	r := &rig{}
	var err error
	if r.store, err = store.OpenDir(dir); err != nil {
		t.Fatal(err)
	}
	var copies store.Store
	if mirror != "" {
		d, err := store.OpenDir(mirror)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		copies = d
	}
	cfg := certs.ACMEConfig{
		Directory: p.Directory, Roots: edgetest.Roots(t, p.CAFile), Holder: fmt.Sprintf("rig-%x", rand.Uint64()),
		Allow: func(host string) (string, bool) {
			if _, ok := r.hosts.Load(host); ok {
				return host, true
			}
			_, parent, _ := strings.Cut(host, ".")
			if _, ok := r.hosts.Load("*." + parent); ok {
				return "*." + parent, true
			}
			return "", false
		},
		Now: r.clock, MaxSkew: 365 * 24 * time.Hour, Spread: time.Millisecond, HTTP01: true,
	}
	for _, f := range change {
		f(&cfg)
	}
	r.ACME, err = certs.NewACME(cfg, certcache.New(&faultyStore{Store: r.store, r: r}, copies, cfg.Directory, edgetest.Logger(t)), edgetest.Logger(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	r.stop = func() { cancel(); <-done }
	t.Cleanup(func() { r.stop(); r.store.Close() })
	go func() { defer close(done); _ = r.Run(ctx) }()
	return r
}

func (r *rig) serve(hosts ...string) {
	for _, h := range hosts {
		r.hosts.Store(h, true)
		r.Want(h)
	}
}

// plain opens the port on which the CA looks for http-01.
func (r *rig) plain(t *testing.T, p *edgetest.Pebble) {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", p.HTTP))
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		who := r
		if next := r.next.Load(); next != nil {
			who = next
		}
		who.HTTPHandler(http.NotFoundHandler()).ServeHTTP(w, req)
	}))
	s.Listener.Close()
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
}

func (r *rig) host(name string) certs.HostStatus {
	for _, h := range r.Hosts() {
		if h.Host == name {
			return h
		}
	}
	return certs.HostStatus{}
}

func (r *rig) await(t *testing.T, name string, state certs.State) certs.HostStatus {
	t.Helper()
	edgetest.Eventually(t, fmt.Sprintf("%s is %s (%+v)", name, state, r.host(name)), func() bool { return r.host(name).State == state })
	return r.host(name)
}

// faultyStore counts reads, and fails or is slow when told to.
type faultyStore struct {
	store.Store
	r *rig
}

var errStoreDown = errors.New("store is down")

func (s *faultyStore) trouble(ctx context.Context) error {
	s.r.reads.Add(1)
	switch d := s.r.fault.Load(); {
	case d < 0:
		return errStoreDown
	case d > 0:
		select {
		case <-time.After(time.Duration(d)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (s *faultyStore) Get(ctx context.Context, bucket, key string) (store.Entry, error) {
	if err := s.trouble(ctx); err != nil {
		return store.Entry{}, err
	}
	return s.Store.Get(ctx, bucket, key)
}

func (s *faultyStore) Put(ctx context.Context, bucket, key string, v []byte) (uint64, error) {
	if err := s.trouble(ctx); err != nil {
		return 0, err
	}
	if strings.HasSuffix(bucket, "-token") {
		time.Sleep(time.Duration(s.r.stall.Swap(0))) // a disk heeds no context
	}
	return s.Store.Put(ctx, bucket, key, v)
}

func (s *faultyStore) Create(ctx context.Context, bucket, key string, v []byte) (uint64, error) {
	if err := s.trouble(ctx); err != nil {
		return 0, err
	}
	return s.Store.Create(ctx, bucket, key, v)
}

func (s *faultyStore) Update(ctx context.Context, bucket, key string, v []byte, rev uint64) (uint64, error) {
	if err := s.trouble(ctx); err != nil {
		return 0, err
	}
	return s.Store.Update(ctx, bucket, key, v, rev)
}

func (s *faultyStore) Watch(ctx context.Context, bucket string) (<-chan store.Event, error) {
	if err := s.trouble(ctx); err != nil {
		return nil, err
	}
	return s.Store.Watch(ctx, bucket)
}

// tries lets a host fail over and over, moving the clock to each next try, and
// returns when the tries were, as the clock tells.
func (r *rig) tries(t *testing.T, name string, during time.Duration) (at []time.Duration) {
	t.Helper()
	began := r.clock()
	for {
		h := r.await(t, name, certs.StateFailed)
		at = append(at, r.clock().Sub(began))
		r.advance(h.Next.Sub(r.clock()) + 2*time.Second)
		if r.clock().Sub(began) > during {
			return at
		}
		failed := r.Stats().Failed
		r.Want(name) // looks at the clock
		edgetest.Eventually(t, "another try", func() bool { return r.Stats().Failed > failed })
	}
}

func checkTries(t *testing.T, at []time.Duration, last time.Duration) {
	t.Helper()
	for i := range at {
		if i+3 < len(at) && at[i+3]-at[i] < time.Hour {
			t.Errorf("four tries within an hour: %v", at)
		}
	}
	if d := at[len(at)-1] - at[len(at)-2]; d < last {
		t.Errorf("the last wait is %v, want at least %v", d, last)
	}
}

// F4: the CA is down, refuses, is full, or cannot resolve the name.
func TestF4TroubleWithTheCAIsMetWithPatience(t *testing.T) {
	t.Parallel() // it mostly waits
	p := startPebble(t, edgetest.PebbleConfig{NonceReject: 50})
	r := newRig(t, p, filepath.Join(t.TempDir(), "store"), "")
	r.plain(t, p)

	t.Run("half of the nonces are refused", func(t *testing.T) {
		r.serve("known.example.com")
		r.await(t, "known.example.com", certs.StateValid)
		if p.Orders() != 1 {
			t.Errorf("%d orders, want 1", p.Orders())
		}
	})
	t.Run("the name does not resolve", func(t *testing.T) {
		p.BreakDNS(t, "lost.example.com", true)
		r.serve("lost.example.com")
		at := r.tries(t, "lost.example.com", 96*time.Hour)
		t.Logf("tries after %v, %d orders", at, p.Orders()-1)
		checkTries(t, at, 20*time.Hour)
		p.BreakDNS(t, "lost.example.com", false)
		if err := r.Retry(t.Context(), "lost.example.com"); err != nil {
			t.Fatal(err)
		}
		r.await(t, "lost.example.com", certs.StateValid)
	})
	t.Run("the CA is down", func(t *testing.T) {
		p.Stop(t)
		r.serve("late.example.com")
		at := r.tries(t, "late.example.com", 12*time.Hour)
		t.Logf("tries after %v", at)
		checkTries(t, at, time.Hour)
		if c, err := r.GetCertificate(&tls.ClientHelloInfo{ServerName: "known.example.com"}); err != nil || c == nil {
			t.Errorf("a known host is refused while the CA is down: %v", err)
		}
		p.Start(t)
		// It is asked again within the hour, by itself.
		r.advance(66 * time.Minute)
		r.Want("late.example.com")
		r.await(t, "late.example.com", certs.StateValid)
	})
}

// F4, too: a CA that says how long to stay away is obeyed.
func TestF4ACAThatIsFullIsLeftAlone(t *testing.T) {
	p := startPebble(t, edgetest.PebbleConfig{})
	target, _ := url.Parse("https://" + strings.Split(p.Directory, "/")[2])
	var full atomic.Bool
	full.Store(true)
	var asked atomic.Int64
	// The real CA behind a door that is shut now and then, as its rate limiter is.
	relay := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = target.Scheme, target.Host
			r.Out.Host = r.In.Host
		},
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: edgetest.Roots(t, p.CAFile)}},
	}
	front := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "order") && r.Method == http.MethodPost && full.Load() {
			asked.Add(1)
			w.Header().Set("Retry-After", "7200")
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusTooManyRequests)
			_, _ = io.WriteString(w, `{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too many","status":429}`)
			return
		}
		relay.ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)
	roots := edgetest.Roots(t, p.CAFile)
	roots.AddCert(front.Certificate())
	r := newRig(t, p, filepath.Join(t.TempDir(), "store"), "", func(c *certs.ACMEConfig) {
		c.Directory, c.Roots = front.URL+"/dir", roots
	})
	r.plain(t, p)
	r.serve("full.example.com")
	h := r.await(t, "full.example.com", certs.StateFailed)
	if wait := h.Next.Sub(r.clock()); wait < 110*time.Minute {
		t.Errorf("next try in %v though the CA asked for two hours", wait)
	}
	if asked.Load() != 1 {
		t.Errorf("the CA was asked %d times, want once", asked.Load())
	}
	full.Store(false)
	r.advance(h.Next.Sub(r.clock()) + time.Second)
	r.Want("full.example.com")
	r.await(t, "full.example.com", certs.StateValid)
}
