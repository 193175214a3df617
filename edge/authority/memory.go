package authority

import (
	"context"
	"errors"
	"fmt"
	"time"

	"wormhole/edge/cluster/store"
	"wormhole/shared/token"
)

// known is what memory keeps of a token. It outlives the token's record: one that
// was revoked stays so although its record vanishes, until it would have expired.
type known struct {
	key       string // id of the key that signed it
	expires   time.Time
	revokedAt time.Time // zero if not revoked
	revision  uint64
	damaged   bool // the record cannot be read
}

// loadTokens fills memory at the start.
func (a *Authority) loadTokens(ctx context.Context) error {
	entries, err := a.store.List(ctx, bucketTokens)
	if err != nil && !errors.Is(err, store.ErrCorrupt) {
		return fmt.Errorf("load tokens: %w", err)
	}
	for _, e := range entries {
		a.learn(e)
	}
	for _, damage := range corruptions(err) {
		a.distrust(damage.Key, damage)
	}
	return nil
}

// corruptions finds every *store.CorruptError inside err.
func corruptions(err error) []*store.CorruptError {
	var found []*store.CorruptError
	switch e := err.(type) { //nolint:errorlint // this walks the tree that errors.As searches
	case nil:
	case *store.CorruptError:
		found = append(found, e)
	case interface{ Unwrap() error }:
		found = corruptions(e.Unwrap())
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			found = append(found, corruptions(inner)...)
		}
	}
	return found
}

// learn takes a token's record into memory, and tells if that revokes it.
func (a *Authority) learn(e store.Entry) {
	r, err := decodeRecord(e)
	if err != nil {
		a.distrust(e.Key, err)
		return
	}
	a.mu.Lock()
	old, ok := a.tokens[r.ID]
	if ok && !old.damaged && e.Revision <= old.revision {
		a.mu.Unlock()
		return
	}
	k := known{key: r.KeyID, expires: r.ExpiresAt, revokedAt: r.RevokedAt, revision: e.Revision}
	if !old.revokedAt.IsZero() {
		k.revokedAt = old.revokedAt // nothing ever un-revokes a token
	}
	a.tokens[r.ID] = k
	tell := a.revoked
	a.mu.Unlock()

	if old.revokedAt.IsZero() && !k.revokedAt.IsZero() {
		a.logger.Info("token revoked", "token", r.ID, "name", r.Name)
		for _, f := range tell {
			f(r.ID)
		}
	}
}

// distrust remembers that a token's record cannot be read, so that it is refused
// unless it is known better.
func (a *Authority) distrust(id string, err error) {
	a.mu.Lock()
	_, ok := a.tokens[id]
	if !ok {
		a.tokens[id] = known{damaged: true}
	}
	a.mu.Unlock()
	a.logger.Error("token record cannot be read", "token", id, "refused", !ok, "err", err)
}

// revokeKey tells of every token that a removed key had signed. Memory needs no
// change: the signatures no longer verify.
func (a *Authority) revokeKey(key string) {
	now := a.now()
	a.mu.RLock()
	var lost []string
	for id, k := range a.tokens {
		if k.key == key && k.revokedAt.IsZero() && now.Before(k.expires.Add(token.Leeway)) {
			lost = append(lost, id)
		}
	}
	tell := a.revoked
	a.mu.RUnlock()
	for _, id := range lost {
		for _, f := range tell {
			f(id)
		}
	}
}

// vanished hears that a record was deleted. Pruning deletes only what expired
// long ago; anything else is damage, and memory keeps what it knows.
func (a *Authority) vanished(id string) {
	now := a.now()
	a.mu.Lock()
	k, ok := a.tokens[id]
	early := ok && now.Before(k.expires.Add(token.Leeway))
	if ok && !early {
		delete(a.tokens, id)
	}
	alarm := early && now.Sub(a.lastAlarm) > time.Minute
	if alarm {
		a.lastAlarm = now
	}
	a.mu.Unlock()
	if alarm {
		a.logger.Error("token records vanish before they expire, keeping what is known of them", "token", id)
	}
}

// forget drops what memory kept of tokens that have expired.
func (a *Authority) forget() {
	now := a.now()
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, k := range a.tokens {
		if !k.damaged && now.After(k.expires.Add(Retention)) {
			delete(a.tokens, id)
		}
	}
}

func (a *Authority) countByKey() map[string]int {
	now := a.now()
	counts := make(map[string]int)
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, k := range a.tokens {
		if k.revokedAt.IsZero() && now.Before(k.expires.Add(token.Leeway)) {
			counts[k.key]++
		}
	}
	return counts
}

// staleSince is since when the store cannot be read, if it cannot.
func (a *Authority) staleSince() (time.Time, bool) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	var first time.Time
	for _, t := range a.stale {
		if first.IsZero() || t.Before(first) {
			first = t
		}
	}
	return first, !first.IsZero()
}

func (a *Authority) setStale(bucket string, err error) {
	a.mu.Lock()
	_, already := a.stale[bucket]
	if !already {
		a.stale[bucket] = a.now()
	}
	a.mu.Unlock()
	if !already {
		a.logger.Error("store cannot be read, going on with what is known", "bucket", bucket, "err", err)
	}
}

func (a *Authority) setFresh(bucket string) {
	a.mu.Lock()
	_, was := a.stale[bucket]
	delete(a.stale, bucket)
	a.mu.Unlock()
	if was {
		a.logger.Info("store can be read again", "bucket", bucket)
	}
}
