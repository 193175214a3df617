package certs

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
	"golang.org/x/net/publicsuffix"
)

const (
	challengeHTTP = "http-01"
	challengeALPN = "tls-alpn-01"

	// soon is when to try again what failed for a reason of our own.
	soon = 30 * time.Second
	// maxAnswer bounds an answer of the CA; a chain has some 10 KiB.
	maxAnswer = 1 << 20
)

var (
	errUnreachable = errors.New("the CA cannot be reached")
	errChallenge   = errors.New("the CA does not find its challenge answered")
	errOneOrder    = errors.New("one order for each try")
)

// order makes one try for a host, with a manager of autocert's that lives for this
// try alone: autocert is safe for one process and one order at a time, and the
// lease makes that true. It returns errLeaseLost, a *putOff when nothing was
// ordered, or what went wrong.
func (m *ACME) order(ctx context.Context, h *acmeHost, l *lease, challenge string) (*tls.Certificate, error) {
	key, err := m.accountKey(ctx)
	if err != nil {
		return nil, fmt.Errorf("account key: %w", err)
	}
	o := &order{m: m, ctx: ctx, host: h, lease: l, challenge: challenge}
	manager := &autocert.Manager{
		Prompt: autocert.AcceptTOS,
		Cache:  o,
		Email:  m.cfg.Email,
		HostPolicy: func(_ context.Context, host string) error {
			if host != h.name {
				return ErrUnknownName
			}
			return nil
		},
		// autocert begins a timer for the renewal that cannot be stopped. The longest
		// time it takes makes the timer end soonest; see order.Get.
		RenewBefore: 30 * 24 * time.Hour,
		Client: &acme.Client{
			DirectoryURL: m.cfg.Directory,
			Key:          key,
			HTTPClient:   &http.Client{Transport: o, Timeout: 30 * time.Second},
			UserAgent:    "wormhole-edge",
			RetryBackoff: o.retry,
		},
	}
	// Announces that http-01 can be answered; we answer ourselves.
	_ = manager.HTTPHandler(nil)

	type result struct {
		cert *tls.Certificate
		err  error
	}
	done := make(chan result, 1)
	go func() { // ends within the five minutes that autocert allows, and soon after the transport refuses
		cert, err := manager.GetCertificate(ecdsaHello(h.name))
		done <- result{cert, err}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			return nil, o.explain(r.err)
		}
		return r.cert, nil
	case <-l.lost:
		return nil, errLeaseLost
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// ecdsaHello is what autocert is shown: a client that takes ECDSA, so that it orders
// a certificate with such a key, whatever the visitor's client can do.
func ecdsaHello(host string) *tls.ClientHelloInfo {
	return &tls.ClientHelloInfo{
		ServerName:       host,
		SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256},
		SupportedCurves:  []tls.CurveID{tls.CurveP256},
		CipherSuites:     []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
	}
}

// challengeFor is how the CA shall look at us this time: what worked last, and the
// other one each time that the CA did not see the answer.
func (m *ACME) challengeFor(rec hostRecord) string {
	kind := m.preferred.Load().(string)
	if m.cfg.HTTP01 && rec.Wrong%2 == 1 {
		if kind == challengeHTTP {
			return challengeALPN
		}
		return challengeHTTP
	}
	return kind
}

// order is one try. For autocert it is the cache, which holds nothing but takes the
// answers to challenges, and the way to the CA, on which the rules are enforced
// that autocert does not know: the lease, one order a try, one kind of challenge,
// our clock, the CA's limits, and answers in place before the CA looks.
type order struct {
	m         *ACME
	ctx       context.Context
	host      *acmeHost
	lease     *lease
	challenge string

	mu        sync.Mutex      // guards below
	asked     bool            // autocert has looked for a certificate
	newOrder  string          // URL to order at
	ordered   bool            // the CA took the order
	reserved  bool            // the limits have counted it
	answers   map[string]bool // URLs that tell the CA to look
	published bool            // the challenge's answer can be read by every edge
	refusal   error           // why we stopped it
	problem   string          // what the CA said of the challenge
	silent    bool            // the CA could not be reached
}

var _ autocert.Cache = (*order)(nil)

// Get implements autocert.Cache. autocert asks once before it orders. It asks again
// when its timer wants to renew, which is done by us under a lease; its goroutine
// ends here, as autocert has no other way to stop it, and with it goes all that the
// manager holds.
func (o *order) Get(context.Context, string) ([]byte, error) {
	o.mu.Lock()
	again := o.asked
	o.asked = true
	o.mu.Unlock()
	if again {
		runtime.Goexit()
	}
	return nil, autocert.ErrCacheMiss
}

// Put implements autocert.Cache. A challenge's answer must be readable by every
// edge, so it is written and read back; autocert ignores the error, RoundTrip does
// not. The certificate itself is stored by who called order.
func (o *order) Put(ctx context.Context, key string, value []byte) error {
	name, ok := o.tokenName(key)
	if !ok {
		return nil
	}
	err := o.publish(ctx, name, value)
	o.mu.Lock()
	defer o.mu.Unlock()
	if err != nil {
		o.refuse(fmt.Sprintf("the answer to the challenge cannot be published: %v", err), soon)
		return err
	}
	o.m.tokens.Store(name, value)
	o.published = true
	return nil
}

// publish writes the answer to a challenge, reads it back and lets it settle. It
// tries for as long as the lease lasts: the CA has taken the order already, so that
// giving up would cost another.
func (o *order) publish(ctx context.Context, name string, value []byte) error {
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		err := o.write(ctx, name, value)
		wait := tokenSettles
		switch {
		case errors.Is(err, ErrDamaged):
			return err
		case err != nil:
			o.m.log.Warn("answer to the challenge cannot be published, trying again", "host", o.host.name, "err", err)
			wait = pause
		}
		select {
		case <-time.After(wait):
		case <-o.lease.lost:
			return errLeaseLost
		case <-o.ctx.Done():
			return o.ctx.Err()
		case <-ctx.Done():
			return ctx.Err()
		}
		if err == nil {
			return nil
		}
	}
}

// write writes the answer to a challenge and reads it back.
func (o *order) write(ctx context.Context, name string, value []byte) error {
	ctx, cancel := context.WithTimeout(ctx, cacheTimeout)
	defer cancel()
	if err := o.m.cache.Put(ctx, kindToken, name, value); err != nil {
		return err
	}
	back, err := o.m.cache.Get(ctx, kindToken, name)
	if err == nil && !bytes.Equal(back, value) {
		err = errors.New("the cache returned something else than was written")
	}
	return err
}

// Delete implements autocert.Cache.
func (o *order) Delete(_ context.Context, key string) error {
	name, ok := o.tokenName(key)
	if !ok {
		return nil
	}
	o.m.tokens.Delete(name)
	ctx, cancel := context.WithTimeout(o.m.life, cacheTimeout)
	defer cancel()
	return o.m.cache.Delete(ctx, kindToken, name)
}

// tokenName turns autocert's key of a challenge into ours.
func (o *order) tokenName(key string) (string, bool) {
	if token, ok := strings.CutSuffix(key, "+http-01"); ok {
		return httpToken(token), true
	}
	if host, ok := strings.CutSuffix(key, "+token"); ok {
		return alpnToken(host), true
	}
	return "", false
}

// RoundTrip implements http.RoundTripper.
func (o *order) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := o.permit(req); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(req.Context())
	defer cancel()
	defer context.AfterFunc(o.m.life, cancel)()
	resp, err := o.m.transport.RoundTrip(req.WithContext(ctx))
	if err != nil {
		o.mu.Lock()
		o.silent = true
		o.mu.Unlock()
		return nil, err
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	_ = resp.Body.Close()
	if err != nil {
		return nil, err
	}
	body = o.learn(req, resp, body)
	resp.Body = io.NopCloser(bytes.NewReader(body))
	resp.ContentLength = int64(len(body))
	resp.Header.Del("Content-Length")
	return resp, nil
}

// permit says whether a request may go out.
func (o *order) permit(req *http.Request) error {
	url := req.URL.String()
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := o.m.life.Err(); err != nil {
		return err
	}
	if !o.lease.held() && o.refusal == nil {
		o.refusal = errLeaseLost
	}
	switch {
	case o.refusal != nil:
		return o.refusal
	case url == o.newOrder && req.Method == http.MethodPost:
		if o.ordered {
			return errOneOrder
		}
		if o.reserved { // a repetition, as the nonce was refused
			return nil
		}
		var off *putOff
		switch err := o.m.reserve(o.ctx, o.host); {
		case err == nil:
			o.reserved = true
		case errors.As(err, &off):
			o.refusal = off
		default:
			o.refuse(fmt.Sprintf("the limits cannot be read: %v", err), soon)
		}
		return o.refusal
	case o.answers[url] && !o.published:
		o.refuse("the answer to the challenge is not published", soon)
		return o.refusal
	}
	return nil
}

// refuse stops the try for a reason that is not the host's. o.mu is held.
func (o *order) refuse(why string, d time.Duration) {
	o.refusal = &putOff{until: o.m.cfg.Now().Add(d), why: why}
}

// learn notes what an answer of the CA tells, and leaves in it one kind of challenge.
func (o *order) learn(req *http.Request, resp *http.Response, body []byte) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.silent = resp.StatusCode >= 500
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil && o.refusal == nil {
		if skew := o.m.cfg.Now().Sub(date); skew.Abs() > o.m.cfg.MaxSkew {
			o.refuse(fmt.Sprintf("this machine's clock differs from the CA's by %s, so nothing is ordered", skew.Round(time.Second)), 5*time.Minute)
		}
	}
	url := req.URL.String()
	switch {
	case url == o.m.cfg.Directory:
		var directory struct {
			NewOrder string `json:"newOrder"`
		}
		if json.Unmarshal(body, &directory) == nil {
			o.newOrder = directory.NewOrder
		}
		return body
	case url == o.newOrder && resp.StatusCode == http.StatusCreated:
		o.ordered = true
		o.m.counts.ordered.Add(1)
		return body
	case resp.StatusCode != http.StatusOK:
		return body
	}
	var fields map[string]json.RawMessage
	var challenges []map[string]json.RawMessage
	if json.Unmarshal(body, &fields) != nil || json.Unmarshal(fields["challenges"], &challenges) != nil {
		return body // no authorization
	}
	var kept []map[string]json.RawMessage
	for _, c := range challenges {
		var kind, url string
		_ = json.Unmarshal(c["type"], &kind)
		_ = json.Unmarshal(c["url"], &url)
		if kind != o.challenge {
			continue
		}
		kept = append(kept, c)
		if o.answers == nil {
			o.answers = make(map[string]bool)
		}
		o.answers[url] = true
		var problem struct {
			Type   string `json:"type"`
			Detail string `json:"detail"`
		}
		if json.Unmarshal(c["error"], &problem) == nil && problem.Detail != "" {
			o.problem = strings.TrimPrefix(problem.Type, "urn:ietf:params:acme:error:") + ": " + problem.Detail
		}
	}
	fields["challenges"], _ = json.Marshal(kept) // was JSON before
	if changed, err := json.Marshal(fields); err == nil {
		return changed
	}
	return body
}

// retry is how long to wait before a request is repeated that the CA refused; 0 is
// not at all. A nonce that was refused is no failure of anything, and the CA gave a
// new one with the refusal.
func (o *order) retry(n int, _ *http.Request, resp *http.Response) time.Duration {
	switch {
	case o.m.life.Err() != nil:
		return 0
	case resp.StatusCode == http.StatusBadRequest && n <= 20:
		return time.Duration(n) * (10*time.Millisecond + mathrand.N(20*time.Millisecond))
	case resp.StatusCode >= 500 && n <= 2:
		return time.Second
	}
	return 0 // 429 among others: the next try is hours away, not seconds
}

// explain makes of autocert's error the one that matters.
func (o *order) explain(err error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	var ca *acme.Error
	switch {
	case o.refusal != nil:
		return o.refusal
	case o.problem != "":
		return fmt.Errorf("%w: %s: %s", errChallenge, o.challenge, o.problem)
	case o.silent:
		return fmt.Errorf("%w: %w", errUnreachable, err)
	case errors.As(err, &ca):
		return ca
	}
	return err
}

// retryAfter is how long the CA asked us to stay away, at most a day.
func retryAfter(err error) time.Duration {
	d, ok := acme.RateLimit(err)
	if !ok {
		return 0
	}
	return min(d, 24*time.Hour)
}

// accountKey returns the key of the account, which the first edge of all makes.
func (m *ACME) accountKey(ctx context.Context) (crypto.Signer, error) {
	var text []byte
	err := m.update(ctx, kindAccount, "key", func(old []byte) ([]byte, error) {
		if text = old; old != nil {
			return nil, errUnchanged
		}
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, err
		}
		text = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
		return text, nil
	})
	if err != nil && !errors.Is(err, errUnchanged) {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%w: no key", ErrDamaged)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%w: the key cannot sign", ErrDamaged)
	}
	return signer, nil
}

// errUnchanged ends an update that found what it wants.
var errUnchanged = errors.New("unchanged")

func serial(leaf *x509.Certificate) string {
	return hex.EncodeToString(leaf.SerialNumber.Bytes())
}

// registered is the domain that a CA's limits count a host for.
func registered(host string) string {
	if domain, err := publicsuffix.EffectiveTLDPlusOne(host); err == nil {
		return domain
	}
	return host
}
