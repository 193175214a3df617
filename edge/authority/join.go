package authority

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"wormhole/shared/token"
)

// Lives of join tokens.
const (
	DefaultJoinTTL = 15 * time.Minute
	MaxJoinTTL     = 24 * time.Hour
)

// kindJoin is what a join token allows, and the only thing.
const kindJoin = "join"

// joinClaims are those of a token that makes a machine an edge of the network. Its
// audience is not the agents' one, so that neither token is good for the other.
type joinClaims struct {
	jwt.RegisteredClaims
	Kinds []string `json:"kinds"`
	// CA is the fingerprint of the authority by which a newcomer knows a member.
	CA string `json:"ca"`
}

// IssueJoin signs a token with which a newcomer may join, and may recognise
// members by the fingerprint ca. It is not recorded: its life is short.
func (a *Authority) IssueJoin(ca string, ttl time.Duration) (raw string, expires time.Time, err error) {
	if ttl == 0 {
		ttl = DefaultJoinTTL
	}
	if ttl < time.Second || ttl > MaxJoinTTL {
		return "", time.Time{}, fmt.Errorf("ttl %s is not between 1s and %s", ttl, MaxJoinTTL)
	}
	r, now := a.ring.Load(), a.now().UTC().Truncate(time.Second)
	expires = now.Add(ttl)
	t := jwt.NewWithClaims(jwt.SigningMethodEdDSA, joinClaims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer: token.Issuer, Audience: jwt.ClaimStrings{joinAudience(r.Network)}, ID: randomID(),
			IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(expires),
		},
		Kinds: []string{kindJoin}, CA: ca,
	})
	t.Header["kid"] = r.Active
	raw, err = t.SignedString(r.private)
	return raw, expires, err
}

// VerifyJoin returns the id of a join token that is valid now.
func (a *Authority) VerifyJoin(_ context.Context, raw string) (id string, err error) {
	if len(raw) > token.MaxSize {
		return "", errors.New("this is not a join token")
	}
	r := a.ring.Load()
	var c joinClaims
	parser := jwt.NewParser(
		jwt.WithValidMethods([]string{jwt.SigningMethodEdDSA.Alg()}), jwt.WithStrictDecoding(),
		jwt.WithIssuer(token.Issuer), jwt.WithAudience(joinAudience(r.Network)),
		jwt.WithExpirationRequired(), jwt.WithNotBeforeRequired(), jwt.WithIssuedAt(), jwt.WithLeeway(token.Leeway),
		jwt.WithTimeFunc(a.now),
	)
	_, err = parser.ParseWithClaims(raw, &c, func(t *jwt.Token) (any, error) {
		kid, _ := t.Header["kid"].(string)
		key, ok := r.public[kid]
		if !ok {
			return nil, errors.New("unknown key")
		}
		return key, nil
	})
	switch {
	case errors.Is(err, jwt.ErrTokenExpired):
		return "", errors.New("the join token has expired: make a new one with `edge cluster join-token`")
	case errors.Is(err, jwt.ErrTokenInvalidAudience):
		return "", errors.New("the token is not a join token of this network")
	case err != nil:
		return "", errors.New("the join token is not valid on this network")
	case len(c.Kinds) != 1 || c.Kinds[0] != kindJoin || c.ID == "":
		return "", errors.New("the token does not allow joining")
	}
	return c.ID, nil
}

// PeekJoin reads the fingerprint in a join token without verifying it: the
// newcomer that holds the token got it from an operator, and cannot verify more.
func PeekJoin(raw string) (ca string, err error) {
	var c joinClaims
	_, _, err = jwt.NewParser().ParseUnverified(strings.TrimSpace(raw), &c)
	if err != nil || len(c.CA) != 64 {
		return "", errors.New("this is not a join token: `edge cluster join-token` on a member prints one")
	}
	return c.CA, nil
}

func joinAudience(network string) string { return network + "/join" }
