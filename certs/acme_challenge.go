package certs

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"strings"
	"time"

	"golang.org/x/crypto/acme"

	"wormhole/shared/hostname"
)

// tokenTimeout bounds how long the CA is kept waiting while the answer to its
// challenge is looked up.
const tokenTimeout = time.Second

// tokenSettles is how long after its answer was written the CA is told to look: by
// then it has come to the memory of every edge, those too that do not know the host
// yet and so would not look it up.
const tokenSettles = 300 * time.Millisecond

const (
	challengePath = "/.well-known/acme-challenge/"
	maxToken      = 128
)

// Names of challenges' answers in the cache.
func httpToken(token string) string { return "http/" + token }
func alpnToken(host string) string  { return "alpn/" + host }

// wantsChallenge reports whether a hello is the CA's, looking for the answer to
// tls-alpn-01 (RFC 8737, section 3).
func wantsChallenge(hello *tls.ClientHelloInfo) bool {
	return len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == acme.ALPNProto
}

// ChallengeCertificate returns the certificate that answers tls-alpn-01, whichever
// edge ordered, or ErrUnknownName. The door must ask it for clients that offer
// acme-tls/1 alone, and must not offer that protocol to anybody without such a
// certificate. For a name outside the policy no storage is read.
func (m *ACME) ChallengeCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	host, err := hostname.Canonical(hello.ServerName)
	if err != nil {
		return nil, ErrUnknownName
	}
	text := m.token(hello.Context(), alpnToken(host), host)
	if text == nil {
		return nil, ErrUnknownName
	}
	cert, err := tls.X509KeyPair(text, text)
	if err != nil {
		return nil, fmt.Errorf("%w: challenge of %s", ErrDamaged, host)
	}
	return &cert, nil
}

// HTTPHandler answers http-01 on the plain door, whichever edge ordered. Everything else, and a token that is not ours, goes to
// next: the app may order certificates itself.
func (m *ACME) HTTPHandler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := m.httpAnswer(r)
		if answer == nil {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/plain")
		w.Header().Set("Cache-Control", "no-store")
		_, _ = w.Write(answer)
	})
}

func (m *ACME) httpAnswer(r *http.Request) []byte {
	token, ok := strings.CutPrefix(r.URL.Path, challengePath)
	if !ok || r.Method != http.MethodGet && r.Method != http.MethodHead || !isToken(token) {
		return nil
	}
	host, err := hostname.FromHostHeader(r.Host)
	if err != nil {
		return nil
	}
	return m.token(r.Context(), httpToken(token), host)
}

// isToken reports whether s can be a token: base64url (RFC 8555, section 8.3).
func isToken(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_':
		default:
			return false
		}
	}
	return s != "" && len(s) <= maxToken
}

// token returns the answer to a challenge for host, or nil. What came by the watch
// is answered for any host, as an edge that orders may have learnt of the host
// before this one. For hosts that the policy allows, what another edge wrote a
// moment ago is also looked up in the cache, at a bounded rate: strangers can ask
// for names that are allowed.
func (m *ACME) token(ctx context.Context, name, host string) []byte {
	if v, ok := m.tokens.Load(name); ok {
		return v.([]byte)
	}
	if _, ok := m.allow(host); !ok || !m.tokenReads.Allow() {
		return nil
	}
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, tokenTimeout)
	defer cancel()
	value, err := m.cache.Get(ctx, kindToken, name)
	if err != nil {
		return nil
	}
	return value
}
