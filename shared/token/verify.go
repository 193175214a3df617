package token

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"wormhole/shared/protocol"
)

// Keys are the public keys that a verifier trusts, by key id.
type Keys map[string]ed25519.PublicKey

// Verify returns the claims of raw if it is a token of the network audience,
// signed by one of keys and valid at now, give or take Leeway. Otherwise the
// claims are nil and the error is an *Error. It does not know of revocations.
// It is safe for concurrent use as long as nobody writes to keys.
func Verify(raw string, keys Keys, audience string, now time.Time) (*Claims, error) {
	if audience == "" {
		return nil, &Error{Code: protocol.CodeInternal, Reason: "the edge does not know its own network, so it can accept no token"}
	}
	kid, err := check(raw)
	if err != nil {
		return nil, err
	}
	key, ok := keys[kid]
	if !ok || len(key) != ed25519.PublicKeySize {
		return nil, &Error{
			Code:   protocol.CodeTokenSignature,
			Reason: fmt.Sprintf("the token is signed by the key %q, which this network does not have (any more): issue a new token", kid),
		}
	}

	var w wire
	parser := jwt.NewParser(
		jwt.WithValidMethods([]string{jwt.SigningMethodEdDSA.Alg()}),
		jwt.WithStrictDecoding(),
		jwt.WithIssuer(Issuer),
		jwt.WithAudience(audience),
		jwt.WithExpirationRequired(),
		jwt.WithNotBeforeRequired(),
		jwt.WithIssuedAt(),
		jwt.WithLeeway(Leeway),
		jwt.WithTimeFunc(func() time.Time { return now }),
	)
	_, err = parser.ParseWithClaims(raw, &w, func(*jwt.Token) (any, error) { return key, nil })
	if err != nil {
		return nil, refusal(err, &w, audience, now)
	}
	if w.IssuedAt == nil {
		return nil, malformed("the token does not say when it was issued")
	}
	c := w.claims(kid)
	if err := c.Validate(); err != nil {
		return nil, malformed("the token's claims are wrong: %s", oneLine(err))
	}
	return c, nil
}

// check looks at the form of a token, before any signature, and returns its kid.
func check(raw string) (kid string, err error) {
	header, claims, err := split(raw)
	if err != nil {
		return "", malformed("this is not a token: %v", err)
	}
	text, err := decodeObject(header, headerNames)
	if err != nil {
		return "", malformed("the token's header is wrong: %v", err)
	}
	var members map[string]any
	if err := json.Unmarshal(text, &members); err != nil {
		return "", malformed("the token's header is wrong: it is not valid JSON")
	}
	for name := range members {
		// crit (RFC 7515, section 4.1.11) asks for extensions, and there are none;
		// jku, jwk, x5u and their like offer a key, and none is ever taken.
		if !slices.Contains(headerNames, name) {
			return "", malformed("the token's header holds %q, which is not allowed", clip(name))
		}
	}
	if alg := members["alg"]; alg != jwt.SigningMethodEdDSA.Alg() {
		return "", malformed("the token is not signed with the algorithm %s", jwt.SigningMethodEdDSA.Alg())
	}
	if typ, ok := members["typ"]; ok && typ != "JWT" {
		return "", malformed("the token's type is not JWT")
	}
	kid, ok := members["kid"].(string)
	if !ok || !validID(kid) {
		return "", malformed("the token does not name its key properly")
	}
	text, err = decodeObject(claims, claimNames)
	if err != nil {
		return "", malformed("the token's claims are wrong: %v", err)
	}
	// A token bound to an agent's key (RFC 7800) must not be taken by an edge that
	// cannot check the binding.
	var bound struct {
		Confirmation json.RawMessage `json:"cnf"`
	}
	if json.Unmarshal(text, &bound) != nil || bound.Confirmation != nil {
		return "", malformed("the token is bound to an agent's key (cnf), which this edge cannot check")
	}
	return kid, nil
}

// refusal says why the parser refused a token. The order matters: a token whose
// signature is wrong gets no answer about its claims, and one for another network
// none about its times.
func refusal(err error, w *wire, audience string, now time.Time) *Error {
	switch {
	case errors.Is(err, jwt.ErrTokenSignatureInvalid):
		return &Error{Code: protocol.CodeTokenSignature, Reason: "the token's signature is wrong"}
	case errors.Is(err, jwt.ErrTokenRequiredClaimMissing):
		return malformed("the token lacks a required claim (iss, aud, nbf and exp are required)")
	case errors.Is(err, jwt.ErrTokenInvalidIssuer):
		return malformed("the token was not issued by %s", Issuer)
	case errors.Is(err, jwt.ErrTokenInvalidAudience):
		return &Error{
			Code:   protocol.CodeTokenAudience,
			Reason: fmt.Sprintf("the token is for the network %q, and this edge belongs to %q", clip(w.Audience), audience),
		}
	case errors.Is(err, errTime):
		return malformed("the token holds a time that cannot be")
	case errors.Is(err, jwt.ErrTokenExpired):
		return &Error{
			Code: protocol.CodeTokenExpired,
			Reason: fmt.Sprintf("the token expired at %s, and by this edge's clock it is %s: issue a new token, unless a clock is wrong",
				stamp(seconds(w.ExpiresAt)), stamp(now)),
		}
	case errors.Is(err, jwt.ErrTokenNotValidYet), errors.Is(err, jwt.ErrTokenUsedBeforeIssued):
		from := seconds(w.NotBefore)
		if iat := seconds(w.IssuedAt); iat.After(from) {
			from = iat
		}
		return &Error{
			Code: protocol.CodeTokenNotYetValid,
			Reason: fmt.Sprintf("the token is not valid before %s, and by this edge's clock it is %s: compare the clocks of this edge and of the machine that issued the token",
				stamp(from), stamp(now)),
		}
	}
	return malformed("this is not a token that can be read")
}
