package certs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Limits bound what is ordered, by all edges together. A zero number is no limit.
type Limits struct {
	Orders    Limit // orders of the account
	PerDomain Limit // first certificates below one registered domain
	PerName   Limit // certificates for the same name
}

// Limit is a number of events within a period.
type Limit struct {
	Most   int
	Period time.Duration
}

// LetsEncryptLimits are those that Let's Encrypt publishes
// (https://letsencrypt.org/docs/rate-limits/).
func LetsEncryptLimits() Limits {
	return Limits{
		Orders:    Limit{300, 3 * time.Hour},
		PerDomain: Limit{50, 7 * 24 * time.Hour},
		PerName:   Limit{5, 7 * 24 * time.Hour},
	}
}

// BudgetUse is how much of a limit is used.
type BudgetUse struct {
	Limit string // "orders", "domain", "name"
	Used  int    // of domains and names, of the one ordered for last
	Most  int
}

// reserve counts one order for a host, or returns a *putOff if a limit is reached.
func (m *ACME) reserve(ctx context.Context, h *acmeHost) error {
	now := m.cfg.Now()
	if limit := m.limits.PerName; limit.Most > 0 {
		value, err := m.cache.Get(ctx, kindHost, h.name)
		if err != nil {
			return err
		}
		rec, err := decodeHost(value, h.name)
		if err != nil {
			return err
		}
		issued := within(rec.Issued, limit.Period, now)
		m.used("name", len(issued), limit)
		if len(issued) >= limit.Most {
			return limit.reached("for the same name", issued[0])
		}
	}
	// A renewal does not count for the domain.
	if h.cert.Load() == nil {
		domain := registered(h.name)
		if err := m.count(ctx, "domain", "domain/"+domain, "below "+domain, m.limits.PerDomain, now); err != nil {
			return err
		}
	}
	return m.count(ctx, "orders", "orders", "of the account", m.limits.Orders, now)
}

// count adds an event to the list of a limit, if there is room.
func (m *ACME) count(ctx context.Context, label, name, whose string, limit Limit, now time.Time) error {
	if limit.Most == 0 {
		return nil
	}
	var used int
	err := m.update(ctx, kindBudget, name, func(old []byte) ([]byte, error) {
		var times []int64
		if old != nil {
			if err := json.Unmarshal(old, &times); err != nil {
				return nil, fmt.Errorf("%w: budget %s: %w", ErrDamaged, name, err)
			}
		}
		times = within(times, limit.Period, now)
		if used = len(times); used >= limit.Most {
			return nil, limit.reached(whose, times[0])
		}
		used++
		return json.Marshal(append(times, now.Unix()))
	})
	var off *putOff
	if err == nil || errors.As(err, &off) {
		m.used(label, used, limit)
	}
	return err
}

func (l Limit) reached(whose string, first int64) *putOff {
	return &putOff{
		until: time.Unix(first, 0).Add(l.Period),
		why:   fmt.Sprintf("the limit of %d orders %s in %s is reached", l.Most, whose, l.Period),
	}
}

// used notes the use of a limit for the metrics.
func (m *ACME) used(label string, used int, limit Limit) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.usage[label] = BudgetUse{Limit: label, Used: used, Most: limit.Most}
}
