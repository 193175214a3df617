package site

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"wormhole/shared/hostname"
)

// Rules are a site's rules, compiled. They are immutable: a change makes new ones.
type Rules struct {
	// RedirectHTTP sends plain HTTP requests to https.
	RedirectHTTP bool
	// HSTS is the value of Strict-Transport-Security, empty for none.
	HSTS string
	// BackendHeader names the response header that tells which backend answered,
	// in canonical form, empty for none.
	BackendHeader string
	// AppProtocol is "http1", "h2c" or empty for what each agent says.
	AppProtocol string
	// MaxBody is the largest request body in bytes; 0 means no limit.
	MaxBody int64
	// MaxHeader is the largest request head in bytes; 0 means no limit but the
	// server's.
	MaxHeader int
	// ResponseTimeout is how long the app may take until its answer begins.
	ResponseTimeout time.Duration
	// IdleTimeout is how long a client may make no progress.
	IdleTimeout time.Duration
	// ParkingWait and ParkingMax bound the requests held while no backend is there;
	// either being 0 turns parking off.
	ParkingWait time.Duration
	ParkingMax  int
	// StrictSNI refuses requests whose host is not the one of the TLS handshake.
	StrictSNI bool
	// AllowUpgrade lets WebSocket through.
	AllowUpgrade bool
	// TCP is the site's raw TCP port; its zero value is none.
	TCP TCPRules
	// RequestHeaders and ResponseHeaders change what the app and the client see.
	RequestHeaders, ResponseHeaders HeaderChanges
	// RateLimit bounds the requests; its zero value does not.
	RateLimit Rate
	// Allow and Deny are networks of clients. Deny wins; a non-empty Allow refuses
	// everybody else.
	Allow, Deny []netip.Prefix
	// TrustedProxies are networks from which X-Forwarded-* is believed.
	TrustedProxies []netip.Prefix
}

// TCPRules are those of a raw TCP port; see TCP.
type TCPRules struct {
	// Listen is host:port with the host empty for where the edge's --https listens;
	// empty is no port.
	Listen         string
	MaxConnections int
	IdleTimeout    time.Duration
}

// Admits reports whether Allow and Deny let a client in.
func (r *Rules) Admits(client netip.Addr) bool {
	client = client.Unmap().WithZone("")
	within := func(p netip.Prefix) bool { return p.Contains(client) }
	return !slices.ContainsFunc(r.Deny, within) && (len(r.Allow) == 0 || slices.ContainsFunc(r.Allow, within))
}

// HeaderChanges are applied in order: Remove, then Set. Names are canonical.
type HeaderChanges struct {
	Remove []string
	Set    []Header
}

// Empty reports whether nothing changes.
func (c *HeaderChanges) Empty() bool { return len(c.Remove) == 0 && len(c.Set) == 0 }

// Apply changes h.
func (c *HeaderChanges) Apply(h http.Header) {
	for _, name := range c.Remove {
		delete(h, name)
	}
	for _, set := range c.Set {
		h[set.Name] = []string{set.Value}
	}
}

// Header is one header field.
type Header struct{ Name, Value string }

// Rate is a token bucket; PerSecond 0 means no limit.
type Rate struct {
	PerSecond float64
	Burst     int
	// PerClient gives each client address a bucket of its own.
	PerClient bool
}

// MaxHeaderBytes is the largest head the edge's servers take, and so the largest
// that max_header may name.
const MaxHeaderBytes = 64 << 10

// DefaultRules are the rules of a site that no Spec speaks of.
func DefaultRules() *Rules {
	return &Rules{
		RedirectHTTP:    true,
		ResponseTimeout: 60 * time.Second,
		IdleTimeout:     60 * time.Second,
		ParkingWait:     5 * time.Second,
		ParkingMax:      100,
		StrictSNI:       true,
		AllowUpgrade:    true,
	}
}

// Compile checks spec and makes rules of it, with the values of defaults where
// spec says nothing. The error lists every fault with its path.
func Compile(spec Spec, defaults *Rules) (*Rules, error) {
	var f faults
	r := *defaults
	if _, err := hostname.CanonicalPattern(spec.Host); err != nil {
		f.add("host", err)
	}
	override(&r.RedirectHTTP, spec.RedirectHTTP)
	override(&r.StrictSNI, spec.StrictSNI)
	override(&r.AllowUpgrade, spec.AllowUpgrade)
	if spec.HSTS != nil {
		r.HSTS = compileHSTS(&f, *spec.HSTS)
	}
	if spec.BackendHeader != "" {
		r.BackendHeader = headerName(&f, "backend_header", spec.BackendHeader)
	}
	if spec.AppProtocol != "" {
		if spec.AppProtocol != "http1" && spec.AppProtocol != "h2c" {
			f.addf("app_protocol", `want "http1" or "h2c", got %q`, clip(spec.AppProtocol))
		}
		r.AppProtocol = spec.AppProtocol
	}
	if spec.MaxBody != 0 {
		r.MaxBody = int64(spec.MaxBody)
	}
	if spec.MaxHeader != 0 {
		if spec.MaxHeader < 1<<10 || spec.MaxHeader > MaxHeaderBytes {
			f.addf("max_header", "want 1KiB to 64KiB, got %d bytes", int64(spec.MaxHeader))
		}
		r.MaxHeader = int(spec.MaxHeader)
	}
	if spec.ResponseTimeout != 0 {
		r.ResponseTimeout = atLeast(&f, "response_timeout", spec.ResponseTimeout, time.Second)
	}
	if spec.IdleTimeout != 0 {
		r.IdleTimeout = atLeast(&f, "idle_timeout", spec.IdleTimeout, time.Second)
	}
	if p := spec.Parking; p != nil {
		if p.Wait != nil {
			r.ParkingWait = time.Duration(*p.Wait)
			if r.ParkingWait > time.Minute {
				f.addf("parking.wait", "want at most 1m, got %s", r.ParkingWait)
			}
		}
		if p.Max != nil {
			r.ParkingMax = *p.Max
			if *p.Max < 0 || *p.Max > 100_000 {
				f.addf("parking.max", "want 0 to 100000, got %d", *p.Max)
			}
		}
	}
	if spec.TCP != nil {
		r.TCP = compileTCP(&f, spec.Host, *spec.TCP)
	}
	if spec.RequestHeaders != nil {
		r.RequestHeaders = compileHeaders(&f, "request_headers", *spec.RequestHeaders)
	}
	if spec.ResponseHeaders != nil {
		r.ResponseHeaders = compileHeaders(&f, "response_headers", *spec.ResponseHeaders)
	}
	if spec.RateLimit != nil {
		r.RateLimit = compileRate(&f, *spec.RateLimit)
	}
	r.Allow = append(slices.Clip(r.Allow), prefixes(&f, "allow", spec.Allow)...)
	r.Deny = append(slices.Clip(r.Deny), prefixes(&f, "deny", spec.Deny)...)
	r.TrustedProxies = append(slices.Clip(r.TrustedProxies), prefixes(&f, "trusted_proxies", spec.TrustedProxies)...)
	if err := f.err(); err != nil {
		return nil, err
	}
	return &r, nil
}

func override(v, by *bool) {
	if by != nil {
		*v = *by
	}
}

func atLeast(f *faults, path string, d Duration, least time.Duration) time.Duration {
	if time.Duration(d) < least {
		f.addf(path, "want at least %s, got %s", least, time.Duration(d))
	}
	return time.Duration(d)
}

func compileHSTS(f *faults, h HSTS) string {
	const year = 365 * 24 * time.Hour
	age := time.Duration(h.MaxAge)
	if age == 0 {
		age = year
	}
	value := "max-age=" + strconv.FormatInt(int64(age/time.Second), 10)
	if h.IncludeSubdomains {
		value += "; includeSubDomains"
	}
	if h.Preload {
		if !h.IncludeSubdomains || age < year {
			f.addf("hsts.preload", "browsers want include_subdomains and a max_age of a year for that")
		}
		value += "; preload"
	}
	return value
}

// firstPort is the lowest that a site may have: those below are the system's.
const firstPort = 1024

func compileTCP(f *faults, host string, t TCP) TCPRules {
	if strings.HasPrefix(host, "*.") {
		f.addf("tcp", "a port leads to one site, and %s is many: use an exact host", clip(host))
	}
	out := TCPRules{MaxConnections: t.MaxConnections, IdleTimeout: time.Duration(t.IdleTimeout)}
	address, port := "", t.Listen
	if strings.Contains(t.Listen, ":") {
		var err error
		if address, port, err = net.SplitHostPort(t.Listen); err != nil {
			f.addf("tcp.listen", `want a port such as 5432, or an address such as "10.0.0.1:5432", got %q`, clip(t.Listen))
			return out
		}
	}
	if address != "" {
		if _, err := netip.ParseAddr(address); err != nil {
			f.addf("tcp.listen", "%q is not an address of a network interface, such as 10.0.0.1", clip(address))
		}
	}
	switch n, err := strconv.ParseUint(port, 10, 16); {
	case err != nil:
		f.addf("tcp.listen", "%q is not a port: want %d to 65535, or 0 for any free one", clip(port), firstPort)
	case n != 0 && n < firstPort:
		f.addf("tcp.listen", "port %d is not for sites: want %d to 65535, or 0 for any free one", n, firstPort)
	default:
		out.Listen = net.JoinHostPort(address, strconv.FormatUint(n, 10))
	}
	if t.MaxConnections < 0 || t.MaxConnections > 1_000_000 {
		f.addf("tcp.max_connections", "want 1 to 1000000, got %d", t.MaxConnections)
	}
	if out.MaxConnections == 0 {
		out.MaxConnections = 1000
	}
	if t.IdleTimeout == 0 {
		out.IdleTimeout = 2 * time.Hour
	} else {
		atLeast(f, "tcp.idle_timeout", t.IdleTimeout, time.Second)
	}
	return out
}

func compileRate(f *faults, l RateLimit) Rate {
	if !(l.RequestsPerSecond > 0 && l.RequestsPerSecond <= 1e6) {
		f.addf("rate_limit.requests_per_second", "want more than 0 and at most 1000000, got %v", l.RequestsPerSecond)
	}
	if l.Burst < 0 || l.Burst > 1_000_000 {
		f.addf("rate_limit.burst", "want 0 to 1000000, got %d", l.Burst)
	}
	if l.Per != "" && l.Per != "client" && l.Per != "site" {
		f.addf("rate_limit.per", `want "client" or "site", got %q`, clip(l.Per))
	}
	burst := l.Burst
	if burst == 0 {
		burst = max(1, int(math.Ceil(min(l.RequestsPerSecond, 1e6))))
	}
	return Rate{PerSecond: l.RequestsPerSecond, Burst: burst, PerClient: l.Per != "site"}
}

func compileHeaders(f *faults, path string, h Headers) HeaderChanges {
	var c HeaderChanges
	for i, name := range h.Remove {
		c.Remove = append(c.Remove, headerName(f, fmt.Sprintf("%s.remove[%d]", path, i), name))
	}
	for name, value := range h.Set {
		at := path + ".set." + clip(name)
		if !httpguts.ValidHeaderFieldValue(value) {
			f.addf(at, "the value holds bytes that no header may hold")
		}
		c.Set = append(c.Set, Header{headerName(f, at, name), value})
	}
	slices.SortFunc(c.Set, func(a, b Header) int { return strings.Compare(a.Name, b.Name) })
	for i := 1; i < len(c.Set); i++ {
		if c.Set[i].Name == c.Set[i-1].Name {
			f.addf(path+".set."+clip(c.Set[i].Name), "is set twice, in different spellings")
		}
	}
	return c
}

// headerName returns name in canonical form. Names that frame a message or say
// who the client is belong to the edge alone.
func headerName(f *faults, path, name string) string {
	if len(name) > 128 || !httpguts.ValidHeaderFieldName(name) {
		f.addf(path, "%q is not the name of a header", clip(name))
		return name
	}
	canonical := http.CanonicalHeaderKey(name)
	switch canonical {
	case "Host", "Content-Length", "Transfer-Encoding", "Connection", "Keep-Alive", "Upgrade", "Te", "Trailer",
		"Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization", "Expect", "Alt-Svc",
		"Forwarded", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Real-Ip", "X-Request-Id":
		f.addf(path, "%s belongs to the edge", canonical)
	}
	return canonical
}

func prefixes(f *faults, path string, texts []string) []netip.Prefix {
	var out []netip.Prefix
	for i, text := range texts {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			addr, addrErr := netip.ParseAddr(text)
			if addrErr != nil || addr.Zone() != "" {
				f.addf(fmt.Sprintf("%s[%d]", path, i), "%q is neither a network such as 10.0.0.0/8 nor an address", clip(text))
				continue
			}
			prefix = netip.PrefixFrom(addr, addr.BitLen())
		}
		out = append(out, prefix.Masked())
	}
	return out
}

// faults gathers what is wrong with a Spec, each with its path.
type faults struct{ list []error }

func (f *faults) add(path string, err error) {
	f.list = append(f.list, fmt.Errorf("%s: %w", path, err))
}

func (f *faults) addf(path, format string, args ...any) {
	f.add(path, fmt.Errorf(format, args...))
}

func (f *faults) err() error { return errors.Join(f.list...) }
