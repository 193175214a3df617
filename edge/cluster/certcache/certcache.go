// Package certcache keeps the certificates that edges share in the store, and a
// copy of them on this edge's own disk when the store is elsewhere.
//
// What cannot be read from the store is read from the copy; only what the store
// itself says is absent is absent. The copy is for serving: leases, limits and the
// answers to challenges are never taken from it, so that an edge cut off from the
// store presents its certificates and orders none.
package certcache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"time"

	"wormhole/certs"
	"wormhole/edge/cluster/store"
)

const (
	// sharedTimeout bounds a read of the store when there is a copy to fall back on.
	sharedTimeout = time.Second
	// mirrored is the kind of entries that a copy is kept of.
	mirrored = "cert"
)

// Cache is a certs.Cache on a store.
type Cache struct {
	scope  string
	shared store.Store
	mirror store.Store // nil without
	log    *slog.Logger
}

var _ certs.Cache = (*Cache)(nil)

// New returns the cache of the certificates from one CA, named by the URL of its
// directory, so that a staging CA's never mix with those that visitors trust. mirror
// is a store on this machine's disk for this edge alone; nil if shared is on this
// machine already.
func New(shared, mirror store.Store, directory string, logger *slog.Logger) *Cache {
	return &Cache{scope: scopeOf(directory), shared: shared, mirror: mirror, log: logger}
}

func scopeOf(directory string) string {
	switch directory {
	case certs.LetsEncrypt:
		return "letsencrypt"
	case certs.LetsEncryptStaging:
		return "letsencrypt-staging"
	}
	sum := sha256.Sum256([]byte(directory))
	return "acme-" + hex.EncodeToString(sum[:6])
}

func (c *Cache) bucket(kind string) string { return c.scope + "-" + kind }

// Get implements certs.Cache.
func (c *Cache) Get(ctx context.Context, kind, name string) ([]byte, error) {
	bucket, key := c.bucket(kind), encodeKey(name)
	bounded := ctx
	if c.mirror != nil && kind == mirrored {
		var cancel context.CancelFunc
		bounded, cancel = context.WithTimeout(ctx, sharedTimeout)
		defer cancel()
	}
	e, err := c.shared.Get(bounded, bucket, key)
	switch {
	case err == nil:
		c.copy(ctx, kind, key, e.Value)
		return e.Value, nil
	case errors.Is(err, store.ErrNotFound):
		return nil, certs.ErrCacheMiss
	case c.mirror != nil && kind == mirrored:
		if own, err := c.mirror.Get(ctx, bucket, key); err == nil {
			return own.Value, nil
		}
	}
	return nil, damaged(err)
}

// damaged tells the store's word for damage in the cache's.
func damaged(err error) error {
	if errors.Is(err, store.ErrCorrupt) {
		return fmt.Errorf("%w: %w", certs.ErrDamaged, err)
	}
	return err
}

// Put implements certs.Cache.
func (c *Cache) Put(ctx context.Context, kind, name string, value []byte) error {
	key := encodeKey(name)
	if _, err := c.shared.Put(ctx, c.bucket(kind), key, value); err != nil {
		return err
	}
	c.copy(ctx, kind, key, value)
	return nil
}

// Update implements certs.Cache.
func (c *Cache) Update(ctx context.Context, kind, name string, change func(old []byte) ([]byte, error)) error {
	bucket, key := c.bucket(kind), encodeKey(name)
	for try := 1; ; try++ {
		e, err := c.shared.Get(ctx, bucket, key)
		exists := err == nil
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return damaged(err)
		}
		old := e.Value
		if exists && old == nil {
			old = []byte{}
		}
		value, err := change(old)
		if err != nil {
			return err
		}
		if exists {
			_, err = c.shared.Update(ctx, bucket, key, value, e.Revision)
		} else {
			_, err = c.shared.Create(ctx, bucket, key, value)
		}
		if err == nil {
			c.copy(ctx, kind, key, value)
			return nil
		}
		if !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrExists) && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		// Somebody else was quicker.
		select {
		case <-time.After(rand.N(time.Duration(min(try, 20)) * 2 * time.Millisecond)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Delete implements certs.Cache.
func (c *Cache) Delete(ctx context.Context, kind, name string) error {
	bucket, key := c.bucket(kind), encodeKey(name)
	if err := c.shared.Delete(ctx, bucket, key); err != nil {
		return err
	}
	if c.mirror != nil && kind == mirrored {
		return c.mirror.Delete(ctx, bucket, key)
	}
	return nil
}

// Watch implements certs.Cache. With a copy on disk, what it holds is sent first, so
// that an edge serves before the store has answered, or without it.
func (c *Cache) Watch(ctx context.Context, kind string) (<-chan certs.Change, error) {
	bucket := c.bucket(kind)
	out := make(chan certs.Change)
	// The goroutine ends with ctx, or with the store's watch.
	go func() {
		defer close(out)
		send := func(ch certs.Change) bool {
			select {
			case out <- ch:
				return true
			case <-ctx.Done():
				return false
			}
		}
		if c.mirror != nil && kind == mirrored {
			own, err := c.mirror.List(ctx, bucket)
			if err != nil {
				c.log.Warn("copy of the certificates on this disk is damaged in part", "err", err)
			}
			for _, e := range own {
				if !send(certs.Change{Name: decodeKey(e.Key), Value: e.Value}) {
					return
				}
			}
		}
		events, err := c.shared.Watch(ctx, bucket)
		if err != nil {
			c.log.Warn("certificates in the store cannot be watched", "err", err)
			return
		}
		for ev := range events {
			if ev.Kind == store.EventPut {
				c.copy(ctx, kind, ev.Entry.Key, ev.Entry.Value)
			}
			if ch, ok := c.change(ev); ok && !send(ch) {
				return
			}
		}
	}()
	return out, nil
}

func (c *Cache) change(ev store.Event) (certs.Change, bool) {
	name := decodeKey(ev.Entry.Key)
	switch ev.Kind {
	case store.EventPut:
		return certs.Change{Name: name, Value: ev.Entry.Value}, true
	case store.EventDelete:
		return certs.Change{Name: name, Deleted: true}, true
	case store.EventReady:
		return certs.Change{Ready: true}, true
	case store.EventFault:
		if ev.Entry.Key == "" {
			c.log.Warn("certificates in the store cannot be read", "err", ev.Err)
			return certs.Change{}, false
		}
		return certs.Change{Name: name, Err: ev.Err}, true
	}
	return certs.Change{}, false
}

// copy keeps an entry on this edge's disk. A failure costs nothing until the store
// is gone, so it is only reported.
func (c *Cache) copy(ctx context.Context, kind, key string, value []byte) {
	if c.mirror == nil || kind != mirrored {
		return
	}
	bucket := c.bucket(kind)
	have, err := c.mirror.Get(ctx, bucket, key)
	if err == nil && bytes.Equal(have.Value, value) {
		return
	}
	if errors.Is(err, store.ErrCorrupt) {
		_ = c.mirror.Delete(ctx, bucket, key)
	}
	if _, err := c.mirror.Put(ctx, bucket, key, value); err != nil {
		c.log.Warn("certificate not copied to this disk", "err", err)
	}
}

// encodeKey makes a key of the store of a name: what the store does not take is
// written as = and two hexadecimal digits.
func encodeKey(name string) string {
	var b strings.Builder
	for i := range len(name) {
		switch ch := name[i]; {
		case ch >= 'a' && ch <= 'z', ch >= 'A' && ch <= 'Z', ch >= '0' && ch <= '9', ch == '-', ch == '_', ch == '/':
			b.WriteByte(ch)
		case ch == '.' && i > 0 && i < len(name)-1 && name[i-1] != '.':
			b.WriteByte(ch)
		default:
			fmt.Fprintf(&b, "=%02x", ch)
		}
	}
	return b.String()
}

// decodeKey is the inverse of encodeKey; what it did not make is returned as it is.
func decodeKey(key string) string {
	var b strings.Builder
	for i := 0; i < len(key); i++ {
		if key[i] != '=' {
			b.WriteByte(key[i])
			continue
		}
		if i+2 >= len(key) {
			return key
		}
		ch, err := hex.DecodeString(key[i+1 : i+3])
		if err != nil {
			return key
		}
		b.WriteByte(ch[0])
		i += 2
	}
	return b.String()
}
