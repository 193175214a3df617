package authority

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"

	"wormhole/edge/cluster/store"
	"wormhole/shared/hostname"
	"wormhole/shared/token"
)

// How long tokens live.
const (
	DefaultTTL = 720 * time.Hour
	MinTTL     = time.Second
	MaxTTL     = 10 * 366 * 24 * time.Hour
)

// IssueRequest asks for a token. Only Hosts is required.
type IssueRequest struct {
	// Name is for people and for Revoke; it need not be unique.
	Name string `json:"name,omitempty"`
	// Hosts are what the token may serve: exact or *.parent, in any letter case.
	Hosts []string `json:"hosts"`
	// Kinds are http (the default), tcp, tls.
	Kinds []string `json:"kinds,omitempty"`
	// Tags are given to every backend of the token.
	Tags map[string]string `json:"tags,omitempty"`
	// AppProtocol is what the app speaks: http1 (the default) or h2c.
	AppProtocol string `json:"app_protocol,omitempty"`
	// MaxTunnels and MaxStreams bound what the token's agents use; 0 is the edge's
	// default.
	MaxTunnels int `json:"max_tunnels,omitempty"`
	MaxStreams int `json:"max_streams,omitempty"`
	// TTL is how long the token is valid, from NotBefore on; 0 is DefaultTTL. In
	// JSON it is nanoseconds.
	TTL time.Duration `json:"ttl,omitempty"`
	// NotBefore is when the token becomes valid; zero is now.
	NotBefore time.Time `json:"not_before,omitzero"`
	// IssuedBy says who asked, for the record.
	IssuedBy string `json:"issued_by,omitempty"`
}

// Issued is a new token and its record. The token is shown here and never again.
type Issued struct {
	Token string `json:"token"`
	TokenInfo
}

// claims checks a request and completes it. The error lists all faults at once.
func (r IssueRequest) claims(now time.Time) (token.Claims, error) {
	var faults []error
	hosts := make([]string, 0, len(r.Hosts))
	for _, h := range r.Hosts {
		if canonical, err := hostname.CanonicalPattern(h); err == nil {
			h = canonical
		} // else Validate says what is wrong with it
		if !slices.Contains(hosts, h) {
			hosts = append(hosts, h)
		}
	}
	kinds := r.Kinds
	if len(kinds) == 0 {
		kinds = []string{token.KindHTTP}
	}
	ttl := r.TTL
	switch {
	case ttl == 0:
		ttl = DefaultTTL
	case ttl < MinTTL || ttl > MaxTTL:
		faults = append(faults, fmt.Errorf("ttl %s is not between %s and %s (ten years)", ttl, MinTTL, MaxTTL))
		ttl = DefaultTTL // so that Validate does not complain of the same again
	}
	from := r.NotBefore
	switch {
	case from.IsZero():
		from = now
	case from.After(now.Add(MaxTTL)):
		faults = append(faults, fmt.Errorf("the token would become valid at %s, more than ten years from now", stamp(from)))
	}
	from = from.UTC().Truncate(time.Second)
	c := token.Claims{
		ID: randomID(), Name: r.Name, Hosts: hosts, Kinds: slices.Clone(kinds), Tags: maps.Clone(r.Tags),
		Limits:      token.Limits{MaxTunnels: r.MaxTunnels, MaxStreams: r.MaxStreams},
		AppProtocol: r.AppProtocol,
		IssuedAt:    now.UTC().Truncate(time.Second), NotBefore: from, ExpiresAt: from.Add(ttl).Truncate(time.Second),
	}
	if !c.ExpiresAt.After(now) {
		faults = append(faults, fmt.Errorf("the token would have expired at %s", stamp(c.ExpiresAt)))
	}
	if len(r.IssuedBy) > token.MaxNameLen || strings.ContainsFunc(r.IssuedBy, unicode.IsControl) {
		faults = append(faults, fmt.Errorf("issued-by is longer than %d bytes or holds control characters", token.MaxNameLen))
	}
	faults = append(faults, c.Validate())
	return c, errors.Join(faults...)
}

// Issue issues a token for the given claims; see IssueToken. Of c only what an
// IssueRequest has is used.
func (a *Authority) Issue(ctx context.Context, c token.Claims, ttl time.Duration) (raw string, err error) {
	issued, err := a.IssueToken(ctx, IssueRequest{
		Name: c.Name, Hosts: c.Hosts, Kinds: c.Kinds, Tags: c.Tags, AppProtocol: c.AppProtocol,
		MaxTunnels: c.Limits.MaxTunnels, MaxStreams: c.Limits.MaxStreams, NotBefore: c.NotBefore, TTL: ttl,
	})
	return issued.Token, err
}

// IssueToken signs a token and records it. No token leaves unless its record is
// stored, so that every token can be revoked. The error lists every fault of req
// at once.
func (a *Authority) IssueToken(ctx context.Context, req IssueRequest) (Issued, error) {
	fail := func(err error) (Issued, error) { return Issued{}, fmt.Errorf("issue token: %w", err) }
	c, err := req.claims(a.now())
	if err != nil {
		return fail(err)
	}
	// A key that signs must be one that is in the store now, not one that another
	// process has removed a moment ago.
	doc, revision, err := a.loadRing(ctx)
	if err != nil {
		return fail(err)
	}
	r, err := doc.view(revision)
	if err != nil {
		return fail(err)
	}
	a.adoptRing(r)
	c.KeyID = r.Active
	raw, err := token.Mint(r.private, r.Active, r.Network, c)
	if err != nil {
		return fail(err)
	}
	rec := recordOf(c, req.IssuedBy)
	value, err := json.Marshal(rec)
	if err != nil {
		return fail(err)
	}
	revision, err = a.store.Create(ctx, bucketTokens, c.ID, value)
	if err != nil {
		return fail(err)
	}
	a.learn(store.Entry{Key: c.ID, Value: value, Revision: revision})
	a.logger.Info("token issued", "token", c.ID, "name", c.Name, "host", strings.Join(c.Hosts, ","), "key", c.KeyID)
	return Issued{Token: raw, TokenInfo: a.info(rec)}, nil
}

// randomID is 80 random bits in 16 lower-case characters, for people to copy.
func randomID() string {
	var b [10]byte
	_, _ = rand.Read(b[:]) // never fails
	return strings.ToLower(base32.StdEncoding.EncodeToString(b[:]))
}
