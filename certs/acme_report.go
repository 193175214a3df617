package certs

import (
	"crypto/x509"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// counters of an ACME source.
type counters struct {
	ordered, issued, failed, putOff, capped atomic.Uint64
}

// HostStatus is what an edge knows of one host.
type HostStatus struct {
	Host      string
	Issuer    string // organisation, or common name, of the CA
	Serial    string // hexadecimal
	NotBefore time.Time
	NotAfter  time.Time // zero without a certificate
	State     State
	Error     string    // why it is not valid
	Next      time.Time // when something will be tried or renewed
}

// Hosts returns all hosts with a certificate or an order, by name.
func (m *ACME) Hosts() []HostStatus {
	var all []HostStatus
	m.hosts.Range(func(_, v any) bool {
		all = append(all, v.(*acmeHost).status())
		return true
	})
	slices.SortFunc(all, func(a, b HostStatus) int { return strings.Compare(a.Host, b.Host) })
	return all
}

func (h *acmeHost) status() HostStatus {
	h.mu.Lock()
	s := HostStatus{Host: h.name, State: h.state, Error: h.err, Next: h.due}
	h.mu.Unlock()
	if c := h.cert.Load(); c != nil {
		s.describe(c.tls.Leaf)
	}
	return s
}

// describe takes over what a certificate says of itself.
func (s *HostStatus) describe(leaf *x509.Certificate) {
	s.Serial, s.NotBefore, s.NotAfter = serial(leaf), leaf.NotBefore, leaf.NotAfter
	s.Issuer = leaf.Issuer.CommonName
	if len(leaf.Issuer.Organization) > 0 {
		s.Issuer = strings.TrimSpace(leaf.Issuer.Organization[0] + " " + leaf.Issuer.CommonName)
	}
}

// ACMEStats are the figures of an ACME source. Their number does not grow with the
// hosts.
type ACMEStats struct {
	ByState map[State]int
	Expiry  time.Time // of the certificate that expires first among hosts still allowed; zero for none

	Ordered, Issued, Failed uint64 // orders the CA took; certificates; tries that failed
	PutOff                  uint64 // orders not made because a limit was reached or the clock is wrong
	Capped                  uint64 // names refused below wildcards
	Budget                  []BudgetUse
}

// Stats returns the figures now.
func (m *ACME) Stats() ACMEStats {
	s := ACMEStats{
		ByState: map[State]int{StateWaiting: 0, StateOrdering: 0, StateValid: 0, StateFailed: 0, StateBlocked: 0, StateRemoved: 0},
		Ordered: m.counts.ordered.Load(), Issued: m.counts.issued.Load(), Failed: m.counts.failed.Load(),
		PutOff: m.counts.putOff.Load(), Capped: m.counts.capped.Load(),
	}
	m.hosts.Range(func(_, v any) bool {
		h := v.(*acmeHost)
		h.mu.Lock()
		state := h.state
		h.mu.Unlock()
		s.ByState[state]++
		if c := h.cert.Load(); c != nil && state != StateRemoved && (s.Expiry.IsZero() || c.notAfter.Before(s.Expiry)) {
			s.Expiry = c.notAfter
		}
		return true
	})
	m.mu.Lock()
	for _, use := range m.usage {
		s.Budget = append(s.Budget, use)
	}
	m.mu.Unlock()
	slices.SortFunc(s.Budget, func(a, b BudgetUse) int { return strings.Compare(a.Limit, b.Limit) })
	return s
}

var _ Certificates = (*ACME)(nil)
