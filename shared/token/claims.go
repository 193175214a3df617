package token

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"wormhole/shared/hostname"
)

// Issuer is the iss claim of every token.
const Issuer = "wormhole"

// Leeway is by how much the clocks of an issuer and of an edge may differ.
const Leeway = 60 * time.Second

// Sizes in bytes of a whole token.
const (
	// MaxSize is the largest token that Verify looks into. It is what a hello can hold.
	MaxSize = 8 << 10
	// MaxMintSize is the largest token that Mint makes: a hello holds other things too.
	MaxMintSize = 6 << 10
)

// Bounds of single claims.
const (
	MaxHosts    = 100
	MaxTags     = 32
	MaxNameLen  = 128 // bytes
	MaxTagKey   = 64  // bytes
	MaxTagValue = 256 // bytes
)

// The kinds of service a token may allow.
const (
	KindHTTP = "http"
	KindTCP  = "tcp"
	KindTLS  = "tls"
)

// What an app may speak, as in protocol.Hello. Empty means HTTP/1.1.
const (
	AppHTTP1 = "http1"
	AppH2C   = "h2c"
)

// Claims is what a token says. Times have a resolution of one second.
type Claims struct {
	// ID names the token for records and revocation: 1-64 of [A-Za-z0-9_-].
	ID string
	// Name is for people: at most MaxNameLen bytes without control characters.
	Name string
	// Hosts are the host names that may be served, exact or *.parent, canonical.
	Hosts []string
	// Kinds are what may be served under them; never empty in verified claims.
	Kinds []string
	// Tags are given to every backend of this token.
	Tags map[string]string
	// Limits bound what the token's agents may use.
	Limits Limits
	// AppProtocol is what the app speaks when the agent does not say: AppHTTP1,
	// AppH2C or empty.
	AppProtocol string

	IssuedAt  time.Time
	NotBefore time.Time
	ExpiresAt time.Time

	// KeyID names the key that signed the token.
	KeyID string
}

// Limits bound what the holders of one token may use. 0 is the edge's default.
type Limits struct {
	// MaxTunnels is the most tunnels open at one edge.
	MaxTunnels int `json:"max_tunnels,omitempty"`
	// MaxStreams is the most streams open in one tunnel.
	MaxStreams int `json:"max_streams,omitempty"`
}

// AllowsHost reports whether the token permits to serve pattern, an exact host
// name or *.parent in canonical form.
func (c *Claims) AllowsHost(pattern string) bool {
	return slices.ContainsFunc(c.Hosts, func(granted string) bool {
		return hostname.Covers(granted, pattern)
	})
}

// AllowsKind reports whether the token permits to serve kind.
func (c *Claims) AllowsKind(kind string) bool { return slices.Contains(c.Kinds, kind) }

// ExactHosts returns the host names of the token that are no wildcards: what an
// agent serves that names none itself.
func (c *Claims) ExactHosts() []string {
	var exact []string
	for _, h := range c.Hosts {
		if !strings.HasPrefix(h, "*.") {
			exact = append(exact, h)
		}
	}
	return exact
}

// Validate reports every fault of the claims at once, each an error of its own
// joined to the others, or nil. Mint and Verify apply it.
func (c *Claims) Validate() error {
	var faults []error
	add := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }

	if !validID(c.ID) {
		add("id %q is not 1 to 64 of the characters A-Z a-z 0-9 _ -", clip(c.ID))
	}
	if len(c.Name) > MaxNameLen || !printable(c.Name) {
		add("name %q is longer than %d bytes or not printable", clip(c.Name), MaxNameLen)
	}
	faults = append(faults, validateHosts(c.Hosts)...)
	faults = append(faults, validateKinds(c.Kinds)...)
	faults = append(faults, validateTags(c.Tags)...)
	if c.Limits.MaxTunnels < 0 {
		add("limit of tunnels %d is negative", c.Limits.MaxTunnels)
	}
	if c.Limits.MaxStreams < 0 {
		add("limit of streams %d is negative", c.Limits.MaxStreams)
	}
	switch c.AppProtocol {
	case "", AppHTTP1, AppH2C:
	default:
		add("app protocol %q is neither %s nor %s", clip(c.AppProtocol), AppHTTP1, AppH2C)
	}
	if !c.ExpiresAt.After(c.NotBefore) {
		add("expires at %s, which is not after it becomes valid at %s", stamp(c.ExpiresAt), stamp(c.NotBefore))
	}
	return errors.Join(faults...)
}

func validateHosts(hosts []string) (faults []error) {
	if len(hosts) == 0 {
		return []error{errors.New("no host")}
	}
	if len(hosts) > MaxHosts {
		return []error{fmt.Errorf("%d hosts are more than %d", len(hosts), MaxHosts)}
	}
	for i, h := range hosts {
		canonical, err := hostname.CanonicalPattern(h)
		switch {
		case err != nil:
			faults = append(faults, fmt.Errorf("host %q: %w", clip(h), err))
		case canonical != h:
			faults = append(faults, fmt.Errorf("host %q is not in canonical form (%s)", clip(h), canonical))
		case slices.Contains(hosts[:i], h):
			faults = append(faults, fmt.Errorf("host %q is named twice", clip(h)))
		}
	}
	return faults
}

func validateKinds(kinds []string) (faults []error) {
	if len(kinds) == 0 {
		return []error{errors.New("no kind")}
	}
	for i, k := range kinds {
		switch k {
		case KindHTTP, KindTCP, KindTLS:
		default:
			return append(faults, fmt.Errorf("kind %q is none of %s, %s, %s", clip(k), KindHTTP, KindTCP, KindTLS))
		}
		if slices.Contains(kinds[:i], k) {
			return append(faults, fmt.Errorf("kind %q is named twice", k))
		}
	}
	return nil
}

func validateTags(tags map[string]string) (faults []error) {
	if len(tags) > MaxTags {
		return []error{fmt.Errorf("%d tags are more than %d", len(tags), MaxTags)}
	}
	for _, k := range slices.Sorted(maps.Keys(tags)) {
		if !validTagKey(k) {
			faults = append(faults, fmt.Errorf("tag %q is not 1 to %d of the characters A-Z a-z 0-9 . _ / -", clip(k), MaxTagKey))
		}
		if v := tags[k]; len(v) > MaxTagValue || !printable(v) {
			faults = append(faults, fmt.Errorf("value of tag %q is longer than %d bytes or not printable", clip(k), MaxTagValue))
		}
	}
	return faults
}

// Compiled once; a regexp is immutable and safe for concurrent use.
var (
	idForm     = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	tagKeyForm = regexp.MustCompile(`^[A-Za-z0-9._/-]{1,64}$`)
)

// validID is the form of key ids and token ids alike: safe in a file name, a log
// and a URL, so that neither can be used to reach anything else.
func validID(s string) bool { return idForm.MatchString(s) }

func validTagKey(s string) bool { return tagKeyForm.MatchString(s) }

// printable keeps what reaches logs and terminals free of control sequences.
func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// clip bounds what an error repeats of its cause.
func clip(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return s[:most] + "..."
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
