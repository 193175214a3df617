package usage

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"slices"
	"sync"
	"time"

	"wormhole/edge/cluster/store"
)

// Config of a Meter.
type Config struct {
	// Interval is about the time between two flushes; default 1 minute.
	Interval time.Duration
	// Now is the clock; nil is the system's.
	Now func() time.Time
}

const (
	pace     = 50 * time.Millisecond // between two rows of a flush
	attempts = 8                     // to add to a row that others change
	settling = 10 * time.Millisecond // about the wait between two of them
)

// What is kept: this many months, as long as they take no more than so many bytes,
// and this one and the one before in any case.
const (
	maxMonths = 13
	maxBytes  = 16 << 20
)

var (
	errBusy    = errors.New("others change the row all the time")
	errDamaged = errors.New("the row is damaged")
)

// Meter collects what is counted and adds it to the store. Its methods may be called
// concurrently.
type Meter struct {
	cfg    Config
	store  store.Store
	logger *slog.Logger
	writer uint64 // this process, in rows

	listing sync.Mutex // guards list
	list    []*Counter // those that have something

	mu      sync.Mutex     // guards the fields below; held while a row is written
	month   uint16         // of what is on the list
	pruned  uint16         // the month in which old ones were removed last
	pending []item         // taken, and in no batch
	queue   []*batch       // to be written, in order
	stuck   []*batch       // whose row is damaged, and may have them or not
	avoid   map[place]bool // rows that turned out to be damaged
	batches uint64         // how many there were
	failing bool
}

// item is what one site used in one month.
type item struct {
	c    *Counter
	at   place // its month, and the row once that is known
	used Amounts
}

// batch is what is added to one row in one go.
type batch struct {
	place place
	by    written
	items []item
	tried bool // the store may have it
}

// New makes a meter. It starts nothing.
func New(cfg Config, s store.Store, logger *slog.Logger) *Meter {
	if cfg.Interval <= 0 {
		cfg.Interval = time.Minute
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	return &Meter{
		cfg: cfg, store: s, logger: logger, writer: binary.BigEndian.Uint64(id[:]),
		month: monthOf(cfg.Now()), avoid: map[place]bool{},
	}
}

// Run flushes about every Interval and when a month ends, until ctx ends. What is
// counted after the last flush is for Flush.
func (m *Meter) Run(ctx context.Context) error {
	for {
		// Edges that started together must not write together.
		wait := time.Duration((0.75 + mathrand.Float64()/2) * float64(m.cfg.Interval))
		m.mu.Lock()
		month := m.month
		m.mu.Unlock()
		if left := endOf(month).Sub(m.cfg.Now()); left < wait {
			wait = max(left, 0)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		if err := m.flush(ctx, pace); ctx.Err() == nil {
			m.tell(err)
		}
	}
}

// tell logs that the store takes nothing, and that it does again.
func (m *Meter) tell(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case err != nil && !m.failing:
		m.logger.Warn("usage totals are not written, counting on in memory", "err", err)
	case err == nil && m.failing:
		m.logger.Info("usage totals are written again")
	}
	m.failing = err != nil
}

// Flush adds all that was counted to the store now, as at a drain.
func (m *Meter) Flush(ctx context.Context) error { return m.flush(ctx, 0) }

func (m *Meter) flush(ctx context.Context, pace time.Duration) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if now := monthOf(m.cfg.Now()); now != m.month {
		m.take()
		m.month = now
	}
	// What could not be written goes first: while that fails, counters go on by
	// themselves and nothing piles up.
	m.queue, m.stuck = append(m.queue, m.stuck...), nil
	if err := m.write(ctx, pace); err != nil {
		return err
	}
	m.take()
	if len(m.pending) == 0 {
		return nil
	}
	if err := m.write(ctx, pace); err != nil {
		return err
	}
	if m.pruned != m.month {
		m.pruned = m.month
		return m.prune(ctx)
	}
	return nil
}

// take moves what was counted to what is pending; m.mu is held.
func (m *Meter) take() {
	m.listing.Lock()
	list := m.list
	m.list = make([]*Counter, 0, len(list))
	m.listing.Unlock()
	for _, c := range list {
		c.listed.Store(0) // from here on who counts puts it on the list again
		if used := c.take(); used != (Amounts{}) {
			it := item{c, place{month: m.month}, used}
			if c.place.month == m.month {
				it.at = c.place
			}
			m.pending = append(m.pending, it)
		}
	}
}

// write adds what is taken to its rows; m.mu is held, but for the pauses.
func (m *Meter) write(ctx context.Context, pace time.Duration) error {
	for {
		if len(m.queue) == 0 {
			if len(m.pending) == 0 {
				return nil
			}
			if err := m.batch(ctx); err != nil {
				return err
			}
		}
		b := m.queue[0]
		switch err := m.add(ctx, b); {
		case err == nil:
		case errors.Is(err, errDamaged):
			if !m.avoid[b.place] {
				m.logger.Error("a row of usage totals is damaged and left as it is", "row", keyOf(b.place), "err", err)
			}
			m.avoid[b.place] = true
			if b.tried {
				m.stuck = append(m.stuck, b)
			} else {
				m.move(b.items)
			}
		default:
			return err
		}
		m.queue = m.queue[1:]
		if pace > 0 && len(m.queue) > 0 {
			m.mu.Unlock()
			select {
			case <-time.After(pace):
			case <-ctx.Done():
			}
			m.mu.Lock()
		}
	}
}

// move has items written to another row; m.mu is held.
func (m *Meter) move(items []item) {
	for _, it := range items {
		it.at.row, it.c.place = 0, place{}
		m.pending = append(m.pending, it)
	}
}

// batch makes batches of all that is pending; m.mu is held.
func (m *Meter) batch(ctx context.Context) error {
	if err := m.settle(ctx); err != nil {
		return err
	}
	slices.SortStableFunc(m.pending, func(a, b item) int {
		return cmp.Or(cmp.Compare(a.at.month, b.at.month), cmp.Compare(a.at.row, b.at.row))
	})
	var last *batch
	for _, it := range m.pending {
		if last == nil || last.place != it.at {
			m.batches++
			last = &batch{place: it.at, by: written{m.writer, m.batches}}
			m.queue = append(m.queue, last)
		}
		last.items = append(last.items, it)
	}
	m.pending = nil
	return nil
}

// settle gives every pending item a row of its month: the one that has its site, else
// the last one, until that is full; m.mu is held.
func (m *Meter) settle(ctx context.Context) error {
	homeless := map[uint16]map[string][]*item{}
	for i := range m.pending {
		it := &m.pending[i]
		if it.at.row != 0 {
			continue
		}
		if homeless[it.at.month] == nil {
			homeless[it.at.month] = map[string][]*item{}
		}
		homeless[it.at.month][it.c.host] = append(homeless[it.at.month][it.c.host], it)
	}
	if len(homeless) == 0 {
		return nil
	}
	entries, err := m.store.List(ctx, bucket)
	if err != nil && !errors.Is(err, store.ErrCorrupt) {
		return err
	}
	last, size := map[uint16]uint16{}, map[uint16]int{}
	for _, e := range entries {
		at, ok := placeOf(e.Key)
		if !ok || homeless[at.month] == nil {
			continue
		}
		last[at.month], size[at.month] = at.row, fullRow // unless the row is sound
		r, err := decodeRow(e.Value)
		if err != nil || m.avoid[at] {
			continue
		}
		size[at.month] = len(e.Value)
		for host, items := range homeless[at.month] {
			if _, here := r.sites[host]; here {
				m.house(items, at)
				delete(homeless[at.month], host)
			}
		}
	}
	for month, hosts := range homeless {
		at := place{month, max(last[month], 1)}
		left := fullRow - size[month]
		for host, items := range hosts {
			for left <= 0 || m.avoid[at] {
				at.row++
				left = fullRow
			}
			m.house(items, at)
			left -= len(host) + 4*fields // about
		}
	}
	return nil
}

// house gives items a row.
func (m *Meter) house(items []*item, at place) {
	for _, it := range items {
		it.at, it.c.place = at, at
	}
}

// add adds a batch to its row, once.
func (m *Meter) add(ctx context.Context, b *batch) error {
	key := keyOf(b.place)
	for range attempts {
		r, size, revision := &row{sites: map[string]Amounts{}}, 0, uint64(0)
		e, err := m.store.Get(ctx, bucket, key)
		switch {
		case err == nil:
			if r, err = decodeRow(e.Value); err != nil {
				return fmt.Errorf("%w: %w", errDamaged, err)
			}
			size, revision = len(e.Value), e.Revision
		case errors.Is(err, store.ErrUnavailable): // it may be there all the same
			return err
		case errors.Is(err, store.ErrCorrupt):
			return fmt.Errorf("%w: %w", errDamaged, err)
		case !errors.Is(err, store.ErrNotFound):
			return err
		}
		if !b.tried {
			m.shrink(b, r, size)
		} else if yes, maybe := r.has(b.by); yes || maybe {
			return nil
		}
		if len(b.items) == 0 {
			return nil
		}
		for _, it := range b.items {
			sum := r.sites[it.c.host]
			sum.Add(&it.used)
			r.sites[it.c.host] = sum
		}
		r.mark(b.by)
		before := b.tried
		b.tried = true
		if revision == 0 {
			_, err = m.store.Create(ctx, bucket, key, r.encode())
		} else {
			_, err = m.store.Update(ctx, bucket, key, r.encode(), revision)
		}
		switch {
		case err == nil:
			return nil
		case errors.Is(err, store.ErrUnavailable):
			return err
		case errors.Is(err, store.ErrExists), errors.Is(err, store.ErrConflict), errors.Is(err, store.ErrNotFound):
			b.tried = before // this time it changed nothing
		default:
			return err
		}
		select {
		case <-time.After(time.Duration(mathrand.Int64N(int64(2 * settling)))):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return errBusy
}

// shrink takes out of the batch what the row has no room for, as others have filled
// it meanwhile; m.mu is held.
func (m *Meter) shrink(b *batch, r *row, size int) {
	if size < fullRow {
		return
	}
	var stay, leave []item
	for _, it := range b.items {
		if _, here := r.sites[it.c.host]; here {
			stay = append(stay, it)
		} else {
			leave = append(leave, it)
		}
	}
	b.items = stay
	m.move(leave)
}

// prune removes the oldest months; m.mu is held. They are counted as they are in the
// store and not by the clock, so that an edge whose clock is wrong removes little.
func (m *Meter) prune(ctx context.Context) error {
	entries, err := m.store.List(ctx, bucket)
	if err != nil {
		return err
	}
	slices.Reverse(entries) // the newest month first
	var month uint16
	months, size := 0, 0
	for _, e := range entries {
		at, ok := placeOf(e.Key)
		if !ok {
			continue
		}
		if at.month != month {
			month = at.month
			months++
		}
		if size += len(e.Value); months <= 2 || months <= maxMonths && size <= maxBytes {
			continue
		}
		size = maxBytes + 1 // what is older than what goes, goes
		if err := m.store.Delete(ctx, bucket, e.Key); err != nil {
			return err
		}
	}
	return nil
}
