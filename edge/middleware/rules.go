package middleware

import (
	"net/http"
	"net/netip"
	"strings"
	"time"

	"wormhole/edge/site"
	"wormhole/shared/hostname"
)

// Rules holds requests to the rules of their site that concern the client: the
// networks it may come from, the size of its request head, how often it may ask,
// and, over TLS, Strict-Transport-Security. Requests for no known site go to next
// untouched. limiter may be shared.
func Rules(sites Lookup, limiter *Limiter, refuse Refuse) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			host, err := hostname.FromHostHeader(r.Host)
			if err != nil {
				next.ServeHTTP(w, r)
				return
			}
			s, ok := sites.Lookup(host)
			if !ok {
				next.ServeHTTP(w, r)
				return
			}
			rules := s.Rules()
			if refusal := judge(r, s, rules, limiter); refusal.Status != 0 {
				refuse(w, r, refusal)
				return
			}
			if rules.HSTS != "" && r.TLS != nil { // RFC 6797, section 7.2: never over plain HTTP
				w.Header()["Strict-Transport-Security"] = []string{rules.HSTS}
			}
			next.ServeHTTP(w, r)
		})
	}
}

// judge returns why a request is refused; Status is 0 if it is not.
func judge(r *http.Request, s *site.Site, rules *site.Rules, limiter *Limiter) Refusal {
	if rules.MaxHeader > 0 && headSize(r) > rules.MaxHeader {
		return Refusal{Status: http.StatusRequestHeaderFieldsTooLarge, Code: "header_too_large", Text: "The request's header is larger than this site allows."}
	}
	limited := rules.RateLimit.PerSecond > 0
	if len(rules.Allow) == 0 && len(rules.Deny) == 0 && !limited {
		return Refusal{}
	}
	client := clientAddr(r, rules.TrustedProxies)
	if contains(rules.Deny, client) || len(rules.Allow) > 0 && !contains(rules.Allow, client) {
		return Refusal{Status: http.StatusForbidden, Code: "forbidden", Text: "This site does not serve your address."}
	}
	if limited {
		if wait := limiter.take(s, client, rules.RateLimit, time.Now()); wait > 0 {
			return Refusal{Status: http.StatusTooManyRequests, Code: "rate_limited", Text: "Too many requests.", RetryAfter: wait}
		}
	}
	return Refusal{}
}

// headSize is the length of the request's head as HTTP/1.1 writes it.
func headSize(r *http.Request) int {
	n := len(r.Method) + len(" ") + len(r.RequestURI) + len(" HTTP/1.1\r\n") + len("Host: \r\n") + len(r.Host)
	for name, values := range r.Header {
		for _, v := range values {
			n += len(name) + len(": \r\n") + len(v)
		}
	}
	return n
}

// clientAddr is the address of the client: of the connection, or, if that is a
// trusted proxy, the last one in X-Forwarded-For that is not. It is invalid if
// nobody can say, and then in no network.
func clientAddr(r *http.Request, trusted []netip.Prefix) netip.Addr {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	client := plain(peer.Addr())
	if len(trusted) == 0 || !contains(trusted, client) {
		return client
	}
	chain := strings.Split(strings.Join(r.Header["X-Forwarded-For"], ","), ",")
	for i := len(chain) - 1; i >= 0; i-- {
		hop, err := netip.ParseAddr(strings.TrimSpace(chain[i]))
		if err != nil {
			break
		}
		client = plain(hop)
		if !contains(trusted, client) {
			break
		}
	}
	return client
}

func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

func contains(networks []netip.Prefix, a netip.Addr) bool {
	for _, n := range networks {
		if n.Contains(a) {
			return true
		}
	}
	return false
}
