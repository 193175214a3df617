package site

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Spec is what an operator says about one site. Everything but the host may be
// left out and then has the default that Compile documents. Parse reads it from
// YAML or JSON; encoding/json writes it in the form that Parse reads.
type Spec struct {
	// Host is an exact host name, or "*.parent" for all names one label below.
	Host string `json:"host"`
	// RedirectHTTP sends plain HTTP requests to https (default true).
	RedirectHTTP *bool `json:"redirect_http,omitempty"`
	// HSTS makes browsers insist on https from then on (default off).
	HSTS *HSTS `json:"hsts,omitempty"`
	// BackendHeader names a response header that tells which backend answered
	// (default none).
	BackendHeader string `json:"backend_header,omitempty"`
	// AppProtocol is what the apps speak, "http1" or "h2c" (default: what each
	// agent says).
	AppProtocol string `json:"app_protocol,omitempty"`
	// MaxBody is the largest request body (default 0: no limit).
	MaxBody Size `json:"max_body,omitempty"`
	// MaxHeader is the largest request head, less than the edge's own 64KiB
	// (default: that).
	MaxHeader Size `json:"max_header,omitempty"`
	// ResponseTimeout is how long an app may think before its answer begins
	// (default 60s).
	ResponseTimeout Duration `json:"response_timeout,omitempty"`
	// IdleTimeout cuts a client that makes no progress in sending its body or in
	// taking the answer (default 60s).
	IdleTimeout Duration `json:"idle_timeout,omitempty"`
	// Parking holds requests while no backend is there.
	Parking *Parking `json:"parking,omitempty"`
	// StrictSNI refuses requests whose host is not the one of the TLS handshake
	// (default true).
	StrictSNI *bool `json:"strict_sni,omitempty"`
	// AllowUpgrade lets WebSocket through (default true).
	AllowUpgrade *bool `json:"allow_upgrade,omitempty"`
	// TCP gives the site a raw TCP port of the edge (default none).
	TCP *TCP `json:"tcp,omitempty"`
	// RequestHeaders and ResponseHeaders change what the app and the client see.
	RequestHeaders  *Headers `json:"request_headers,omitempty"`
	ResponseHeaders *Headers `json:"response_headers,omitempty"`
	// RateLimit bounds the requests (default none).
	RateLimit *RateLimit `json:"rate_limit,omitempty"`
	// Allow and Deny are networks in CIDR form, or single addresses, of clients.
	// Deny wins; a non-empty Allow refuses everybody else.
	Allow []string `json:"allow,omitempty"`
	Deny  []string `json:"deny,omitempty"`
	// TrustedProxies are networks from which X-Forwarded-* is believed, besides
	// those of the edge.
	TrustedProxies []string `json:"trusted_proxies,omitempty"`
}

// HSTS is the Strict-Transport-Security header (RFC 6797).
type HSTS struct {
	// MaxAge is how long browsers remember (default one year).
	MaxAge            Duration `json:"max_age,omitempty"`
	IncludeSubdomains bool     `json:"include_subdomains,omitempty"`
	Preload           bool     `json:"preload,omitempty"`
}

// Parking bounds how long and how many requests wait for a backend to come back.
type Parking struct {
	// Wait is how long one request waits (default 5s; "0s" turns parking off).
	Wait *Duration `json:"wait,omitempty"`
	// Max is how many wait at once (default 100).
	Max *int `json:"max,omitempty"`
}

// TCP is a port of the edge that belongs to one site: each connection to it is one
// connection to one of the site's apps, whatever it carries. It may also be written
// as the value of Listen alone: "tcp: 5432".
type TCP struct {
	// Listen is a port, or host:port. A port alone listens where the edge's --https
	// does; 0 takes any free one.
	Listen string `json:"listen"`
	// MaxConnections is how many may be open at once (default 1000).
	MaxConnections int `json:"max_connections,omitempty"`
	// IdleTimeout cuts a connection in which no byte moved in either direction
	// (default 2h).
	IdleTimeout Duration `json:"idle_timeout,omitempty"`
}

// Headers are changes to a head: first Remove, then Set.
type Headers struct {
	Set    map[string]string `json:"set,omitempty"`
	Remove []string          `json:"remove,omitempty"`
}

// RateLimit is a token bucket.
type RateLimit struct {
	// RequestsPerSecond refill the bucket.
	RequestsPerSecond float64 `json:"requests_per_second"`
	// Burst is the bucket's size (default: one second's worth, at least 1).
	Burst int `json:"burst,omitempty"`
	// Per is "client" (default), one bucket for each address, or "site", one for all.
	Per string `json:"per,omitempty"`
}

// Duration is a time.Duration that is written as Go writes it: "1m30s".
type Duration time.Duration

// MarshalJSON writes the duration as text.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

func parseDuration(v any) (Duration, error) {
	s, ok := v.(string)
	if !ok {
		return 0, fmt.Errorf(`want a duration such as "30s", got %s`, describe(v))
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf(`want a duration such as "30s", got %q`, clip(s))
	}
	if d < 0 {
		return 0, fmt.Errorf("want a duration that is not negative, got %q", clip(s))
	}
	return Duration(d), nil
}

// Size is a number of bytes that is written with a binary unit: "64KiB".
type Size int64

// MarshalJSON writes the size with the largest unit that divides it.
func (s Size) MarshalJSON() ([]byte, error) {
	for i := len(units) - 1; i >= 0; i-- {
		if u := units[i]; s != 0 && int64(s)%u.bytes == 0 {
			return json.Marshal(strconv.FormatInt(int64(s)/u.bytes, 10) + u.name)
		}
	}
	return json.Marshal(int64(s))
}

// units are ordered by size; a bare number counts bytes.
var units = [...]struct {
	name  string
	bytes int64
}{{"B", 1}, {"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}}

func parseSize(v any) (Size, error) {
	if n, ok := integer(v); ok {
		if n < 0 {
			return 0, fmt.Errorf("want a size that is not negative, got %d", n)
		}
		return Size(n), nil
	}
	s, ok := v.(string)
	if !ok {
		return 0, fmt.Errorf(`want a size such as "10MiB", got %s`, describe(v))
	}
	// From the largest unit down, since every one of them ends in "B".
	for i := len(units) - 1; i >= 0; i-- {
		number, ok := strings.CutSuffix(s, units[i].name)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
		if err != nil || n < 0 || n > math.MaxInt64/units[i].bytes {
			break
		}
		return Size(n * units[i].bytes), nil
	}
	return 0, fmt.Errorf(`want a size such as "10MiB", got %q`, clip(s))
}

// integer returns v as an int64 if it is a whole number.
func integer(v any) (int64, bool) {
	switch n := v.(type) {
	case int:
		return int64(n), true
	case int64:
		return n, true
	case uint64:
		return int64(n), n <= math.MaxInt64
	case float64:
		return int64(n), n == math.Trunc(n) && math.Abs(n) < 1<<53
	}
	return 0, false
}

// describe names the kind of a decoded value for the person who wrote it.
func describe(v any) string {
	switch v := v.(type) {
	case nil:
		return "nothing"
	case string:
		return strconv.Quote(clip(v))
	case bool, int, int64, uint64, float64:
		return fmt.Sprint(v)
	case []any:
		return "a list"
	case map[string]any:
		return "a mapping"
	}
	return "something else"
}

// clip keeps what is quoted in messages short.
func clip(s string) string {
	const most = 60
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
