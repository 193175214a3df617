package nameserver

import (
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"strings"
)

// Place says which regions are near to the clients of a network, the nearest first.
type Place struct {
	Prefix  netip.Prefix
	Regions []string
}

// ParsePlace reads "PREFIX=REGION", or "PREFIX=REGION/REGION…" with the nearest
// first.
func ParsePlace(text string) (Place, error) {
	where, regions, ok := strings.Cut(text, "=")
	if !ok {
		return Place{}, fmt.Errorf("%q is not PREFIX=REGION", text)
	}
	prefix, err := netip.ParsePrefix(strings.TrimSpace(where))
	if err != nil {
		return Place{}, fmt.Errorf("%q is not a network such as 192.0.2.0/24", where)
	}
	if prefix != prefix.Masked() {
		return Place{}, fmt.Errorf("%s has bits beyond its length: write %s", prefix, prefix.Masked())
	}
	if prefix.Addr().Is4In6() {
		return Place{}, errors.New("write networks of IPv4 as such")
	}
	p := Place{Prefix: prefix}
	for region := range strings.SplitSeq(regions, "/") {
		if region = strings.TrimSpace(region); region == "" {
			return Place{}, fmt.Errorf("%q names an empty region", text)
		}
		p.Regions = append(p.Regions, region)
	}
	return p, nil
}

// locate finds the place of addr. scope is the length of the prefix around addr for
// all of which the answer is the same (RFC 7871, section 7.2.1).
func locate(places []Place, addr netip.Addr) (regions []string, scope int) {
	found := -1
	for i, p := range places {
		if p.Prefix.Contains(addr) && (found < 0 || p.Prefix.Bits() > places[found].Prefix.Bits()) {
			found = i
		}
	}
	if found >= 0 {
		regions, scope = places[found].Regions, places[found].Prefix.Bits()
	}
	// A more special place beside addr, inside the one found, narrows it.
	for _, p := range places {
		if p.Prefix.Addr().BitLen() == addr.BitLen() && p.Prefix.Bits() > scope {
			if same := common(p.Prefix.Addr(), addr); same >= scope {
				scope = same + 1
			}
		}
	}
	return regions, min(scope, addr.BitLen())
}

// common counts the leading bits that a and b, of one family, share.
func common(a, b netip.Addr) int {
	x, y := a.AsSlice(), b.AsSlice()
	for i := range x {
		if d := x[i] ^ y[i]; d != 0 {
			return 8*i + bits.LeadingZeros8(d)
		}
	}
	return a.BitLen()
}
