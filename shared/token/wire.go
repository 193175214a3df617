package token

import (
	"errors"
	"fmt"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// wire is the claims set as it is signed. Pointers tell absent from zero; times
// are whole seconds and nothing else, because a float can hide a different time
// from each of two readers. aud is one string: a token belongs to one network.
type wire struct {
	Issuer      string            `json:"iss"`
	Audience    string            `json:"aud"`
	ID          string            `json:"jti"`
	Name        string            `json:"sub,omitempty"`
	Hosts       []string          `json:"hosts"`
	Kinds       []string          `json:"kinds,omitempty"`
	Tags        map[string]string `json:"tags,omitempty"`
	Limits      *Limits           `json:"limits,omitempty"`
	AppProtocol string            `json:"app_protocol,omitempty"`
	IssuedAt    *int64            `json:"iat"`
	NotBefore   *int64            `json:"nbf"`
	ExpiresAt   *int64            `json:"exp"`
}

// headerNames and claimNames are the only names that have a meaning here.
var (
	headerNames = []string{"alg", "kid", "typ"}
	claimNames  = []string{
		"iss", "aud", "jti", "sub", "hosts", "kinds", "tags", "limits",
		"app_protocol", "iat", "nbf", "exp", "cnf",
	}
)

// errTime is a time claim that is no date of a token.
var errTime = errors.New("time out of range")

// maxSeconds is the end of the year 9999, the last that RFC 3339 can write.
const maxSeconds = 253402300799

func numericDate(name string, seconds *int64) (*jwt.NumericDate, error) {
	if seconds == nil {
		return nil, nil
	}
	if *seconds <= 0 || *seconds > maxSeconds {
		return nil, fmt.Errorf("%s: %w", name, errTime)
	}
	return jwt.NewNumericDate(time.Unix(*seconds, 0)), nil
}

// The methods that make wire a jwt.Claims.

func (w *wire) GetExpirationTime() (*jwt.NumericDate, error) { return numericDate("exp", w.ExpiresAt) }

func (w *wire) GetIssuedAt() (*jwt.NumericDate, error) { return numericDate("iat", w.IssuedAt) }

func (w *wire) GetNotBefore() (*jwt.NumericDate, error) { return numericDate("nbf", w.NotBefore) }
func (w *wire) GetIssuer() (string, error)              { return w.Issuer, nil }
func (w *wire) GetSubject() (string, error)             { return w.Name, nil }
func (w *wire) GetAudience() (jwt.ClaimStrings, error)  { return jwt.ClaimStrings{w.Audience}, nil }

// claims converts what was read; times must have been checked to be present.
func (w *wire) claims(kid string) *Claims {
	c := &Claims{
		ID: w.ID, Name: w.Name, Hosts: w.Hosts, Kinds: w.Kinds, Tags: w.Tags,
		AppProtocol: w.AppProtocol, KeyID: kid,
		IssuedAt: seconds(w.IssuedAt), NotBefore: seconds(w.NotBefore), ExpiresAt: seconds(w.ExpiresAt),
	}
	if len(c.Kinds) == 0 {
		c.Kinds = []string{KindHTTP}
	}
	if w.Limits != nil {
		c.Limits = *w.Limits
	}
	return c
}

func seconds(s *int64) time.Time {
	if s == nil {
		return time.Time{}
	}
	return time.Unix(*s, 0).UTC()
}
