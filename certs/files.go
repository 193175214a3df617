package certs

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"wormhole/shared/hostname"
)

// Pair names the two PEM files of one certificate: its chain, leaf first, and its
// key.
type Pair struct{ Cert, Key string }

// FilesConfig says which files hold certificates.
type FilesConfig struct {
	// Pairs are the certificates. The first also serves clients that send no name.
	Pairs []Pair
	// Interval is the time between two looks at the files (default 10s).
	Interval time.Duration
}

// Files serves certificates from files, chosen by the names they are made out to,
// exact before wildcard. Run reads files again that changed. A new content that
// does not make a certificate is reported, and the old one stays.
type Files struct {
	cfg FilesConfig
	log *slog.Logger

	set atomic.Pointer[fileSet]

	mu    sync.Mutex // guards files, and serialises Reload
	files []loadedPair
}

// loadedPair is what was last read of a pair.
type loadedPair struct {
	pair  Pair
	cert  *tls.Certificate
	stamp stamp // of the files that made cert, or of those that failed
}

// stamp is what the two files of a pair looked like; nil for one that was not there.
type stamp [2]fs.FileInfo

// equal reports whether both are still the files that were seen.
func (s stamp) equal(t stamp) bool {
	for i := range s {
		a, b := s[i], t[i]
		if a == nil || b == nil {
			if a != b {
				return false
			}
			continue
		}
		if !os.SameFile(a, b) || a.Size() != b.Size() || !a.ModTime().Equal(b.ModTime()) {
			return false
		}
	}
	return true
}

// fileSet is immutable.
type fileSet struct {
	byName map[string][]*tls.Certificate // by canonical name or wildcard
	first  *tls.Certificate
}

// NewFiles reads the files. Every pair that cannot be used is in the error.
func NewFiles(cfg FilesConfig, log *slog.Logger) (*Files, error) {
	if len(cfg.Pairs) == 0 {
		return nil, errors.New("certificate files: none was named")
	}
	if cfg.Interval == 0 {
		cfg.Interval = 10 * time.Second
	}
	f := &Files{cfg: cfg, log: log}
	var faults []error
	for _, pair := range cfg.Pairs {
		loaded := loadedPair{pair: pair, stamp: stampOf(pair)}
		cert, err := loadPair(pair)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		loaded.cert = cert
		f.files = append(f.files, loaded)
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	f.publish()
	return f, nil
}

// Run looks at the files every interval until ctx ends.
func (f *Files) Run(ctx context.Context) error {
	tick := time.NewTicker(f.cfg.Interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			f.Reload()
		}
	}
}

// Reload reads the pairs whose files changed since they were last read, and
// reports how many certificates are new. Failures are logged, once for each
// change of the files.
func (f *Files) Reload() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	changed := 0
	for i := range f.files {
		loaded := &f.files[i]
		now := stampOf(loaded.pair)
		if now.equal(loaded.stamp) {
			continue
		}
		// Stamped before reading: a change during the read is seen the next time.
		loaded.stamp = now
		cert, err := loadPair(loaded.pair)
		if err != nil {
			f.log.Error("certificate file unusable, keeping the old certificate", "path", loaded.pair.Cert, "err", err)
			continue
		}
		loaded.cert = cert
		changed++
		f.log.Info("certificate file read", "path", loaded.pair.Cert, "not_after", cert.Leaf.NotAfter)
	}
	if changed > 0 {
		f.publish()
	}
	return changed
}

// publish makes the certificates read the ones that are served.
func (f *Files) publish() {
	set := &fileSet{byName: make(map[string][]*tls.Certificate), first: f.files[0].cert}
	for i := range f.files {
		cert := f.files[i].cert
		for _, name := range cert.Leaf.DNSNames {
			// A certificate may hold names that cannot be served here; they are no fault
			// of the others.
			if pattern, err := hostname.CanonicalPattern(name); err == nil {
				set.byName[pattern] = append(set.byName[pattern], cert)
			}
		}
	}
	f.set.Store(set)
}

// GetCertificate implements Certificates.
func (f *Files) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	set := f.set.Load()
	if hello.ServerName == "" {
		return set.first, nil
	}
	host, err := hostname.Canonical(hello.ServerName)
	if err != nil {
		return nil, ErrUnknownName
	}
	list := set.byName[host]
	if list == nil {
		if parent := hostname.Parent(host); parent != "" {
			list = set.byName["*."+parent]
		}
	}
	return choose(list, hello)
}

// choose returns the first certificate whose key the client can verify, for those
// who serve an ECDSA and an RSA certificate under one name.
func choose(list []*tls.Certificate, hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	switch len(list) {
	case 0:
		return nil, ErrUnknownName
	case 1:
		return list[0], nil
	}
	i := slices.IndexFunc(list, func(c *tls.Certificate) bool { return hello.SupportsCertificate(c) == nil })
	return list[max(i, 0)], nil
}

// Names returns the names that the certificates are made out to, sorted.
func (f *Files) Names() []string {
	var names []string
	for name := range f.set.Load().byName {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Hosts returns the names with what is known of their certificates, sorted. A name
// with several certificates has a row for each.
func (f *Files) Hosts() []HostStatus {
	var all []HostStatus
	for name, list := range f.set.Load().byName {
		for _, cert := range list {
			s := HostStatus{Host: name, State: StateValid}
			s.describe(cert.Leaf)
			if time.Now().After(s.NotAfter) {
				s.State, s.Error = StateFailed, "the certificate in the file has expired"
			}
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b HostStatus) int {
		return cmp.Or(strings.Compare(a.Host, b.Host), a.NotAfter.Compare(b.NotAfter))
	})
	return all
}

func loadPair(pair Pair) (*tls.Certificate, error) {
	cert, err := tls.LoadX509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		if path := new(fs.PathError); errors.As(err, &path) {
			return nil, fmt.Errorf("certificate file %w", err)
		}
		return nil, fmt.Errorf("certificate %s with key %s: %w", pair.Cert, pair.Key, err)
	}
	if len(cert.Leaf.DNSNames) == 0 {
		return nil, fmt.Errorf("certificate %s holds no DNS name", pair.Cert)
	}
	return &cert, nil
}

func stampOf(pair Pair) (s stamp) {
	for i, path := range [...]string{pair.Cert, pair.Key} {
		// Stat follows links: mounted secrets are links that move.
		if info, err := os.Stat(path); err == nil {
			s[i] = info
		}
	}
	return s
}
