package authority

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"wormhole/edge/cluster/store"
	"wormhole/shared/protocol"
	"wormhole/shared/token"
)

// minPrefix is the shortest beginning of an id that Revoke, Inspect and RemoveKey
// take for it.
const minPrefix = 4

// AmbiguousError says that more than one token answers to a name or beginning of
// an id.
type AmbiguousError struct {
	Query      string
	Candidates []TokenInfo
}

// Error lists the candidates.
func (e *AmbiguousError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%.80q may be any of these tokens, use its whole id:", e.Query)
	for _, c := range e.Candidates {
		fmt.Fprintf(&b, "\n  %s %s, %s, expires %s", c.ID, c.Name, c.Status, stamp(c.ExpiresAt))
	}
	return b.String()
}

// List returns the records of all tokens, the latest issued first. When some are
// damaged it returns the others with an error that wraps store.ErrCorrupt.
func (a *Authority) List(ctx context.Context) ([]TokenInfo, error) {
	entries, err := a.store.List(ctx, bucketTokens)
	if err != nil && !errors.Is(err, store.ErrCorrupt) {
		return nil, fmt.Errorf("list tokens: %w", err)
	}
	faults := []error{err}
	infos := make([]TokenInfo, 0, len(entries))
	for _, e := range entries {
		r, err := decodeRecord(e)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		infos = append(infos, a.info(r))
	}
	slices.SortFunc(infos, func(a, b TokenInfo) int {
		if c := b.IssuedAt.Compare(a.IssuedAt); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	if err := errors.Join(faults...); err != nil {
		return infos, fmt.Errorf("list tokens: %w", err)
	}
	return infos, nil
}

// find returns the token that query names: by its id, or as the only one with that
// name or beginning of the id. Of several, the only one that still counts for
// something is meant, because names are used again when a token is replaced.
func (a *Authority) find(ctx context.Context, query string) (TokenInfo, error) {
	infos, err := a.List(ctx)
	if err != nil && !errors.Is(err, store.ErrCorrupt) {
		return TokenInfo{}, err
	}
	var all, live []TokenInfo
	for _, t := range infos {
		if t.ID == query {
			return t, nil
		}
		if t.Name == query && query != "" || len(query) >= minPrefix && strings.HasPrefix(t.ID, query) {
			all = append(all, t)
			if t.Status == StatusValid || t.Status == StatusNotYetValid {
				live = append(live, t)
			}
		}
	}
	switch {
	case len(live) == 1:
		return live[0], nil
	case len(live) > 1:
		return TokenInfo{}, &AmbiguousError{Query: query, Candidates: live}
	case len(all) == 1:
		return all[0], nil
	case len(all) > 1:
		return TokenInfo{}, &AmbiguousError{Query: query, Candidates: all}
	case err != nil: // it may be one of those that cannot be read
		return TokenInfo{}, fmt.Errorf("%.80q: %w; but %w", query, ErrNoSuchToken, err)
	}
	return TokenInfo{}, fmt.Errorf("%.80q: %w", query, ErrNoSuchToken)
}

// Revoke takes a token back: by its id, its unique name, or a unique beginning of
// its id. Tunnels that use it close within a second or two on every edge that
// reaches the store. To revoke a revoked token changes nothing. Errors are
// ErrNoSuchToken, an *AmbiguousError, or those of the store.
func (a *Authority) Revoke(ctx context.Context, query string) (TokenInfo, error) {
	fail := func(err error) (TokenInfo, error) { return TokenInfo{}, fmt.Errorf("revoke token: %w", err) }
	found, err := a.find(ctx, query)
	if err != nil {
		return fail(err)
	}
	for {
		e, err := a.store.Get(ctx, bucketTokens, found.ID)
		if err != nil {
			return fail(err)
		}
		r, err := decodeRecord(e)
		if err != nil {
			return fail(err)
		}
		if !r.RevokedAt.IsZero() {
			a.learn(e)
			return a.info(r), nil
		}
		r.RevokedAt = a.now().UTC().Truncate(time.Second)
		value, err := json.Marshal(r)
		if err != nil {
			return fail(err)
		}
		revision, err := a.store.Update(ctx, bucketTokens, r.ID, value, e.Revision)
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			return fail(err)
		}
		a.learn(store.Entry{Key: r.ID, Value: value, Revision: revision})
		return a.info(r), nil
	}
}

// Inspection is what is known of one token.
type Inspection struct {
	TokenInfo
	// Recorded says that this network has a record of it.
	Recorded bool `json:"recorded"`
	// Code and Reason are those with which an edge would refuse the token now; empty
	// if it would take it.
	Code   protocol.Code `json:"code,omitempty"`
	Reason string        `json:"reason,omitempty"`
	// Forged says that the signature is not of this network: what is shown of the
	// token is what it claims, and not to be believed.
	Forged bool `json:"forged,omitempty"`
}

// Inspect shows what is known of a token, given the token itself or what Revoke
// takes. A token that would be refused is no error; the verdict says so. The
// token's text is not repeated.
func (a *Authority) Inspect(ctx context.Context, query string) (Inspection, error) {
	if len(query) > token.MaxNameLen { // longer than any name or id, and shorter than any token
		return a.inspectRaw(ctx, query)
	}
	t, err := a.find(ctx, query)
	if err != nil {
		return Inspection{}, fmt.Errorf("inspect token: %w", err)
	}
	in := Inspection{TokenInfo: t, Recorded: true}
	in.Code, in.Reason = verdict(t)
	return in, nil
}

func (a *Authority) inspectRaw(ctx context.Context, raw string) (Inspection, error) {
	var in Inspection
	c, err := a.Verify(raw)
	if err != nil {
		var refused *token.Error
		if !errors.As(err, &refused) {
			return Inspection{}, fmt.Errorf("inspect token: %w", err)
		}
		in.Code, in.Reason = refused.Code, refused.Reason
		u, peekErr := token.Peek(raw)
		in.Record = Record{
			ID: u.ID, Name: u.Name, Hosts: u.Hosts, KeyID: u.KeyID, NotBefore: u.NotBefore, ExpiresAt: u.ExpiresAt,
		}
		// Verify looks at nothing else before the signature is right.
		in.Forged = peekErr != nil || refused.Code == protocol.CodeTokenMalformed || refused.Code == protocol.CodeTokenSignature
	} else {
		in.Record = recordOf(*c, "")
	}
	if !in.Forged && in.Code != protocol.CodeTokenAudience {
		e, err := a.store.Get(ctx, bucketTokens, in.ID)
		if err == nil {
			if r, err := decodeRecord(e); err == nil {
				in.Record, in.Recorded = r, true
			}
		} else if !errors.Is(err, store.ErrNotFound) {
			return Inspection{}, fmt.Errorf("inspect token: %w", err)
		}
	}
	in.Status = statusOf(in.Code)
	return in, nil
}

// statusOf is the status of a token that was refused with code.
func statusOf(code protocol.Code) Status {
	switch code {
	case "":
		return StatusValid
	case protocol.CodeTokenRevoked:
		return StatusRevoked
	case protocol.CodeTokenExpired:
		return StatusExpired
	case protocol.CodeTokenNotYetValid:
		return StatusNotYetValid
	}
	return StatusRefused
}

// verdict is how an edge would refuse a recorded token.
func verdict(t TokenInfo) (protocol.Code, string) {
	switch t.Status {
	case StatusRevoked:
		return protocol.CodeTokenRevoked, "revoked at " + stamp(t.RevokedAt)
	case StatusKeyRemoved:
		return protocol.CodeTokenSignature, "the key " + t.KeyID + " that signed it was removed"
	case StatusExpired:
		return protocol.CodeTokenExpired, "expired at " + stamp(t.ExpiresAt)
	case StatusNotYetValid:
		return protocol.CodeTokenNotYetValid, "not valid before " + stamp(t.NotBefore)
	}
	return "", ""
}

func decodeRecord(e store.Entry) (Record, error) {
	var r Record
	if err := json.Unmarshal(e.Value, &r); err != nil {
		return Record{}, fmt.Errorf("record of token %s: %w: %w", e.Key, store.ErrCorrupt, err)
	}
	if r.ID != e.Key {
		return Record{}, fmt.Errorf("record of token %s is that of %.80q: %w", e.Key, r.ID, store.ErrCorrupt)
	}
	return r, nil
}
