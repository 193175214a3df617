// Package authority decides which agents belong to the network: it keeps the
// signing keys, issues and revokes tokens, and verifies those that agents show.
//
// Everything durable is in a store.Store that several processes share: an edge
// verifies while a command line issues and revokes. Verify asks memory only and
// works while the store cannot be reached.
//
// # What is kept
//
// Bucket "keys" holds one document, the ring: the network's id and all signing
// keys. It is made once, by whoever opens an empty store first. Bucket "tokens"
// holds one record for each token issued, without the token itself. A record is
// removed Retention after its token expired.
//
// # Rotation
//
// One key signs, all keys of the ring verify. Rotate makes a new key known first
// and lets it sign when every edge has had time to learn it, so that no token is
// refused. RemoveKey takes an old key away, and with it every token it signed.
package authority

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"wormhole/edge/cluster/store"
	"wormhole/shared/protocol"
	"wormhole/shared/token"
)

const (
	bucketKeys   = "keys"
	bucketTokens = "tokens"
	ringKey      = "ring"
)

const (
	// Retention is how long the record of a token is kept after it expired.
	Retention = 30 * 24 * time.Hour
	// MaxStale is for how long an edge goes on to trust its list of revocations
	// when it cannot read the store. After that it lets no further tunnel in.
	MaxStale = time.Hour
	// settleTime is the wait of Rotate between making a key known and signing with
	// it. It is several times as long as a watch takes.
	settleTime = 2 * time.Second
	// pruneInterval is the time between two searches for records past Retention.
	pruneInterval = time.Hour
	// rewatchPause is the wait before a watch that ended is begun anew.
	rewatchPause = time.Second
)

// The errors that callers ask for with errors.Is.
var (
	// ErrNoSuchToken says that no record matches.
	ErrNoSuchToken = errors.New("no such token")
	// ErrNoSuchKey says that the ring has no such key.
	ErrNoSuchKey = errors.New("no such key")
	// ErrKeyActive says that the key that signs cannot be removed.
	ErrKeyActive = errors.New("this key signs new tokens: rotate first")
)

// Authority is one process's view of the network's keys and tokens. All methods
// are safe for concurrent use.
type Authority struct {
	store  store.Store
	logger *slog.Logger
	now    func() time.Time // the clock; tests replace it before Run
	settle time.Duration    // settleTime; tests replace it before Run

	ring atomic.Pointer[ringView]

	mu        sync.RWMutex // guards below
	tokens    map[string]known
	revoked   []func(tokenID string)
	stale     map[string]time.Time // by bucket: since when it cannot be read
	lastAlarm time.Time
}

// Open loads keys and revocations from s, and makes the network's id and first
// key if there is no ring yet. A damaged ring is an error; of a damaged token
// record only that token is refused. Open starts no goroutine; Run keeps the view
// current.
func Open(ctx context.Context, s store.Store, logger *slog.Logger) (*Authority, error) {
	a := &Authority{
		store: s, logger: logger, now: time.Now, settle: settleTime,
		tokens: make(map[string]known), stale: make(map[string]time.Time),
	}
	r, revision, err := a.loadRing(ctx)
	if errors.Is(err, store.ErrNotFound) {
		r, revision, err = a.createRing(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("open authority: %w", err)
	}
	view, err := r.view(revision)
	if err != nil {
		return nil, fmt.Errorf("open authority: %w", err)
	}
	a.ring.Store(view)
	if err := a.loadTokens(ctx); err != nil {
		return nil, fmt.Errorf("open authority: %w", err)
	}
	return a, nil
}

// Audience is the network's id. It never changes.
func (a *Authority) Audience() string { return a.ring.Load().Network }

// Verify returns the claims of a token that is signed by a key of the network,
// valid now and not revoked. Otherwise the error is a *token.Error. It does no I/O.
func (a *Authority) Verify(raw string) (*token.Claims, error) {
	r := a.ring.Load()
	c, err := token.Verify(raw, r.public, r.Network, a.now())
	if err != nil {
		return nil, err
	}
	if err := a.standing(c.ID, c.Name); err != nil {
		return nil, err
	}
	if since, ok := a.staleSince(); ok && a.now().Sub(since) > MaxStale {
		return nil, &token.Error{
			Code:   protocol.CodeBusy,
			Reason: fmt.Sprintf("this edge has not been able to read the list of revoked tokens since %s; try another edge", stamp(since)),
		}
	}
	return c, nil
}

// Check looks again at claims that Verify returned: it is cheap, verifies no
// signature, and errs like Verify if they have expired, were revoked, or lost
// their key since. Whoever keeps a tunnel for a token calls it once after the
// tunnel is where OnRevoke's callback finds it, so that no revocation falls
// between the two.
func (a *Authority) Check(c *token.Claims) error {
	if _, ok := a.ring.Load().public[c.KeyID]; !ok {
		return &token.Error{
			Code:   protocol.CodeTokenSignature,
			Reason: fmt.Sprintf("the key %q that signed the token was removed: issue a new token", c.KeyID),
		}
	}
	if now := a.now(); !now.Before(c.ExpiresAt.Add(token.Leeway)) {
		return &token.Error{
			Code:   protocol.CodeTokenExpired,
			Reason: fmt.Sprintf("the token expired at %s, and by this edge's clock it is %s", stamp(c.ExpiresAt), stamp(now)),
		}
	}
	return a.standing(c.ID, c.Name)
}

// OnRevoke registers f to be called with the id of every token that is revoked
// from now on, by whatever process, or whose key is removed. f is called once for
// each cause, from the goroutine of Run or of Revoke, and must not block. Register
// before Run.
func (a *Authority) OnRevoke(f func(tokenID string)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.revoked = append(a.revoked, f)
}

// standing errs if a token was revoked or its record is damaged.
func (a *Authority) standing(id, name string) error {
	a.mu.RLock()
	k, ok := a.tokens[id]
	a.mu.RUnlock()
	switch {
	case ok && !k.revokedAt.IsZero():
		return &token.Error{
			Code:   protocol.CodeTokenRevoked,
			Reason: fmt.Sprintf("the token %s was revoked at %s: issue a new token", titled(id, name), stamp(k.revokedAt)),
		}
	case ok && k.damaged:
		return &token.Error{
			Code:   protocol.CodeInternal,
			Reason: fmt.Sprintf("the record of the token %s is damaged on this network, so nobody can tell whether it was revoked: issue a new token", titled(id, name)),
		}
	}
	return nil
}

// titled names a token for people.
func titled(id, name string) string {
	if name == "" {
		return id
	}
	return fmt.Sprintf("%s (%s)", id, name)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
