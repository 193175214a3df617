package token

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Unverified is what a token claims to be, before anybody checked its signature.
// It may help a person or save a useless dial; it must never grant anything.
type Unverified struct {
	ID, Name  string
	Hosts     []string
	Audience  string
	NotBefore time.Time // zero if the token does not say
	ExpiresAt time.Time // zero if the token does not say
	KeyID     string
}

// Peek reads a token without verifying it: for an agent, which has no keys, to
// tell early that a token is garbage or expired. An error means that no edge
// would accept the token.
func Peek(raw string) (Unverified, error) {
	kid, err := check(raw)
	if err != nil {
		var refused *Error
		if errors.As(err, &refused) {
			return Unverified{}, errors.New(refused.Reason)
		}
		return Unverified{}, err
	}
	_, part, err := split(raw)
	if err != nil {
		return Unverified{}, fmt.Errorf("this is not a token: %w", err)
	}
	text, err := decodeObject(part, claimNames)
	if err != nil {
		return Unverified{}, fmt.Errorf("the token's claims are wrong: %w", err)
	}
	var w wire
	if err := json.Unmarshal(text, &w); err != nil {
		return Unverified{}, errors.New("the token's claims are not of the right types")
	}
	return Unverified{
		ID: w.ID, Name: w.Name, Hosts: w.Hosts, Audience: w.Audience, KeyID: kid,
		NotBefore: seconds(w.NotBefore), ExpiresAt: seconds(w.ExpiresAt),
	}, nil
}
