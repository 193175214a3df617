package site

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"wormhole/edge/cluster/store"
	"wormhole/shared/hostname"
)

// Buckets of the store.
const (
	bucketSites = "sites" // Spec as JSON, by host
	bucketHosts = "hosts" // hosts that were registered at some time; no value
)

// Keeper keeps a Registry and the store in step: rules that were applied and
// hosts that were registered outlive a restart. All methods may be called
// concurrently.
type Keeper struct {
	registry *Registry
	store    store.Store
	logger   *slog.Logger
	news     chan string // hosts to remember
}

// NewKeeper fills registry from s. A damaged entry is logged and left where it is:
// its site has the default rules until it is applied again. Run must be running
// for newly registered hosts to be remembered.
func NewKeeper(ctx context.Context, registry *Registry, s store.Store, logger *slog.Logger) (*Keeper, error) {
	k := &Keeper{registry: registry, store: s, logger: logger, news: make(chan string, 4096)}
	hosts, err := s.List(ctx, bucketHosts)
	if err != nil && !errors.Is(err, store.ErrCorrupt) {
		return nil, fmt.Errorf("read known hosts: %w", err)
	}
	for _, e := range hosts {
		if err := registry.Remember(fromKey(e.Key)); err != nil {
			logger.Error("known host in store is unusable", "site", e.Key, "err", err)
		}
	}
	sites, err := s.List(ctx, bucketSites)
	if err != nil && !errors.Is(err, store.ErrCorrupt) {
		return nil, fmt.Errorf("read sites: %w", err)
	}
	if err != nil {
		logger.Error("some sites in the store are damaged and have the default rules", "err", err)
	}
	for _, e := range sites {
		spec, err := Parse(e.Value)
		if err == nil {
			err = registry.Apply(spec)
		}
		if err != nil {
			logger.Error("site in store is unusable and has the default rules", "site", fromKey(e.Key), "err", err)
		}
	}
	registry.OnNewHost(func(pattern string) {
		select {
		case k.news <- pattern:
		default: // the host is registered all the same, only not remembered
			logger.Warn("too many new hosts at once, one is not remembered over a restart", "site", pattern)
		}
	})
	return k, nil
}

// Run writes new hosts to the store until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case host := <-k.news:
			_, err := k.store.Create(ctx, bucketHosts, toKey(host), nil)
			if err != nil && !errors.Is(err, store.ErrExists) && ctx.Err() == nil {
				k.logger.Error("host is not remembered over a restart", "site", host, "err", err)
			}
		}
	}
}

// Follow puts into force what other edges apply and delete, until ctx ends. An
// edge that is alone does not need it.
func (k *Keeper) Follow(ctx context.Context) error {
	for ctx.Err() == nil {
		events, err := k.store.Watch(ctx, bucketSites)
		if err != nil {
			return err
		}
		started := false // what NewKeeper read comes first
		for e := range events {
			switch host := fromKey(e.Entry.Key); {
			case e.Kind == store.EventReady:
				started = true
			case !started:
			case e.Kind == store.EventPut:
				spec, err := Parse(e.Entry.Value)
				if err == nil {
					err = k.registry.Apply(spec)
				}
				if err != nil {
					k.logger.Error("site in store is unusable, going on with what is known", "site", host, "err", err)
				}
			case e.Kind == store.EventDelete:
				k.registry.Delete(host)
			}
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
	return nil
}

// Apply puts the rules of spec into force, durably: when it returns nil they are
// on disk and in force.
func (k *Keeper) Apply(ctx context.Context, spec Spec) error {
	if _, err := Compile(spec, DefaultRules()); err != nil {
		return err
	}
	pattern, err := hostname.CanonicalPattern(spec.Host)
	if err != nil {
		return err
	}
	spec.Host = pattern
	text, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	if _, err := k.store.Put(ctx, bucketSites, toKey(pattern), text); err != nil {
		return fmt.Errorf("store site %s: %w", pattern, err)
	}
	return k.registry.Apply(spec)
}

// Delete withdraws what was applied for host and forgets it; see
// Registry.Delete. It reports whether the host was known.
func (k *Keeper) Delete(ctx context.Context, host string) (bool, error) {
	pattern, err := hostname.CanonicalPattern(host)
	if err != nil {
		return false, err
	}
	for _, bucket := range []string{bucketSites, bucketHosts} {
		if err := k.store.Delete(ctx, bucket, toKey(pattern)); err != nil {
			return false, fmt.Errorf("delete site %s: %w", pattern, err)
		}
	}
	return k.registry.Delete(pattern), nil
}

// Keys of the store hold no asterisk; no host label begins with an underscore.
const wildcardKey = "_any."

func toKey(pattern string) string {
	if parent, ok := strings.CutPrefix(pattern, "*."); ok {
		return wildcardKey + parent
	}
	return pattern
}

func fromKey(key string) string {
	if parent, ok := strings.CutPrefix(key, wildcardKey); ok {
		return "*." + parent
	}
	return key
}
