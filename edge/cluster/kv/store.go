// Package kv is the network's durable state in a cluster: a JetStream key-value
// store on one edge or on three (Server), and a store.Store on every edge (Store)
// that writes there, holds everything in memory and mirrors it to the edge's own disk.
//
// # Guarantees
//
// A write that returned nil is on the disk of the edge that hosts the store, or of
// two of the three that do. When the store cannot be reached for a second, writes fail
// with store.ErrUnavailable. A write whose connection is lost is asked for once more
// on the next one; if that is refused and the entry is not what was to be written,
// whether it happened is unknown, which ErrUnavailable says. Meanwhile reads answer
// from what this edge knew last, also after a restart: the mirror. Entries that vanish
// by the thousand in one step are kept and an alarm is raised, since that is how a
// store that was lost looks.
package kv

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"wormhole/edge/cluster/store"
)

// Config of a Store.
type Config struct {
	// Dial connects to the server: Server.InProcessConn, or over the network.
	Dial func() (net.Conn, error)
	// External takes the place of Dial.
	External *External
	// Why says, if the store cannot be reached, why that is to be expected, and nil if
	// it is not. May be nil.
	Why func() error
	// Mirror is the directory for the copy on disk.
	Mirror string
	// Timeout bounds one read or write; default 3 s.
	Timeout time.Duration
	// Connecting is how long a write waits for a store that is not connected; default
	// 1 s.
	Connecting time.Duration
	// Pushed is called with every entry that this process wrote, for those who
	// want to tell others faster than their watch does. May be nil.
	Pushed func(bucket string, e store.Entry)
}

// Store is a store.Store on the network's store. Run must be running.
type Store struct {
	cfg    Config
	logger *slog.Logger
	conn   *nats.Conn
	mirror *mirror
	linked chan bool // capacity 1: the connection came (true) or went
	done   chan struct{}
	once   sync.Once
	wg     sync.WaitGroup // watches
	behind time.Time      // since when a replicated store lacks something, else zero; of Run alone

	mu      sync.Mutex // guards below
	closed  bool
	kv      jetstream.KeyValue // nil while not connected
	came    chan struct{}      // closed while connected
	live    context.Context    // of what is asked of kv
	unlive  context.CancelFunc // ends it, when the connection goes
	buckets map[string]*bucket
	synced  bool  // memory is as fresh as the store
	fault   error // why not, once known
	since   time.Time
	fresh   chan struct{} // closed when synced for the first time
}

var _ store.Store = (*Store)(nil)

// bucket is what is known of one bucket.
type bucket struct {
	entries  map[string]store.Entry
	gone     map[string]uint64 // revisions at which keys were deleted
	watchers map[*watcher]struct{}
}

// Open loads the mirror and begins to connect. It does not wait for the store.
func Open(cfg Config, logger *slog.Logger) (*Store, error) {
	if cfg.Timeout <= 0 {
		cfg.Timeout = 3 * time.Second
	}
	if cfg.Connecting <= 0 {
		cfg.Connecting = time.Second
	}
	s := &Store{
		cfg: cfg, logger: logger, linked: make(chan bool, 1), done: make(chan struct{}),
		buckets: map[string]*bucket{}, since: time.Now(), fresh: make(chan struct{}),
		fault: store.ErrUnavailable, came: make(chan struct{}),
	}
	var err error
	if s.mirror, err = openMirror(cfg.Mirror, logger); err != nil {
		return nil, err
	}
	if err := s.mirror.load(func(name string, e store.Entry) { s.bucket(name).entries[e.Key] = e }); err != nil {
		_ = s.mirror.close()
		return nil, err
	}
	connect := func(more ...nats.Option) (*nats.Conn, error) {
		return nats.Connect("nats://store.invalid", append(more,
			nats.SetCustomDialer(dialer(cfg.Dial)), nats.SkipHostLookup(), nats.IgnoreDiscoveredServers())...)
	}
	if cfg.External != nil {
		connect = cfg.External.Connect
	}
	s.conn, err = connect(
		nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(250*time.Millisecond),
		nats.ReconnectJitter(100*time.Millisecond, 100*time.Millisecond),
		// Nothing written while disconnected may be applied later: see pitfalls of a
		// write that timed out.
		nats.ReconnectBufSize(-1),
		nats.Timeout(2*time.Second), nats.PingInterval(2*time.Second), nats.MaxPingsOutstanding(2),
		nats.ConnectHandler(func(*nats.Conn) { s.link(true) }),
		nats.ReconnectHandler(func(*nats.Conn) { s.link(true) }),
		nats.DisconnectErrHandler(func(*nats.Conn, error) { s.link(false) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			logger.Debug("store client", "err", err)
		}),
		// A server that refuses the credentials twice is asked again all the same.
		nats.IgnoreAuthErrorAbort(),
	)
	if err != nil {
		_ = s.mirror.close()
		return nil, fmt.Errorf("store client: %w", err)
	}
	return s, nil
}

// Reconnect dials anew, as when the store is elsewhere now.
func (s *Store) Reconnect() { _ = s.conn.ForceReconnect() }

type dialer func() (net.Conn, error)

func (d dialer) Dial(string, string) (net.Conn, error) { return d() }

// SkipTLSHandshake: what dial returns is secure already.
func (d dialer) SkipTLSHandshake() bool { return true }

// Health says since when what is known is current, or why it is not and since when.
func (s *Store) Health() (since time.Time, fault error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.since, s.fault
}

// Fresh is closed once memory was in step with the store for the first time.
func (s *Store) Fresh() <-chan struct{} { return s.fresh }

// Empty reports whether nothing is known at all.
func (s *Store) Empty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.buckets {
		if len(b.entries) > 0 {
			return false
		}
	}
	return true
}

// Learn takes in an entry that came by another way than the watch, if it is newer
// than what is known.
func (s *Store) Learn(name string, e store.Entry) {
	if store.CheckKey(name, e.Key) == nil && len(e.Value) <= store.MaxValue {
		s.learn(name, e)
	}
}

func (s *Store) learn(name string, e store.Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.bucket(name)
	if have, ok := b.entries[e.Key]; ok && have.Revision >= e.Revision || b.gone[e.Key] >= e.Revision {
		return
	}
	delete(b.gone, e.Key)
	b.entries[e.Key] = e
	s.mirror.put(name, e)
	for w := range b.watchers {
		w.change(store.Event{Kind: store.EventPut, Entry: e})
	}
}

func (s *Store) forget(name, key string, revision uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.bucket(name)
	if b.entries[key].Revision < revision {
		s.drop(name, b, key, revision)
	}
}

// drop removes an entry; s.mu is held.
func (s *Store) drop(name string, b *bucket, key string, revision uint64) {
	if len(b.gone) > 10_000 {
		clear(b.gone) // it only guards against late news
	}
	b.gone[key] = revision
	if _, ok := b.entries[key]; !ok {
		return
	}
	delete(b.entries, key)
	s.mirror.remove(name, key)
	for w := range b.watchers {
		w.change(store.Event{Kind: store.EventDelete, Entry: store.Entry{Key: key}})
	}
}

// bucket returns what is known of a bucket; s.mu is held, or nobody else is there.
func (s *Store) bucket(name string) *bucket {
	b := s.buckets[name]
	if b == nil {
		b = &bucket{entries: map[string]store.Entry{}, gone: map[string]uint64{}, watchers: map[*watcher]struct{}{}}
		s.buckets[name] = b
	}
	return b
}

// remote returns the store, if it is connected, and what ends when it is not any more.
func (s *Store) remote() (jetstream.KeyValue, context.Context, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, nil, store.ErrClosed
	case s.kv == nil && errors.Is(s.fault, store.ErrCorrupt):
		return nil, nil, fmt.Errorf("%w: %w", store.ErrUnavailable, s.fault)
	case s.kv == nil:
		if s.cfg.Why != nil {
			if err := s.cfg.Why(); err != nil {
				return nil, nil, fmt.Errorf("%w: %w", store.ErrUnavailable, err)
			}
		}
		return nil, nil, store.ErrUnavailable
	}
	return s.kv, s.live, nil
}

// bounded is ctx for one read or write on a connection.
func (s *Store) bounded(ctx, live context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	stop := context.AfterFunc(live, cancel)
	return ctx, func() { stop(); cancel() }
}

// known returns what memory has.
func (s *Store) known(name, key string) (store.Entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.bucket(name).entries[key]
	if !ok {
		return store.Entry{}, store.ErrNotFound
	}
	e.Value = slices.Clone(e.Value)
	return e, nil
}

// Get implements store.Store. It asks the store, and memory while that cannot be
// reached.
func (s *Store) Get(ctx context.Context, name, key string) (store.Entry, error) {
	fail := func(err error) (store.Entry, error) {
		return store.Entry{}, fmt.Errorf("read %s/%s: %w", name, key, err)
	}
	if err := store.CheckKey(name, key); err != nil {
		return fail(err)
	}
	remote, live, err := s.remote()
	if err == nil {
		ask, cancel := s.bounded(ctx, live)
		defer cancel()
		e, err := remote.Get(ask, name+"."+key)
		switch {
		case err == nil:
			got := store.Entry{Key: key, Value: e.Value(), Revision: e.Revision()}
			s.learn(name, store.Entry{Key: key, Value: slices.Clone(e.Value()), Revision: e.Revision()})
			return got, nil
		case errors.Is(err, jetstream.ErrKeyNotFound):
			return fail(store.ErrNotFound)
		case ctx.Err() != nil:
			return fail(ctx.Err())
		}
	} else if errors.Is(err, store.ErrClosed) {
		return fail(err)
	}
	e, err := s.known(name, key)
	if err != nil {
		// What a mirror does not have may be there all the same.
		return fail(fmt.Errorf("%w, and this edge does not know it: %w", store.ErrUnavailable, err))
	}
	return e, nil
}

// List implements store.Store, from memory: it is what the watch knows.
func (s *Store) List(ctx context.Context, name string) ([]store.Entry, error) {
	if err := store.CheckKey(name, "x"); err != nil {
		return nil, fmt.Errorf("list %s: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, fmt.Errorf("list %s: %w", name, store.ErrClosed)
	}
	entries := make([]store.Entry, 0, len(s.bucket(name).entries))
	for _, e := range s.bucket(name).entries {
		e.Value = slices.Clone(e.Value)
		entries = append(entries, e)
	}
	slices.SortFunc(entries, func(a, b store.Entry) int { return strings.Compare(a.Key, b.Key) })
	return entries, ctx.Err()
}

// Buckets are the names of those that have entries, in order.
func (s *Store) Buckets() ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, store.ErrClosed
	}
	var names []string
	for name, b := range s.buckets {
		if len(b.entries) > 0 {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// Close ends all watches and the connection. It is idempotent and waits.
func (s *Store) Close() error {
	s.once.Do(func() {
		s.mu.Lock()
		s.closed = true
		if s.kv != nil {
			s.unlive()
		}
		close(s.done)
		s.mu.Unlock()
		s.conn.Close()
		s.wg.Wait()
		_ = s.mirror.close()
	})
	return nil
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
