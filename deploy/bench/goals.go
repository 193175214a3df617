package main

import (
	"fmt"
	"strings"
)

// goal is one row of what this project wants to reach. Less is better, unless more
// is set.
type goal struct {
	what       string
	must, want float64
	more       bool
	unit       string // printf format of a value
	// section is the part of the run, or the workload, that measures it.
	section string
	// value is what was measured; false if it was not.
	value func(*report) (float64, bool)
	// also is a further condition with its words, nil for none.
	also func(*report) (met bool, words string)
}

func goalRows() []goal {
	return []goal{
		{"HTTP/1.1 small, CPU as a ratio to nginx", 3.0, 2.0, false, "%.2f", "h1", ratioOf("h1"), nil},
		{"HTTP/2 small", 4.0, 3.0, false, "%.2f", "h2", ratioOf("h2"), nil},
		{"download 10 MiB", 2.8, 2.2, false, "%.2f", "download", ratioOf("download"), nil},
		{"upload 10 MiB", 2.8, 2.2, false, "%.2f", "upload", ratioOf("upload"), nil},
		{"fixed 1,000 requests/s", 3.5, 2.5, false, "%.2f", "fixed", ratioOf("fixed"), nil},
		{"full handshakes, X25519", 1.2, 1.1, false, "%.2f", "handshake", ratioOf("handshake"), nil},
		{"idle tunnel at the edge, 2,000 of them", 45, 40, false, "%.1f KiB", "idle", idleTunnelKiB, nil},
		{"agent resident, idle", 10, 8, false, "%.1f MiB", "idle", func(r *report) (float64, bool) {
			if r.sizes == nil {
				return 0, false
			}
			return r.sizes.idleMiB, true
		}, nil},
		{"agent's binary", 10, 8, false, "%.1f MB", "idle", func(r *report) (float64, bool) {
			if r.sizes == nil {
				return 0, false
			}
			return r.sizes.agentMB, true
		}, nil},
		{"small request beside bulk, 50 ms, 0.5 % loss, cubic: p99", 250, 120, false, "%.0f ms", "network", func(r *report) (float64, bool) {
			if r.network == nil {
				return 0, false
			}
			return median(inMilliseconds(r.network.beside.p99)), true
		}, bulkNoLowerThanPlain},
		{"one bulk stream, 100 ms, 200 Mbit/s: share of the link", 85, 95, true, "%.1f %%", "network", func(r *report) (float64, bool) {
			if r.network == nil {
				return 0, false
			}
			return 100 * median(r.network.bulk.tunnel), true
		}, nil},
	}
}

// goals is the table of what was to be reached and what was, for all rows that were
// measured; empty if none was.
func (r *report) goals() string {
	var b strings.Builder
	b.WriteString("\n## Goals\n\n| | must | goal | this run | |\n|---|---:|---:|---:|---|\n")
	measured := 0
	for _, g := range goalRows() {
		value, found := g.value(r)
		if !found {
			why := "not measured"
			if r.failed(g.section, ours) || r.faults[g.section] != nil {
				why = "**failed**"
			}
			fmt.Fprintf(&b, "| %s | %g | %g | | %s |\n", g.what, g.must, g.want, why)
			continue
		}
		measured++
		verdict, words := g.verdict(value), ""
		if g.also != nil {
			met, also := g.also(r)
			words = ", " + also
			if !met {
				verdict = "**missed**"
			}
		}
		fmt.Fprintf(&b, "| %s | %g | %g | %s | %s%s |\n", g.what, g.must, g.want, fmt.Sprintf(g.unit, value), verdict, words)
	}
	if measured == 0 {
		return ""
	}
	return b.String()
}

func (g goal) verdict(value float64) string {
	reached := func(bound float64) bool {
		if g.more {
			return value >= bound
		}
		return value <= bound
	}
	switch {
	case reached(g.want):
		return "goal met"
	case reached(g.must):
		return "must met"
	}
	return "**missed**"
}

// ours is the name of this project's target.
const ours = "wormhole"

// ratioOf is the median ratio to nginx in one workload.
func ratioOf(workload string) func(*report) (float64, bool) {
	return func(r *report) (float64, bool) {
		s := r.results[cell{workload, ours}]
		if s == nil || s.err != nil {
			return 0, false
		}
		ratios := r.ratios(workload, s)
		return median(ratios), len(ratios) > 0
	}
}

// idleTunnelKiB is the memory of one of 2,000 idle tunnels.
func idleTunnelKiB(r *report) (float64, bool) {
	curves := r.scale
	if r.sizes != nil && r.sizes.tunnels != nil {
		curves = append([]scaleCurve{*r.sizes.tunnels}, curves...)
	}
	for _, c := range curves {
		for _, p := range c.points {
			if p.n == 2000 && strings.HasPrefix(c.name, "idle tunnels") {
				return c.each(p), true
			}
		}
	}
	return 0, false
}

func bulkNoLowerThanPlain(r *report) (met bool, words string) {
	tunnel, plain, bulk := median(r.network.beside.tunnel), median(r.network.beside.plain), r.network.beside.bulk()
	// That the pairs cannot tell the two apart does not make a lower median no lower.
	return tunnel >= plain && bulk.noLower(), fmt.Sprintf("bulk %.3f MB/s, one plain connection %.3f (medians); %s", tunnel/1e6, plain/1e6, bulk)
}
