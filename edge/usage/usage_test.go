package usage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"wormhole/edge/cluster/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var quiet = slog.New(slog.DiscardHandler)

func openStore(t testing.TB) *store.Dir {
	t.Helper()
	d, err := store.OpenDir(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// clock is a time that tests set.
type clock struct{ at atomic.Pointer[time.Time] }

func (c *clock) set(text string) *clock {
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		panic(err)
	}
	c.at.Store(&at)
	return c
}
func (c *clock) now() time.Time { return *c.at.Load() }

func meter(s store.Store, c *clock) *Meter {
	if c == nil {
		c = new(clock).set("2026-11-21T12:00:00Z")
	}
	return New(Config{Now: c.now}, s, quiet)
}

func flush(t testing.TB, ms ...*Meter) {
	t.Helper()
	for _, m := range ms {
		if err := m.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func used(t testing.TB, m *Meter, month, host string) Amounts {
	t.Helper()
	totals, err := m.Totals(t.Context(), month)
	if err != nil {
		t.Fatal(err)
	}
	return totals.Sites[host]
}

// flaky is a store that answers some writes with "unknown", after or before they
// happened.
type flaky struct {
	store.Store
	mu     sync.Mutex // guards what follows
	away   bool
	lose   func() (happens, told bool)
	writes int
}

func (f *flaky) write(do func() (uint64, error)) (uint64, error) {
	f.mu.Lock()
	f.writes++
	away, happens, told := f.away, true, true
	if f.lose != nil {
		happens, told = f.lose()
	}
	f.mu.Unlock()
	if away || !happens {
		return 0, store.ErrUnavailable
	}
	rev, err := do()
	if !told {
		return 0, store.ErrUnavailable
	}
	return rev, err
}

func (f *flaky) Create(ctx context.Context, b, k string, v []byte) (uint64, error) {
	return f.write(func() (uint64, error) { return f.Store.Create(ctx, b, k, v) })
}

func (f *flaky) Update(ctx context.Context, b, k string, v []byte, r uint64) (uint64, error) {
	return f.write(func() (uint64, error) { return f.Store.Update(ctx, b, k, v, r) })
}

func (f *flaky) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func TestEdgesAddToTheSameTotals(t *testing.T) {
	s := openStore(t)
	one, two := meter(s, nil), meter(s, nil)
	a, b := NewCounter("app.example.com"), NewCounter("app.example.com")
	one.Request(a, 200, 10, 1000)
	one.Request(a, 404, 0, 5)
	two.Request(b, 101, 0, 0)
	two.Bytes(b, 7, 8)
	two.Request(b, 0, 0, 0)
	two.Connection(NewCounter("*.example.com"))
	if got := used(t, one, "", "app.example.com"); got.Requests() != 2 {
		t.Errorf("before a flush an edge shows %v of its own, want 2 requests", got)
	}
	flush(t, one, two)
	want := Amounts{0: 1, 1: 1, 2: 1, 4: 1, In: 17, Out: 1013}
	for i, m := range []*Meter{one, two, meter(s, nil)} {
		if got := used(t, m, "2026-11", "app.example.com"); got != want {
			t.Errorf("meter %d: %v, want %v", i, got, want)
		}
		if got := used(t, m, "", "*.example.com"); got != (Amounts{Connections: 1}) {
			t.Errorf("meter %d: the wildcard has %v", i, got)
		}
	}
}

// Many edges flush at once on a store that loses answers and writes. The sum is exact.
func TestNothingCountsTwiceAndNothingIsLostWhileTheStoreFails(t *testing.T) {
	s := openStore(t)
	const edges, rounds = 4, 40
	var wg sync.WaitGroup
	var meters []*Meter
	var faults []*flaky
	for e := range edges {
		random := rand.New(rand.NewPCG(uint64(e), 7))
		f := &flaky{Store: s}
		f.lose = func() (bool, bool) {
			n := random.IntN(10)
			return n != 0, n != 1 && n != 2
		}
		m := meter(f, nil)
		meters, faults = append(meters, m), append(faults, f)
		wg.Go(func() {
			c := NewCounter("app.example.com")
			for i := range rounds {
				m.Request(c, 200, 3, 0)
				m.Request(NewCounter(fmt.Sprintf("s%d.example.com", i%5)), 200, 0, 1)
				_ = m.Flush(t.Context())
			}
		})
	}
	wg.Wait()
	for i, f := range faults {
		f.set(func() { f.lose = nil })
		for meters[i].Flush(t.Context()) != nil {
		}
	}
	totals, err := meters[0].Totals(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if got := totals.Sites["app.example.com"]; got != (Amounts{2: edges * rounds, In: 3 * edges * rounds}) {
		t.Errorf("%v, want %d requests", got, edges*rounds)
	}
	sum := uint64(0)
	for i := range 5 {
		a := totals.Sites[fmt.Sprintf("s%d.example.com", i)]
		sum += a.Requests()
	}
	if sum != edges*rounds {
		t.Errorf("%d requests of the others, want %d", sum, edges*rounds)
	}
}

func TestCountsWaitInMemoryWhileTheStoreIsAway(t *testing.T) {
	c := new(clock).set("2026-10-31T23:00:00Z")
	f := &flaky{Store: openStore(t), away: true}
	m := meter(f, c)
	site := NewCounter("app.example.com")
	count := func(n int) {
		for range n {
			m.Request(site, 200, 0, 1)
		}
		if m.Flush(t.Context()) == nil {
			t.Error("a flush succeeded without the store")
		}
	}
	count(3)
	count(4)
	c.set("2026-11-01T00:00:01Z")
	count(0) // what was counted belongs to the month that ended
	count(5)
	if got := used(t, m, "2026-10", "app.example.com"); got.Requests() != 7 {
		t.Errorf("October has %v while the store is away, want 7 requests", got)
	}
	f.set(func() { f.away = false })
	flush(t, m)
	for month, want := range map[string]uint64{"2026-10": 7, "2026-11": 5} {
		if got := used(t, meter(f, c), month, "app.example.com"); got.Requests() != want || got[Out] != want {
			t.Errorf("%s has %v, want %d requests", month, got, want)
		}
	}
}

// 100,000 sites: what nobody asks for is not written, rows stay small, and an edge
// that starts anew finds the rows that sites are in.
func TestManySitesTakeFewRows(t *testing.T) {
	f := &flaky{Store: openStore(t)}
	m := meter(f, nil)
	const sites = 20_000
	counters := make([]*Counter, sites)
	for i := range counters {
		counters[i] = NewCounter(fmt.Sprintf("site-%06d.example.com", i))
		m.Request(counters[i], 200, 1000, 100_000)
	}
	flush(t, m)
	first := f.writes
	entries, err := f.List(t.Context(), bucket)
	if err != nil {
		t.Fatal(err)
	}
	bytes := 0
	for _, e := range entries {
		bytes += len(e.Value)
		if len(e.Value) > 2*fullRow {
			t.Errorf("row %s has %d bytes", e.Key, len(e.Value))
		}
	}
	t.Logf("%d sites in %d rows of %d bytes together, %d writes", sites, len(entries), bytes, first)
	if first > 60 || len(entries) != first {
		t.Errorf("%d writes and %d rows for %d sites", first, len(entries), sites)
	}
	flush(t, m)
	if f.writes != first {
		t.Error("a flush without news wrote")
	}
	m.Request(counters[7], 200, 1, 1)
	flush(t, m)
	if f.writes != first+1 {
		t.Errorf("one site's news took %d writes", f.writes-first)
	}
	again := meter(f, nil)
	again.Request(NewCounter("site-000007.example.com"), 200, 1, 1)
	flush(t, again)
	now, _ := f.List(t.Context(), bucket)
	if len(now) != len(entries) {
		t.Errorf("a new process made %d new rows", len(now)-len(entries))
	}
	if got := used(t, again, "", "site-000007.example.com"); got.Requests() != 3 {
		t.Errorf("site 7 has %v, want 3 requests", got)
	}
}

func TestADamagedRowIsLeftAndNamed(t *testing.T) {
	s := openStore(t)
	m := meter(s, nil)
	c := NewCounter("app.example.com")
	m.Request(c, 200, 0, 0)
	flush(t, m)
	if _, err := s.Put(t.Context(), bucket, "2026-11.0001", []byte("\x01nonsense")); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"2026-11.1", "x", "2026-13.0001", "2026-11.0002.3"} {
		if _, err := s.Put(t.Context(), bucket, key, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	m.Request(c, 200, 0, 0)
	m.Request(NewCounter("other.example.com"), 200, 0, 0)
	flush(t, m)
	if e, _ := s.Get(t.Context(), bucket, "2026-11.0001"); string(e.Value) != "\x01nonsense" {
		t.Error("the damaged row was written over")
	}
	totals, err := meter(s, nil).Totals(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if a, b := totals.Sites["app.example.com"], totals.Sites["other.example.com"]; len(totals.Damaged) != 1 || a.Requests() != 1 || b.Requests() != 1 {
		t.Errorf("%+v", totals)
	}
}

func TestOldMonthsGo(t *testing.T) {
	s := openStore(t)
	c := new(clock).set("2025-01-15T00:00:00Z")
	m := meter(s, c)
	site := NewCounter("app.example.com")
	for range 20 {
		m.Request(site, 200, 0, 0)
		flush(t, m)
		next := c.now().AddDate(0, 1, 0)
		c.at.Store(&next)
		flush(t, m)
	}
	totals, err := m.Totals(t.Context(), "2026-08")
	if err != nil {
		t.Fatal(err)
	}
	if n := len(totals.Months); n != maxMonths+1 || totals.Months[0] != "2026-09" || totals.Months[maxMonths] != "2025-08" || totals.Sites["app.example.com"] != (Amounts{2: 1}) {
		t.Errorf("the months are %v", totals.Months)
	}
	if _, err := m.Totals(t.Context(), "August"); err == nil {
		t.Error("August is taken for a month")
	}
}

func TestAFullListOfWritersNeverCountsTwice(t *testing.T) {
	s := openStore(t)
	f := &flaky{Store: s}
	m := meter(f, nil)
	f.lose = func() (bool, bool) { return true, false }
	m.Request(NewCounter("app.example.com"), 200, 0, 0)
	if m.Flush(t.Context()) == nil {
		t.Fatal("the write whose answer was lost is taken for done")
	}
	for range maxWriters { // others push its mark out
		o := meter(s, nil)
		o.Request(NewCounter("app.example.com"), 200, 0, 0)
		flush(t, o)
	}
	f.set(func() { f.lose = nil })
	flush(t, m)
	if got := used(t, m, "", "app.example.com"); got.Requests() != 1+maxWriters {
		t.Errorf("%d requests, want %d", got.Requests(), 1+maxWriters)
	}
}

func TestCountingLosesNothingBesideFlushes(t *testing.T) {
	m := meter(openStore(t), nil)
	c := NewCounter("app.example.com")
	var wg sync.WaitGroup
	const workers, each = 4, 5000
	for range workers {
		wg.Go(func() {
			for range each {
				m.Request(c, 200, 2, 3)
			}
		})
	}
	for range 20 {
		flush(t, m)
	}
	wg.Wait()
	flush(t, m)
	if got := used(t, m, "", "app.example.com"); got != (Amounts{2: workers * each, In: 2 * workers * each, Out: 3 * workers * each}) {
		t.Errorf("%v, want %d requests", got, workers*each)
	}
}

func TestCountingAllocatesNothing(t *testing.T) {
	m := meter(nil, nil)
	c := NewCounter("app.example.com")
	m.Request(c, 200, 1, 1)
	if n := testing.AllocsPerRun(100, func() { m.Request(c, 200, 1, 1) }); n != 0 {
		t.Errorf("%v allocations a request", n)
	}
	if size := reflect.TypeFor[Counter]().Size(); size > 96 {
		t.Errorf("a counter has %d bytes", size)
	}
	(*Meter)(nil).Request(c, 200, 1, 1)
	(*Meter)(nil).Bytes(c, 1, 1)
	(*Meter)(nil).Connection(c)
}

func TestRunFlushesWhenTheMonthEnds(t *testing.T) {
	began, asked := time.Now(), atomic.Bool{}
	now := func() time.Time { // November when the meter is made, and for a moment more
		at := time.Date(2026, 11, 30, 23, 59, 59, 950_000_000, time.UTC)
		if asked.CompareAndSwap(false, true) {
			return at
		}
		return at.Add(time.Since(began))
	}
	s := openStore(t)
	m := New(Config{Interval: time.Hour, Now: now}, s, quiet)
	m.Request(NewCounter("app.example.com"), 200, 0, 0)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = m.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	events, err := s.Watch(ctx, bucket)
	if err != nil {
		t.Fatal(err)
	}
	for e := range events {
		if e.Kind == store.EventPut {
			if e.Entry.Key != "2026-11.0001" {
				t.Errorf("written to %s", e.Entry.Key)
			}
			return
		}
	}
}

func BenchmarkRequest(b *testing.B) {
	m := meter(nil, nil)
	c := NewCounter("app.example.com")
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			m.Request(c, 200, 300, 2000)
		}
	})
}

func FuzzDecodeRow(f *testing.F) {
	r := &row{sites: map[string]Amounts{
		"a.example.com": {2: 5, In: 1 << 40, Out: math.MaxUint64}, "*.b.example.com": {Connections: 300},
	}}
	for i := range 3 {
		r.mark(written{uint64(i) << 40, uint64(i) * 1000})
	}
	f.Add(r.encode())
	f.Add((&row{}).encode())
	f.Add([]byte("\x01nonsense"))
	f.Add([]byte{1, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := decodeRow(text)
		if err != nil {
			if !errors.Is(err, errRow) {
				t.Errorf("the error is %v", err)
			}
			return
		}
		if len(r.writers) > maxWriters || slices.Contains(slices.Collect(maps.Keys(r.sites)), "") {
			t.Errorf("%d writers, sites %v", len(r.writers), r.sites)
		}
		if again := r.encode(); string(again) != string(text) {
			t.Errorf("%x is written back as %x", text, again)
		}
		sum := Amounts{2: math.MaxUint64 - 1}
		for _, a := range r.sites {
			sum.Add(&a)
		}
		if sum[2] < math.MaxUint64-1 {
			t.Error("a sum ran over")
		}
	})
}
