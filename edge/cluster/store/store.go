// Package store keeps the network's small durable state: signing keys, issued
// tokens and revocations, sites, certificates, leases.
//
// Store is the contract, Dir fulfils it with files for the processes of one
// machine (an edge and its command line at the same time). The contract is
// narrow enough for a replicated key-value store to fulfil too: buckets of keys,
// revisions with compare-and-set, and watches.
//
// # Guarantees
//
// A write that returned nil is on disk: it survives the death of any process at
// any moment, and of the machine as far as its disks keep what fsync promised. A
// write that returned ErrExists or ErrConflict changed nothing. After any other
// error a write may or may not have happened; read before repeating it.
//
// Revisions of one key only ever grow, also over deletion and re-creation, so
// that Update never takes a new value for the one it has seen.
//
// A value that cannot be read as it was written is ErrCorrupt, never absent.
package store

import (
	"context"
	"errors"
	"fmt"
	"regexp"
)

// Bounds of what is stored, in bytes.
const (
	MaxBucket = 63
	MaxKey    = 512
	MaxValue  = 1 << 20
)

// The errors that callers ask for with errors.Is.
var (
	// ErrNotFound says that there is no such key.
	ErrNotFound = errors.New("not found")
	// ErrExists says that Create met a key that exists.
	ErrExists = errors.New("exists already")
	// ErrConflict says that the revision given to Update is not the current one.
	ErrConflict = errors.New("changed by another")
	// ErrCorrupt says that data is damaged. See CorruptError.
	ErrCorrupt = errors.New("damaged")
	// ErrInvalid says that a bucket, key or value is outside what can be stored.
	ErrInvalid = errors.New("invalid")
	// ErrClosed says that the store was closed.
	ErrClosed = errors.New("closed")
	// ErrUnavailable says that the store cannot be reached now. Whether a write
	// happened is unknown.
	ErrUnavailable = errors.New("the network's store cannot be reached")
)

// Store is durable small state. All methods are safe for concurrent use, by
// several processes too. Values passed in are not kept; values returned belong to
// the caller.
//
// Buckets are 1 to MaxBucket of a-z 0-9 _ -, beginning with a letter or digit; keys are 1 to
// MaxKey of A-Z a-z 0-9 - _ = . / without a dot at either end or two in a row.
// Buckets need not be made first.
type Store interface {
	// Get returns the entry of a key, or ErrNotFound.
	Get(ctx context.Context, bucket, key string) (Entry, error)
	// Put writes a value whatever was there and returns its revision.
	Put(ctx context.Context, bucket, key string, value []byte) (revision uint64, err error)
	// Create writes a value only if the key does not exist, else ErrExists.
	Create(ctx context.Context, bucket, key string, value []byte) (revision uint64, err error)
	// Update writes a value only if the current revision is the one given, else
	// ErrConflict, or ErrNotFound if the key is gone.
	Update(ctx context.Context, bucket, key string, value []byte, revision uint64) (newRevision uint64, err error)
	// Delete removes a key. A key that does not exist is no error; a damaged one is
	// removed: this is how to repair it.
	Delete(ctx context.Context, bucket, key string) error
	// List returns all entries of a bucket in the order of keys. When some are
	// damaged, it returns the others together with an error that joins a
	// *CorruptError for each.
	List(ctx context.Context, bucket string) ([]Entry, error)
	// Watch sends the bucket's present entries, then EventReady, then every change
	// within a second, until ctx ends; then it closes the channel. A receiver that
	// is slow misses intermediate values of a key, never the latest.
	Watch(ctx context.Context, bucket string) (<-chan Event, error)
}

// Entry is one key with its value.
type Entry struct {
	Key      string
	Value    []byte
	Revision uint64
}

// EventKind says what an Event tells.
type EventKind uint8

// The kinds of events.
const (
	// EventPut: the entry was there at the start, or was written.
	EventPut EventKind = iota + 1
	// EventDelete: the entry of that key is gone; only Entry.Key is set.
	EventDelete
	// EventReady: all that precedes is the whole present state. Sent once after the
	// start, and again whenever a watch that could not read (EventFault) can again.
	EventReady
	// EventFault: the entry Entry.Key, or with an empty key the whole bucket, cannot
	// be read; Err says why. What was known of it remains the best knowledge.
	EventFault
)

// Event is one message of a watch.
type Event struct {
	Kind  EventKind
	Entry Entry
	Err   error
}

// CorruptError says which data is damaged and how. It is ErrCorrupt.
type CorruptError struct {
	Bucket string
	Key    string // the file's name if the damage hides the key
	Path   string
	Why    string
}

// Error names the damaged file and the damage.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s is damaged: %s", e.Path, e.Why)
}

// Is makes errors.Is(err, ErrCorrupt) true.
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }

// Compiled once; a regexp is immutable and safe for concurrent use.
var (
	bucketForm = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)
	keyForm    = regexp.MustCompile(`^[-A-Za-z0-9_=/]+(\.[-A-Za-z0-9_=/]+)*$`)
)

// CheckKey returns an ErrInvalid error unless key may be stored in bucket.
func CheckKey(bucket, key string) error { return validateKey(bucket, key) }

func validateBucket(bucket string) error {
	if !bucketForm.MatchString(bucket) {
		return fmt.Errorf("bucket %.80q: %w", bucket, ErrInvalid)
	}
	return nil
}

func validateKey(bucket, key string) error {
	if err := validateBucket(bucket); err != nil {
		return err
	}
	if len(key) > MaxKey || !keyForm.MatchString(key) {
		return fmt.Errorf("key %.80q in bucket %s: %w", key, bucket, ErrInvalid)
	}
	return nil
}
