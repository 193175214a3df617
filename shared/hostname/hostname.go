// Package hostname is the one normaliser of host names: server names in TLS,
// Host headers, hosts in tokens and sites, keys of certificates. Two parts of
// the network that compare names compare what this package returns, so that no
// spelling of a name can mean one site to one part and another site to the next.
//
// A canonical host is ASCII, in lower case, of labels with letters, digits and
// inner hyphens, each at most 63 bytes, 253 in all, without port and without the
// root's dot; labels in other scripts are A-labels (RFC 5891) that decode to what
// the IDNA lookup profile (UTS #46, non-transitional) maps to themselves. It is
// never an IP address in any notation.
//
// All functions are pure and may be called concurrently.
package hostname

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
	"golang.org/x/net/publicsuffix"
)

// MaxLength is the longest host name in bytes: 255 octets on the wire (RFC 1035,
// section 2.3.4) less the first length octet and the root.
const MaxLength = 253

const (
	maxLabel = 63
	// maxInput bounds what is given to the IDNA tables; no name that is longer can
	// shrink to MaxLength in any sensible use.
	maxInput = 4 * MaxLength
)

// ErrInvalid is wrapped by every error of this package.
var ErrInvalid = errors.New("not a host name")

// refuse says why s is no host name. It quotes at most what a log line can bear.
func refuse(s, why string) error {
	const most = 80
	if len(s) > most {
		s = s[:most] + "..."
	}
	return fmt.Errorf("%q is %w: %s", s, ErrInvalid, why)
}

// Canonical returns the canonical form of the host name s. One trailing dot is
// dropped. A port, an IP address, an empty label, a percent sign, an underscore
// and whatever else is not in a host name is an error that wraps ErrInvalid. A
// name that is canonical already is returned as it is, without allocation.
func Canonical(s string) (string, error) {
	if isCanonical(s) {
		return s, nil
	}
	if s == "" {
		return "", refuse(s, "it is empty")
	}
	if len(s) > maxInput {
		return "", refuse(s, "it is too long")
	}
	host := s
	if !isASCII(host) {
		// The mapping also turns the ideographic full stops into dots.
		mapped, err := idna.Lookup.ToASCII(host)
		if err != nil {
			return "", refuse(s, "it is not valid under IDNA")
		}
		host = mapped
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if why := fault(host); why != "" {
		return "", refuse(s, why)
	}
	if hasALabel(host) && !validALabels(host) {
		return "", refuse(s, "an xn-- label does not decode to a valid name")
	}
	return host, nil
}

// CanonicalPattern is Canonical for names that may begin with the label "*",
// which stands for exactly one label. The rest must be a host name below which
// one owner can hold all names: not a public suffix such as "com" or "co.uk".
// Names outside the public registries ("localhost", "test", "internal") are
// allowed, and so are the suffixes that companies list for their own customers,
// because the operator of this network may be that company.
func CanonicalPattern(s string) (string, error) {
	parent, wild := strings.CutPrefix(s, "*.")
	if !wild {
		return Canonical(s)
	}
	host, err := Canonical(parent)
	if err != nil {
		return "", refuse(s, "what follows the asterisk is not a host name")
	}
	if len(host)+len("*.") > MaxLength {
		return "", refuse(s, "it is too long")
	}
	if suffix, icann := publicsuffix.PublicSuffix(host); icann && suffix == host {
		return "", refuse(s, "a wildcard over a public suffix has no single owner")
	}
	return "*." + host, nil
}

// FromHostHeader returns the canonical host of a Host header or an :authority
// (RFC 9110, section 7.2): a name, or a name, a colon and a port in decimal. Bytes
// beyond ASCII are refused, as no client sends them unencoded.
func FromHostHeader(hostport string) (string, error) {
	host := hostport
	if i := strings.IndexByte(hostport, ':'); i >= 0 {
		host = hostport[:i]
		if !validPort(hostport[i+1:]) {
			return "", refuse(hostport, "what follows the colon is not a port")
		}
	}
	if !isASCII(host) {
		return "", refuse(hostport, "it is not ASCII")
	}
	return Canonical(host)
}

// Match reports whether pattern, which may be a wildcard, stands for host. Both
// must be canonical. "*.a" stands for "b.a" but neither for "a" nor for "c.b.a".
func Match(pattern, host string) bool {
	if pattern == host {
		return !IsWildcard(host)
	}
	if !IsWildcard(pattern) {
		return false
	}
	parent := Parent(host)
	return parent != "" && parent == pattern[len("*."):] && !IsWildcard(host)
}

// Covers reports whether whoever was granted the pattern granted may serve the
// pattern asked. Both must be canonical. A wildcard covers itself and the names
// it stands for, and no other wildcard.
func Covers(granted, asked string) bool {
	return granted == asked || Match(granted, asked)
}

// IsWildcard reports whether the canonical pattern is a wildcard.
func IsWildcard(pattern string) bool { return strings.HasPrefix(pattern, "*.") }

// Parent is what follows the first label of a canonical host or pattern, empty
// if it has one label only.
func Parent(host string) string {
	_, parent, _ := strings.Cut(host, ".")
	return parent
}

// isCanonical is the short way for names that need no change. It leaves names
// with A-labels to the long way.
func isCanonical(s string) bool {
	return fault(s) == "" && !hasALabel(s)
}

// fault says what keeps s from being canonical, A-labels aside.
func fault(s string) string {
	if s == "" || len(s) > MaxLength {
		return "it is empty or too long"
	}
	label := 0 // where the current label begins
	for i := 0; i <= len(s); i++ {
		if i < len(s) && s[i] != '.' {
			if c := s[i]; c != '-' && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
				return "it holds a byte that no host name may hold"
			}
			continue
		}
		switch {
		case i == label:
			return "it holds an empty label"
		case i-label > maxLabel:
			return "it holds a label of more than 63 bytes"
		case s[label] == '-' || s[i-1] == '-':
			return "a label begins or ends with a hyphen"
		}
		if i == len(s) && isNumber(s[label:]) {
			return "it is an IP address or ends in a number"
		}
		label = i + 1
	}
	return ""
}

// isNumber reports whether a last label makes resolvers read the whole name as
// an IPv4 address: decimal or octal digits, or 0x and hexadecimal ones (the URL
// standard of WHATWG, "ends in a number"). No top-level domain looks like that.
func isNumber(label string) bool {
	hex, isHex := strings.CutPrefix(label, "0x")
	for i := range len(hex) {
		c := hex[i]
		if c >= '0' && c <= '9' || isHex && c >= 'a' && c <= 'f' {
			continue
		}
		return false
	}
	return true
}

func hasALabel(host string) bool {
	return strings.HasPrefix(host, "xn--") || strings.Contains(host, ".xn--")
}

// validALabels reports whether every A-label of host decodes to text in another
// script that encodes to the same label again.
func validALabels(host string) bool {
	for label := range strings.SplitSeq(host, ".") {
		if !strings.HasPrefix(label, "xn--") {
			continue
		}
		text, err := idna.Lookup.ToUnicode(label)
		if err != nil || isASCII(text) {
			return false
		}
		back, err := idna.Lookup.ToASCII(text)
		if err != nil || back != label {
			return false
		}
	}
	return true
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

func validPort(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	n, err := strconv.Atoi(s)
	return err == nil && n >= 1 && n <= 65535 && len(s) <= 5
}
