package certs

import (
	"context"
	"errors"
)

// Kinds of what is cached. A kind is one to sixteen letters a-z, a name within it
// any text up to 300 bytes.
const (
	kindCertificate = "cert"    // by host: chain and key
	kindHost        = "host"    // by host: who orders for it, and what came of it
	kindToken       = "token"   // by challenge: what the CA wants to be answered
	kindAccount     = "account" // the key of the account with the CA
	kindBudget      = "budget"  // what was ordered lately
)

// ErrCacheMiss says that the cache is certain to hold no such entry. It is never
// returned for an entry that cannot be read.
var ErrCacheMiss = errors.New("not in the cache")

// ErrDamaged says that an entry is not what was written. It is never taken for an
// entry that is not there: that would order again.
var ErrDamaged = errors.New("damaged entry in the certificate cache")

// Cache is the durable state that all edges share which order certificates from
// one account. All methods may be called concurrently, by several processes too,
// and heed ctx. Values returned belong to the caller, those passed in are not
// kept.
type Cache interface {
	// Get returns an entry, ErrCacheMiss, or an error that wraps ErrDamaged. Any other
	// error means that it is not known whether there is one.
	Get(ctx context.Context, kind, name string) ([]byte, error)
	// Put writes an entry. When it returns nil, every edge's Get finds it.
	Put(ctx context.Context, kind, name string, value []byte) error
	// Update replaces an entry by what change makes of it, atomically: what change
	// was given (nil for no entry) is what was replaced. change may be called several
	// times. Its error is returned as it is, and nothing was written then.
	Update(ctx context.Context, kind, name string, change func(old []byte) ([]byte, error)) error
	// Delete removes an entry, damaged or not; one that is not there is no error.
	Delete(ctx context.Context, kind, name string) error
	// Watch sends all present entries of a kind, then one Change that is Ready, then
	// every change soon after it was made, until ctx ends or the cache cannot go on;
	// then it closes the channel.
	Watch(ctx context.Context, kind string) (<-chan Change, error)
}

// Change is one message of Cache.Watch.
type Change struct {
	Name    string
	Value   []byte
	Deleted bool
	Ready   bool  // all that precedes is the whole state; Name is empty
	Err     error // the entry Name cannot be read
}
