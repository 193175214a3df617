package kv

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"wormhole/edge/cluster/store"
)

// patience is how often a store that is connected may fail to answer before it is
// dialled again.
const patience = 4

// settle is how long a replicated store may lack what this edge knows: a server that
// was started or elected a moment ago has yet to take in what the others hold.
const settle = 30 * time.Second

// massLoss is how many entries of a bucket may vanish between two connections
// without being taken for the loss of the store.
const massLoss = 10

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
