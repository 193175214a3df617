package usage

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"wormhole/edge/cluster/store"
)

// Totals are what sites used in a month.
type Totals struct {
	Month string `json:"month"` // such as 2026-11, UTC
	// Months are those of which anything is known, the newest first.
	Months []string           `json:"months"`
	Sites  map[string]Amounts `json:"-"`
	// Damaged are rows that are missing in the totals, since they cannot be read.
	Damaged []string `json:"damaged,omitempty"`
}

// Totals sums what all edges have written, as far as this edge knows the store, and
// what this process has counted and not yet written. An empty month is this one.
func (m *Meter) Totals(ctx context.Context, month string) (*Totals, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	wanted := monthOf(m.cfg.Now())
	if month != "" {
		var err error
		if wanted, err = parseMonth(month); err != nil {
			return nil, err
		}
	}
	t := &Totals{Month: monthText(wanted), Sites: map[string]Amounts{}}
	add := func(host string, used Amounts) {
		sum := t.Sites[host]
		sum.Add(&used)
		t.Sites[host] = sum
	}
	known := map[uint16]bool{monthOf(m.cfg.Now()): true}

	entries, err := m.store.List(ctx, bucket)
	if err != nil {
		if !errors.Is(err, store.ErrCorrupt) {
			return nil, fmt.Errorf("read usage totals: %w", err)
		}
		t.Damaged = append(t.Damaged, err.Error())
	}
	rows := map[place]*row{}
	for _, e := range entries {
		at, ok := placeOf(e.Key)
		if ok {
			known[at.month] = true
		}
		if !ok || at.month != wanted {
			continue
		}
		r, err := decodeRow(e.Value)
		if err != nil {
			t.Damaged = append(t.Damaged, e.Key+": "+err.Error())
			continue
		}
		rows[at] = r
		for host, used := range r.sites {
			add(host, used)
		}
	}

	for _, b := range slices.Concat(m.queue, m.stuck) {
		if r := rows[b.place]; b.tried && r != nil {
			if yes, maybe := r.has(b.by); yes || maybe {
				continue
			}
		}
		for _, it := range b.items {
			if it.at.month == wanted {
				add(it.c.host, it.used)
			}
		}
	}
	for _, it := range m.pending {
		if it.at.month == wanted {
			add(it.c.host, it.used)
		}
	}
	if wanted == m.month {
		m.listing.Lock()
		for _, c := range m.list {
			add(c.host, c.peek())
		}
		m.listing.Unlock()
	}
	for month := range known {
		t.Months = append(t.Months, monthText(month))
	}
	slices.SortFunc(t.Months, func(a, b string) int { return strings.Compare(b, a) })
	return t, nil
}
