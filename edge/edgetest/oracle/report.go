package oracle

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Report is the verdict over a load.
type Report struct {
	Duration   time.Duration
	Sent       int // requests, openings of streams among them
	Failed     int // see the package's comment; Slow among them
	Slow       int // right, but after more than SlowAfter
	Repeated   int // an id that apps saw more than once
	Duplicated int // of those, what must not be delivered twice: everything but GET
	Unseen     int // answered, but no app saw it; among Failed
	Slowest    time.Duration
	P50, P99   time.Duration // of requests, streams not among them

	Streams int // opened
	Cut     int // ended otherwise than by the load
	Altered int // with a missing, repeated or changed message

	Faults []string // one line for each failure
	Delays []string // one line for each answer that was right after more than a second
	rows   []reportRow
}

type reportRow struct {
	kind                    Kind
	proto                   string
	sent, failed, slow, dup int
	slowest                 time.Duration
}

// Judge joins what the clients saw with what the apps saw.
func Judge(run *Run, seen Seen) *Report {
	r := &Report{Duration: run.Duration}
	var times []time.Duration
	for _, result := range run.Results {
		sight := seen[result.ID]
		row := r.row(result.Kind, result.Proto)
		row.sent++
		r.Sent++
		fault := result.Fault
		switch {
		case fault != "":
		case sight == nil:
			fault = "answered, but no app saw it"
			r.Unseen++
		case result.Kind == Post && (sight.Bytes != result.length || sight.Hash != result.posted):
			fault = fmt.Sprintf("the app saw other bytes: %d, want %d", sight.Bytes, result.length)
		case result.Took > SlowAfter:
			fault = "slow"
			row.slow++
			r.Slow++
		}
		if fault != "" {
			row.failed++
			r.Failed++
			at := ""
			if sight != nil {
				at = ", seen by " + sight.Apps
			}
			r.Faults = append(r.Faults, fmt.Sprintf("%s %s %s after %s (%s%s): %s",
				run.when(result.Due), result.Proto, result.Kind, result.Took.Round(time.Millisecond), result.ID, at, fault))
		}
		if fault == "" && result.Took > time.Second {
			r.Delays = append(r.Delays, fmt.Sprintf("%s %s %s answered by %s after %s",
				run.when(result.Due), result.Proto, result.Kind, result.App, result.Took.Round(time.Millisecond)))
		}
		if sight != nil && sight.Times > 1 {
			row.dup++
			r.Repeated++
			if result.Kind == Post || result.Kind == GRPC {
				r.Duplicated++
			}
		}
		row.slowest = max(row.slowest, result.Took)
		switch result.Kind {
		case SmallGet, LargeGet, Post:
			times = append(times, result.Took)
		}
	}
	slices.Sort(times)
	if n := len(times); n > 0 {
		r.P50, r.P99, r.Slowest = times[n/2], times[n*99/100], times[n-1]
	}
	for _, e := range run.Endings {
		r.Streams++
		if e.Altered {
			r.Altered++
		}
		if !e.ByUs {
			r.Cut++
		}
	}
	slices.Sort(r.Faults)
	slices.Sort(r.Delays)
	return r
}

// Good reports that nothing failed, nothing that must not be was delivered twice,
// and no stream was altered.
func (r *Report) Good() bool { return r.Failed == 0 && r.Duplicated == 0 && r.Altered == 0 }

// Figure is the verdict in a few words.
func (r *Report) Figure() string {
	s := fmt.Sprintf("%d of %d failed, %d duplicated, p99 %s, slowest %s",
		r.Failed, r.Sent, r.Duplicated, r.P99.Round(time.Millisecond), r.Slowest.Round(time.Millisecond))
	if r.Altered > 0 {
		s += fmt.Sprintf(", %d streams altered", r.Altered)
	}
	return s
}

// String is a table, and the first failures and delays.
func (r *Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s in %s; %d streams, %d of them cut\n", r.Figure(), r.Duration.Round(time.Millisecond), r.Streams, r.Cut)
	fmt.Fprintf(&b, "%-5s %-10s %7s %7s %5s %9s %9s\n", "proto", "kind", "sent", "failed", "slow", "repeated", "slowest")
	slices.SortFunc(r.rows, func(a, b reportRow) int {
		return strings.Compare(a.proto+string(a.kind), b.proto+string(b.kind))
	})
	for _, row := range r.rows {
		fmt.Fprintf(&b, "%-5s %-10s %7d %7d %5d %9d %9s\n", row.proto, row.kind, row.sent, row.failed, row.slow, row.dup, row.slowest.Round(time.Millisecond))
	}
	list(&b, "failures", r.Faults)
	list(&b, "delays", r.Delays)
	return b.String()
}

// list prints the first lines.
func list(b *strings.Builder, what string, lines []string) {
	const most = 20
	for i, line := range lines {
		if i == most {
			fmt.Fprintf(b, "… and %d more %s\n", len(lines)-most, what)
			return
		}
		b.WriteString(line + "\n")
	}
}

func (r *Report) row(kind Kind, proto string) *reportRow {
	for i := range r.rows {
		if r.rows[i].kind == kind && r.rows[i].proto == proto {
			return &r.rows[i]
		}
	}
	r.rows = append(r.rows, reportRow{kind: kind, proto: proto})
	return &r.rows[len(r.rows)-1]
}

// when is a moment of the load, and what had happened before it.
func (run *Run) when(at time.Duration) string {
	text := fmt.Sprintf("at %8.3fs", at.Seconds())
	for i := len(run.marks) - 1; i >= 0; i-- {
		if m := run.marks[i]; m.at <= at {
			return fmt.Sprintf("%s, %s after %q,", text, (at - m.at).Round(time.Millisecond), m.what)
		}
	}
	return text
}
