package authority

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"wormhole/edge/cluster/store"
	"wormhole/shared/token"
)

// ring is the stored document. It is one document so that no two processes can
// disagree: each change is one compare-and-set.
type ring struct {
	Network string       `json:"network"`
	Active  string       `json:"active"` // id of the key that signs
	Keys    []signingKey `json:"keys"`
}

// signingKey is one signing key as stored.
type signingKey struct {
	ID      string    `json:"id"`
	Seed    []byte    `json:"seed"` // ed25519.SeedSize bytes (RFC 8032): the private key
	Created time.Time `json:"created_at"`
}

// ringView is a ring ready for use; it is never changed once published.
type ringView struct {
	ring
	revision uint64
	private  ed25519.PrivateKey // of the active key
	public   token.Keys
}

// KeyInfo describes a signing key without its private part.
type KeyInfo struct {
	ID string `json:"id"`
	// Active says that this key signs new tokens.
	Active    bool      `json:"active"`
	CreatedAt time.Time `json:"created_at"`
	// PublicKey is the Ed25519 public key, in JSON in base64.
	PublicKey []byte `json:"public_key"`
	// Tokens counts those signed by it that are neither expired nor revoked: what
	// removing it would revoke.
	Tokens int `json:"tokens"`
}

func newKey(now time.Time) (signingKey, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return signingKey{}, fmt.Errorf("make key: %w", err)
	}
	return signingKey{ID: keyID(public), Seed: private.Seed(), Created: now.UTC().Truncate(time.Second)}, nil
}

// keyID derives a key's id from itself, so that no two keys share one.
func keyID(public ed25519.PublicKey) string {
	sum := sha256.Sum256(public)
	return "k" + hex.EncodeToString(sum[:8])
}

// view checks a ring and prepares it for use.
func (r ring) view(revision uint64) (*ringView, error) {
	v := &ringView{ring: r, revision: revision, public: make(token.Keys, len(r.Keys))}
	if r.Network == "" {
		return nil, errors.New("the key ring names no network")
	}
	for _, k := range r.Keys {
		if len(k.Seed) != ed25519.SeedSize {
			return nil, fmt.Errorf("the key %s of the key ring has %d bytes instead of %d", k.ID, len(k.Seed), ed25519.SeedSize)
		}
		private := ed25519.NewKeyFromSeed(k.Seed)
		public := private.Public().(ed25519.PublicKey)
		if k.ID != keyID(public) {
			return nil, fmt.Errorf("the key %s of the key ring has another key's id", k.ID)
		}
		v.public[k.ID] = public
		if k.ID == r.Active {
			v.private = private
		}
	}
	if v.private == nil {
		return nil, fmt.Errorf("the active key %q is not in the key ring", r.Active)
	}
	return v, nil
}

func (a *Authority) loadRing(ctx context.Context) (ring, uint64, error) {
	e, err := a.store.Get(ctx, bucketKeys, ringKey)
	if err != nil {
		return ring{}, 0, err
	}
	r, err := decodeRing(e.Value)
	return r, e.Revision, err
}

func decodeRing(value []byte) (ring, error) {
	var r ring
	if err := json.Unmarshal(value, &r); err != nil {
		return ring{}, fmt.Errorf("read key ring: %w", err)
	}
	return r, nil
}

// createRing makes the network. Of several processes that try, one succeeds and
// the others take its ring.
func (a *Authority) createRing(ctx context.Context) (ring, uint64, error) {
	k, err := newKey(a.now())
	if err != nil {
		return ring{}, 0, err
	}
	r := ring{Network: "net-" + randomID(), Active: k.ID, Keys: []signingKey{k}}
	value, err := json.Marshal(r)
	if err != nil {
		return ring{}, 0, fmt.Errorf("write key ring: %w", err)
	}
	revision, err := a.store.Create(ctx, bucketKeys, ringKey, value)
	if errors.Is(err, store.ErrExists) {
		return a.loadRing(ctx)
	}
	if err != nil {
		return ring{}, 0, err
	}
	a.logger.Info("network created", "network", r.Network, "key", k.ID)
	return r, revision, nil
}

// changeRing applies change to the current ring until it is stored unhindered.
func (a *Authority) changeRing(ctx context.Context, change func(*ring) error) error {
	for {
		r, revision, err := a.loadRing(ctx)
		if err != nil {
			return err
		}
		if err := change(&r); err != nil {
			return err
		}
		value, err := json.Marshal(r)
		if err != nil {
			return fmt.Errorf("write key ring: %w", err)
		}
		revision, err = a.store.Update(ctx, bucketKeys, ringKey, value, revision)
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			return err
		}
		view, err := r.view(revision)
		if err != nil {
			return err
		}
		a.adoptRing(view)
		return nil
	}
}

// adoptRing publishes a ring unless a later one is known, and tells of the tokens
// that lost their key.
func (a *Authority) adoptRing(v *ringView) {
	for {
		old := a.ring.Load()
		if v.revision <= old.revision {
			return
		}
		if v.Network != old.Network {
			a.logger.Error("key ring of another network ignored", "network", v.Network)
			return
		}
		if !a.ring.CompareAndSwap(old, v) {
			continue
		}
		for id := range old.public {
			if _, ok := v.public[id]; !ok {
				a.logger.Info("key removed", "key", id)
				a.revokeKey(id)
			}
		}
		if old.Active != v.Active {
			a.logger.Info("key signs from now on", "key", v.Active)
		}
		return
	}
}

// Keys lists the signing keys, the oldest first.
func (a *Authority) Keys() []KeyInfo {
	r := a.ring.Load()
	counts := a.countByKey()
	keys := make([]KeyInfo, 0, len(r.Keys))
	for _, k := range r.Keys {
		keys = append(keys, KeyInfo{
			ID: k.ID, Active: k.ID == r.Active, CreatedAt: k.Created,
			PublicKey: slices.Clone(r.public[k.ID]), Tokens: counts[k.ID],
		})
	}
	return keys
}

// Rotate makes a new key, waits until the edges know it, and lets it sign from
// then on; that takes a few seconds. Older keys go on verifying until RemoveKey.
// If ctx ends before, the key that signed until now goes on signing.
func (a *Authority) Rotate(ctx context.Context) (KeyInfo, error) {
	fail := func(err error) (KeyInfo, error) { return KeyInfo{}, fmt.Errorf("rotate keys: %w", err) }
	k, err := newKey(a.now())
	if err != nil {
		return fail(err)
	}
	if err := a.changeRing(ctx, func(r *ring) error {
		r.Keys = append(r.Keys, k)
		return nil
	}); err != nil {
		return fail(err)
	}
	select {
	case <-time.After(a.settle):
	case <-ctx.Done():
		return fail(ctx.Err())
	}
	if err := a.changeRing(ctx, func(r *ring) error {
		if !slices.ContainsFunc(r.Keys, func(have signingKey) bool { return have.ID == k.ID }) {
			return fmt.Errorf("key %s: %w", k.ID, ErrNoSuchKey)
		}
		r.Active = k.ID
		return nil
	}); err != nil {
		return fail(err)
	}
	for _, info := range a.Keys() {
		if info.ID == k.ID {
			return info, nil
		}
	}
	return fail(fmt.Errorf("key %s: %w", k.ID, ErrNoSuchKey))
}

// RemoveKey removes a key by its id or the beginning of it, and with it revokes
// all tokens it signed. The key that signs cannot be removed: ErrKeyActive.
func (a *Authority) RemoveKey(ctx context.Context, id string) (KeyInfo, error) {
	var removed KeyInfo
	err := a.changeRing(ctx, func(r *ring) error {
		var matches []signingKey
		for _, k := range r.Keys {
			if k.ID == id {
				matches = []signingKey{k}
				break
			}
			if len(id) >= minPrefix && strings.HasPrefix(k.ID, id) {
				matches = append(matches, k)
			}
		}
		switch {
		case len(matches) == 0:
			return ErrNoSuchKey
		case len(matches) > 1:
			return fmt.Errorf("%d keys begin so", len(matches))
		case matches[0].ID == r.Active:
			return ErrKeyActive
		}
		removed = KeyInfo{ID: matches[0].ID, CreatedAt: matches[0].Created, Tokens: a.countByKey()[matches[0].ID]}
		removed.PublicKey = ed25519.NewKeyFromSeed(matches[0].Seed).Public().(ed25519.PublicKey)
		r.Keys = slices.DeleteFunc(r.Keys, func(k signingKey) bool { return k.ID == matches[0].ID })
		return nil
	})
	if err != nil {
		return KeyInfo{}, fmt.Errorf("remove key %.80q: %w", id, err)
	}
	return removed, nil
}
