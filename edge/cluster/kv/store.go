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
	"bytes"
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

// patience is how often a store that is connected may fail to answer before it is
// dialled again.
const patience = 4

// Reconnect dials anew, as when the store is elsewhere now.
func (s *Store) Reconnect() { _ = s.conn.ForceReconnect() }

type dialer func() (net.Conn, error)

func (d dialer) Dial(string, string) (net.Conn, error) { return d() }

// SkipTLSHandshake: what dial returns is secure already.
func (d dialer) SkipTLSHandshake() bool { return true }

// link notes the latest state of the connection.
func (s *Store) link(up bool) {
	for {
		select {
		case s.linked <- up:
			return
		case <-s.linked: // outdated
		case <-s.done:
			return
		}
	}
}

// Run keeps memory and mirror in step with the store until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { s.mirror.run(ctx) })
	up, faults := false, 0
	for {
		if !up {
			select {
			case up = <-s.linked:
			case <-ctx.Done():
				return nil
			}
			continue
		}
		err := s.follow(ctx, &up)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, errLag) && up {
			continue // reads and writes go on, another watch is wanted
		}
		s.setFault(err)
		if faults++; !up {
			faults = 0
		} else if faults%patience == 0 && !errors.Is(err, store.ErrCorrupt) {
			s.Reconnect() // Dial may know another server
		}
		if up { // the connection is there, but the store does not answer
			select {
			case up = <-s.linked:
			case <-time.After(500 * time.Millisecond):
			case <-ctx.Done():
				return nil
			}
		}
	}
}

// follow binds to the bucket and applies what it watches until the connection
// goes or the watch fails. Watches do not survive a reconnect well, so each
// connection gets one of its own.
func (s *Store) follow(ctx context.Context, up *bool) error {
	js, err := jetstream.New(s.conn)
	if err != nil {
		return err
	}
	newest := s.newest() // before the store says how far it is: others write meanwhile
	bind, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	bound, err := js.KeyValue(bind, bucketName)
	var stream jetstream.Stream
	if err == nil {
		stream, err = js.Stream(bind, streamName)
	}
	cancel()
	if err != nil {
		return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	}
	began, last := stream.CachedInfo().Config.FirstSeq, stream.CachedInfo().State.LastSeq
	replicated := stream.CachedInfo().Config.Replicas > 1
	if newest <= last {
		s.behind = time.Time{}
	} else if replicated && s.catchingUp() {
		return fmt.Errorf("%w: its servers are catching up", store.ErrUnavailable)
	} else {
		return fmt.Errorf("%w: it is %d writes behind what this edge has of it: its files were damaged or are an old copy. "+
			"Nothing is written to it: take a backup of an edge that is in step, and restore it", store.ErrCorrupt, newest-last)
	}
	// The request for a watch waits for as long as its context does.
	watching, end := context.WithCancel(ctx)
	defer end()
	late := time.AfterFunc(2*s.cfg.Timeout, end)
	watch, err := bound.WatchAll(watching)
	if !late.Stop() && err == nil {
		_ = watch.Stop()
		err = context.DeadlineExceeded
	}
	if err != nil {
		return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	}
	defer func() { _ = watch.Stop() }()
	s.mu.Lock()
	if s.kv == nil {
		s.live, s.unlive = context.WithCancel(context.Background())
		close(s.came)
	}
	s.kv = bound
	s.mu.Unlock()

	initial := map[string]map[string]bool{} // keys of the present state; nil once it is complete
	told := false                           // the server that tells it has told all that it has
	quiet := time.NewTimer(silence)
	defer quiet.Stop()
	lag := newLag(s, stream)
	if replicated {
		defer lag.stop()
	}
	// The server that tells the state may be one that was started a moment ago, and
	// lack what the one that leads has: it tells that when it has it.
	behind := func() bool {
		return replicated && stream.CachedInfo().State.Msgs > 0 && lag.seen.Load() < last
	}
	complete := func() error {
		if err := s.complete(initial, began, last); err != nil {
			if replicated && s.catchingUp() {
				return fmt.Errorf("%w: one of its servers is catching up", store.ErrUnavailable)
			}
			return err
		}
		s.behind = time.Time{}
		initial = nil
		quiet.Stop()
		if replicated {
			lag.start(ctx)
		}
		return nil
	}
	for {
		select {
		case e, ok := <-watch.Updates():
			if initial != nil {
				quiet.Reset(silence)
			}
			switch {
			case !ok:
				return errors.New("the watch of the store ended")
			case e == nil:
				if told = true; behind() {
					continue
				}
				if err := complete(); err != nil {
					return err
				}
			default:
				lag.seen.Store(max(lag.seen.Load(), e.Revision()))
				s.apply(e, initial)
			}
			if e != nil && told && initial != nil && !behind() {
				if err := complete(); err != nil {
					return err
				}
			}
		case *up = <-s.linked:
			return store.ErrUnavailable
		case err := <-lag.found:
			return err
		case <-quiet.C:
			if told {
				return fmt.Errorf("%w: one of its servers is catching up", store.ErrUnavailable)
			}
			if replicated && s.catchingUp() { // the server that tells it may be gone
				return fmt.Errorf("%w: it stops in the middle of telling its state", store.ErrUnavailable)
			}
			return fmt.Errorf("%w: it stops in the middle of telling its state. Nothing is written to it: "+
				"take a backup of an edge that is in step, and restore it", store.ErrCorrupt)
		case <-ctx.Done():
			return nil
		}
	}
}

// apply takes in what a watch told, and notes it in initial unless that is nil.
func (s *Store) apply(e jetstream.KeyValueEntry, initial map[string]map[string]bool) {
	name, key, found := strings.Cut(e.Key(), ".")
	if !found || store.CheckKey(name, key) != nil {
		return
	}
	if e.Operation() != jetstream.KeyValuePut {
		s.forget(name, key, e.Revision())
		return
	}
	if initial != nil {
		if initial[name] == nil {
			initial[name] = map[string]bool{}
		}
		initial[name][key] = true
	}
	s.learn(name, store.Entry{Key: key, Value: e.Value(), Revision: e.Revision()})
}

// settle is how long a replicated store may lack what this edge knows: a server that
// was started or elected a moment ago has yet to take in what the others hold.
const settle = 30 * time.Second

// catchingUp reports whether what is missing may still come.
func (s *Store) catchingUp() bool {
	if s.behind.IsZero() {
		s.behind = time.Now()
	}
	return time.Since(s.behind) < settle
}

// silence is how long a store that is connected may say nothing while it tells its
// state: it waits for ever for a message that it counted and cannot read.
const silence = 5 * time.Second

// massLoss is how many entries of a bucket may vanish between two connections
// without being taken for the loss of the store.
const massLoss = 10

// newest is the highest revision that was ever seen.
func (s *Store) newest() (revision uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.buckets {
		for _, e := range b.entries {
			revision = max(revision, e.Revision)
		}
	}
	return revision
}

// complete hears that the present state, of the revision last or later, was told whole: what it did not name is gone
// if it is older than the store, which was restored then. Else it should be there, as
// who deletes leaves a mark: the store is damaged then, and everything is kept.
func (s *Store) complete(present map[string]map[string]bool, began, last uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	damage, example := 0, ""
	for name, b := range s.buckets {
		for key, e := range b.entries {
			if !present[name][key] && e.Revision >= began && e.Revision <= last {
				damage, example = damage+1, name+"/"+key
			}
		}
	}
	if damage > 0 {
		return fmt.Errorf("%w: %d entries, such as %s, vanished from it without having been deleted. "+
			"Nothing is written to it: take a backup of an edge that is in step, and restore it", store.ErrCorrupt, damage, example)
	}
	for name, b := range s.buckets {
		var lost []string
		for key, e := range b.entries {
			// What is later than last was written meanwhile, and is told next.
			if !present[name][key] && e.Revision < began {
				lost = append(lost, key)
			}
		}
		if len(lost) > massLoss && 2*len(lost) > len(b.entries) {
			s.logger.Error("most entries of a bucket vanished from the store, keeping what is known", "bucket", name, "count", len(lost))
			continue
		}
		for _, key := range lost {
			s.drop(name, b, key, b.entries[key].Revision)
		}
	}
	first := !s.synced
	s.synced, s.fault = true, nil
	s.since = time.Now()
	if !isClosed(s.fresh) {
		close(s.fresh)
	}
	if first {
		s.logger.Info("store is in step", "buckets", len(s.buckets))
	}
	for _, b := range s.buckets {
		for w := range b.watchers {
			w.state(nil)
		}
	}
	return nil
}

func (s *Store) setFault(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.synced
	broken := errors.Is(err, store.ErrCorrupt) && !errors.Is(s.fault, store.ErrCorrupt)
	if s.kv != nil {
		s.unlive() // nobody answers what was asked
		s.came = make(chan struct{})
	}
	s.synced, s.kv, s.fault = false, nil, err
	if broken {
		s.logger.Error("the network's store is damaged, going on with what is known", "err", err)
	}
	if was {
		s.since = time.Now()
		s.logger.Warn("store cannot be reached, going on with what is known", "err", err)
	}
	for _, b := range s.buckets {
		for w := range b.watchers {
			w.state(err)
		}
	}
}

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

// awaited is remote, with some patience for a store that is between two connections:
// its edge starts again, another one leads, or it moves.
func (s *Store) awaited(ctx context.Context) (jetstream.KeyValue, context.Context, error) {
	for end := time.After(s.cfg.Connecting); ; {
		s.mu.Lock()
		came, hopeless := s.came, s.closed || errors.Is(s.fault, store.ErrCorrupt)
		s.mu.Unlock()
		remote, live, err := s.remote()
		if err == nil || hopeless {
			return remote, live, err
		}
		select {
		case <-came:
		case <-s.done:
		case <-end:
			return nil, nil, err
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("%w: %w", err, ctx.Err())
		}
	}
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

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, name, key string, value []byte) (uint64, error) {
	return s.write(ctx, name, key, value, func(ctx context.Context, kv jetstream.KeyValue, k string) (uint64, error) {
		return kv.Put(ctx, k, value)
	})
}

// Create implements store.Store.
func (s *Store) Create(ctx context.Context, name, key string, value []byte) (uint64, error) {
	return s.write(ctx, name, key, value, func(ctx context.Context, kv jetstream.KeyValue, k string) (uint64, error) {
		revision, err := kv.Create(ctx, k, value)
		if errors.Is(err, jetstream.ErrKeyExists) {
			return 0, store.ErrExists
		}
		return revision, err
	})
}

// Update implements store.Store.
func (s *Store) Update(ctx context.Context, name, key string, value []byte, revision uint64) (uint64, error) {
	return s.write(ctx, name, key, value, func(ctx context.Context, kv jetstream.KeyValue, k string) (uint64, error) {
		next, err := kv.Update(ctx, k, value, revision)
		if wrongRevision(err) {
			if _, err := kv.Get(ctx, k); errors.Is(err, jetstream.ErrKeyNotFound) {
				return 0, store.ErrNotFound
			}
			return 0, store.ErrConflict
		}
		return next, err
	})
}

func wrongRevision(err error) bool {
	var api *jetstream.APIError
	return errors.Is(err, jetstream.ErrKeyExists) ||
		errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence
}

func (s *Store) write(ctx context.Context, name, key string, value []byte,
	do func(context.Context, jetstream.KeyValue, string) (uint64, error),
) (uint64, error) {
	fail := func(err error) (uint64, error) { return 0, fmt.Errorf("write %s/%s: %w", name, key, err) }
	if err := store.CheckKey(name, key); err != nil {
		return fail(err)
	}
	if len(value) > store.MaxValue {
		return fail(fmt.Errorf("a value of %d bytes is larger than %d: %w", len(value), store.MaxValue, store.ErrInvalid))
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	revision, err := s.try(ctx, name, key, do)
	if errors.Is(err, errCut) && ctx.Err() == nil { // it may have been taken, or not
		var again error
		revision, again = s.try(ctx, name, key, do)
		switch {
		case again == nil:
			err = nil
		case refused(again) && ctx.Err() == nil: // by what the first try wrote?
			if e, known := s.current(ctx, name, key); known && bytes.Equal(e.Value(), value) {
				revision, err = e.Revision(), nil
			}
		}
	}
	if err != nil {
		return fail(err)
	}
	e := store.Entry{Key: key, Value: slices.Clone(value), Revision: revision}
	s.learn(name, e)
	if s.cfg.Pushed != nil {
		s.cfg.Pushed(name, e)
	}
	return revision, nil
}

// errCut says that the connection went while the store was asked.
var errCut = errors.New("the connection to it was lost")

// try asks for one write, once.
func (s *Store) try(ctx context.Context, name, key string,
	do func(context.Context, jetstream.KeyValue, string) (uint64, error),
) (uint64, error) {
	remote, live, err := s.awaited(ctx)
	if err != nil {
		return 0, err
	}
	bounded, cancel := s.bounded(ctx, live)
	defer cancel()
	revision, err := do(bounded, remote, name+"."+key)
	switch {
	case err == nil, refused(err):
		return revision, err
	case s.cut(live):
		return 0, fmt.Errorf("%w: %w: %w", store.ErrUnavailable, errCut, err)
	}
	return 0, fmt.Errorf("%w: %w", store.ErrUnavailable, err)
}

// cut reports whether the connection that live is of is gone. The client notices that
// before Run does.
func (s *Store) cut(live context.Context) bool {
	if live.Err() == nil && !s.conn.IsConnected() {
		select {
		case <-live.Done():
		case <-time.After(s.cfg.Connecting):
		}
	}
	return live.Err() != nil
}

// refused reports whether the store answered that a write was not taken.
func refused(err error) bool {
	return errors.Is(err, store.ErrExists) || errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrNotFound)
}

// current is what the store itself has now.
func (s *Store) current(ctx context.Context, name, key string) (e jetstream.KeyValueEntry, known bool) {
	remote, live, err := s.remote()
	if err != nil {
		return nil, false
	}
	ctx, cancel := s.bounded(ctx, live)
	defer cancel()
	e, err = remote.Get(ctx, name+"."+key)
	return e, err == nil
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, name, key string) error {
	fail := func(err error) error { return fmt.Errorf("delete %s/%s: %w", name, key, err) }
	if err := store.CheckKey(name, key); err != nil {
		return fail(err)
	}
	remote, live, err := s.awaited(ctx)
	if err != nil {
		return fail(err)
	}
	ctx, cancel := s.bounded(ctx, live)
	defer cancel()
	if _, err := remote.Get(ctx, name+"."+key); errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil
	}
	if err := remote.Delete(ctx, name+"."+key); err != nil {
		return fail(fmt.Errorf("%w: %w", store.ErrUnavailable, err))
	}
	s.mu.Lock()
	b := s.bucket(name)
	s.drop(name, b, key, b.entries[key].Revision)
	s.mu.Unlock()
	return nil
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
