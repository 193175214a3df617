package token

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"wormhole/shared/hostname"
)

// Mint signs c with key, which verifiers know as kid, for the network audience.
// c.KeyID is ignored; hosts are brought into canonical form; no kinds means HTTP;
// no NotBefore means from IssuedAt on. The error lists every fault of c. Mint
// refuses to make a token that is larger than MaxMintSize.
func Mint(key ed25519.PrivateKey, kid, audience string, c Claims) (string, error) {
	var faults []error
	if len(key) != ed25519.PrivateKeySize {
		faults = append(faults, errors.New("the signing key is no Ed25519 key"))
	}
	if !validID(kid) {
		faults = append(faults, fmt.Errorf("key id %q is not 1 to 64 of the characters A-Z a-z 0-9 _ -", clip(kid)))
	}
	if audience == "" {
		faults = append(faults, errors.New("no audience"))
	}
	if c.IssuedAt.IsZero() {
		faults = append(faults, errors.New("no time of issue"))
	}
	c.Hosts = canonicalHosts(c.Hosts)
	if len(c.Kinds) == 0 {
		c.Kinds = []string{KindHTTP}
	}
	if c.NotBefore.IsZero() {
		c.NotBefore = c.IssuedAt
	}
	faults = append(faults, c.Validate())
	for _, t := range []time.Time{c.IssuedAt, c.NotBefore, c.ExpiresAt} {
		if s := t.Unix(); !t.IsZero() && (s <= 0 || s > maxSeconds) {
			faults = append(faults, fmt.Errorf("time %d seconds from 1970 is out of range", s))
		}
	}
	if err := errors.Join(faults...); err != nil {
		return "", fmt.Errorf("mint token: %w", err)
	}

	iat, nbf, exp := c.IssuedAt.Unix(), c.NotBefore.Unix(), c.ExpiresAt.Unix()
	w := &wire{
		Issuer: Issuer, Audience: audience, ID: c.ID, Name: c.Name,
		Hosts: c.Hosts, Kinds: c.Kinds, Tags: c.Tags, AppProtocol: c.AppProtocol,
		IssuedAt: &iat, NotBefore: &nbf, ExpiresAt: &exp,
	}
	if c.Limits != (Limits{}) {
		w.Limits = &c.Limits
	}
	t := jwt.NewWithClaims(jwt.SigningMethodEdDSA, w)
	t.Header["kid"] = kid
	raw, err := t.SignedString(key)
	if err != nil {
		return "", fmt.Errorf("mint token: %w", err)
	}
	if len(raw) > MaxMintSize {
		return "", fmt.Errorf("mint token: it would be %d bytes long, and the most is %d: use fewer hosts or tags", len(raw), MaxMintSize)
	}
	return raw, nil
}

// canonicalHosts leaves a host that has no canonical form as it is, for Validate
// to complain of.
func canonicalHosts(hosts []string) []string {
	canonical := make([]string, 0, len(hosts))
	for _, h := range hosts {
		if c, err := hostname.CanonicalPattern(h); err == nil {
			h = c
		}
		canonical = append(canonical, h)
	}
	return canonical
}

// oneLine writes joined errors in one sentence.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
