package usage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"wormhole/shared/hostname"
)

// bucket of the store; its keys are MONTH.ROW, such as 2026-11.0003.
const bucket = "usage"

const (
	rowFormat  = 1
	fullRow    = 32 << 10 // a row as large as this takes no further sites
	maxWriters = 256      // that a row remembers
)

var errRow = errors.New("not a row of usage totals")

// row is the totals of some sites in one month. As text it is a byte for the format,
// the writers and then the sites, each list with its length before it; numbers are
// uvarints, and the sites are in order.
type row struct {
	writers []written // who wrote last comes first
	sites   map[string]Amounts
}

// written is the last batch that one process added.
type written struct{ writer, batch uint64 }

// has reports whether the batch is in the row already, as far as the row can tell:
// with every place taken, one that is not named may have been.
func (r *row) has(w written) (yes, maybe bool) {
	for _, have := range r.writers {
		if have.writer == w.writer {
			return have.batch >= w.batch, false
		}
	}
	return false, len(r.writers) >= maxWriters
}

// mark notes the batch as the last one of its writer.
func (r *row) mark(w written) {
	r.writers = slices.DeleteFunc(r.writers, func(have written) bool { return have.writer == w.writer })
	r.writers = slices.Insert(r.writers, 0, w)
	r.writers = r.writers[:min(len(r.writers), maxWriters)]
}

func (r *row) encode() []byte {
	out := append(make([]byte, 0, 16+10*len(r.writers)+64*len(r.sites)), rowFormat)
	out = binary.AppendUvarint(out, uint64(len(r.writers)))
	for _, w := range r.writers {
		out = binary.BigEndian.AppendUint64(out, w.writer)
		out = binary.AppendUvarint(out, w.batch)
	}
	out = binary.AppendUvarint(out, uint64(len(r.sites)))
	for _, host := range slices.Sorted(maps.Keys(r.sites)) {
		out = append(binary.AppendUvarint(out, uint64(len(host))), host...)
		for _, n := range r.sites[host] {
			out = binary.AppendUvarint(out, n)
		}
	}
	return out
}

// decodeRow refuses whatever encode would not have written.
func decodeRow(text []byte) (*row, error) {
	fail := func(why string) (*row, error) { return nil, fmt.Errorf("%w: %s", errRow, why) }
	if len(text) == 0 || text[0] != rowFormat {
		return fail("unknown format")
	}
	in := reader{text[1:], true}
	r := &row{sites: map[string]Amounts{}}
	for range in.count(9, maxWriters) {
		r.writers = append(r.writers, written{binary.BigEndian.Uint64(in.bytes(8)), in.number()})
	}
	seen := map[uint64]bool{}
	for _, w := range r.writers {
		if seen[w.writer] {
			return fail("a writer is there twice")
		}
		seen[w.writer] = true
	}
	last := ""
	for range in.count(1+fields, len(text)) {
		host := string(in.bytes(in.count(1, 255)))
		var a Amounts
		for i := range a {
			a[i] = in.number()
		}
		if !in.ok {
			break
		}
		if pattern, err := hostname.CanonicalPattern(host); err != nil || pattern != host || host <= last {
			return fail("hosts are malformed or out of order")
		}
		r.sites[host], last = a, host
	}
	if !in.ok || len(in.rest) > 0 {
		return fail("it is cut off, or something follows")
	}
	return r, nil
}

// reader takes a row apart. After the first fault it yields zeros.
type reader struct {
	rest []byte
	ok   bool
}

func (r *reader) number() uint64 {
	v, n := binary.Uvarint(r.rest)
	if n <= 0 || n > 1 && r.rest[n-1] == 0 { // more bytes than the number needs
		r.rest, r.ok = nil, false
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

// count is a number of things that take at least size bytes each.
func (r *reader) count(size, most int) int {
	v := r.number()
	if v > uint64(most) || v*uint64(size) > uint64(len(r.rest)) {
		r.rest, r.ok = nil, false
		return 0
	}
	return int(v)
}

func (r *reader) bytes(n int) []byte {
	if n > len(r.rest) {
		r.rest, r.ok = nil, false
		return make([]byte, n)
	}
	out := r.rest[:n]
	r.rest = r.rest[n:]
	return out
}

// monthOf counts months, so that they can be compared.
func monthOf(t time.Time) uint16 {
	t = t.UTC()
	return uint16(t.Year()*12 + int(t.Month()) - 1)
}

func endOf(month uint16) time.Time {
	return time.Date(int(month/12), time.Month(month%12+2), 1, 0, 0, 0, 0, time.UTC)
}

// monthText is such as 2026-11.
func monthText(month uint16) string { return fmt.Sprintf("%04d-%02d", month/12, month%12+1) }

// parseMonth reads what monthText wrote.
func parseMonth(text string) (uint16, error) {
	t, err := time.Parse("2006-01", text)
	if err != nil || t.Year() > 5000 || t.Year() < 1 {
		return 0, fmt.Errorf("%q is not a month such as 2026-11", text)
	}
	return monthOf(t), nil
}

func keyOf(p place) string { return fmt.Sprintf("%s.%04d", monthText(p.month), p.row) }

// placeOf reads what keyOf wrote.
func placeOf(key string) (place, bool) {
	if len(key) < len("2026-11.0000") {
		return place{}, false
	}
	month, err := parseMonth(key[:7])
	if err != nil {
		return place{}, false
	}
	n, err := strconv.ParseUint(key[8:], 10, 16)
	p := place{month, uint16(n)}
	return p, err == nil && keyOf(p) == key
}
