package authority

import (
	"time"

	"wormhole/shared/token"
)

// Record is what is stored of an issued token: everything it says and what became
// of it, but never the token itself.
type Record struct {
	ID          string            `json:"id"`
	Name        string            `json:"name,omitempty"`
	Hosts       []string          `json:"hosts"`
	Kinds       []string          `json:"kinds,omitempty"`
	Tags        map[string]string `json:"tags,omitempty"`
	AppProtocol string            `json:"app_protocol,omitempty"`
	Limits      token.Limits      `json:"limits,omitzero"`
	IssuedAt    time.Time         `json:"issued_at,omitzero"`
	NotBefore   time.Time         `json:"not_before,omitzero"`
	ExpiresAt   time.Time         `json:"expires_at,omitzero"`
	// KeyID names the key that signed it.
	KeyID string `json:"key_id"`
	// IssuedBy is who asked for it, as far as the issuer said.
	IssuedBy string `json:"issued_by,omitempty"`
	// RevokedAt is zero while the token is not revoked.
	RevokedAt time.Time `json:"revoked_at,omitzero"`
}

// Status is what a token is worth now.
type Status string

// The statuses of a token. When several apply, the first of this list does.
const (
	StatusRevoked     Status = "revoked"
	StatusKeyRemoved  Status = "key_removed"
	StatusExpired     Status = "expired"
	StatusNotYetValid Status = "not_yet_valid"
	StatusValid       Status = "valid"
	// StatusRefused is that of a token shown to Inspect that is malformed, forged,
	// or of another network.
	StatusRefused Status = "refused"
)

// TokenInfo is a token's record with its status, for people and programs.
type TokenInfo struct {
	Status Status `json:"status"`
	Record
}

func recordOf(c token.Claims, issuedBy string) Record {
	return Record{
		ID: c.ID, Name: c.Name, Hosts: c.Hosts, Kinds: c.Kinds, Tags: c.Tags,
		AppProtocol: c.AppProtocol, Limits: c.Limits,
		IssuedAt: c.IssuedAt, NotBefore: c.NotBefore, ExpiresAt: c.ExpiresAt,
		KeyID: c.KeyID, IssuedBy: issuedBy,
	}
}

// info judges a record by the clock and the ring of now, as Verify would judge
// the token.
func (a *Authority) info(r Record) TokenInfo {
	now, status := a.now(), StatusValid
	_, keyKnown := a.ring.Load().public[r.KeyID]
	switch {
	case !r.RevokedAt.IsZero():
		status = StatusRevoked
	case !keyKnown:
		status = StatusKeyRemoved
	case !now.Before(r.ExpiresAt.Add(token.Leeway)):
		status = StatusExpired
	case now.Before(r.NotBefore.Add(-token.Leeway)):
		status = StatusNotYetValid
	}
	return TokenInfo{Status: status, Record: r}
}
