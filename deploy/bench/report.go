package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

// reference is the target that all others are compared with.
const reference = "nginx"

// report collects measurements and draws them.
type report struct {
	options   options
	workloads []workload
	targets   []string
	results   map[cell]*series
	sizes     *sizes
	profile   []profileColumn
	faults    map[string]error // sections that could not be measured
	network   *networkReport
	scale     []scaleCurve
}

type cell struct{ workload, target string }

// series is what one target did in one workload, round by round.
type series struct {
	rounds map[int]measurement
	err    error
}

func newReport(s *site, opt options) *report {
	r := &report{options: opt, results: map[cell]*series{}, faults: map[string]error{}}
	for _, t := range s.targets {
		r.targets = append(r.targets, t.name)
	}
	return r
}

func (r *report) add(w workload, target string, round int, m measurement, err error) {
	if !slices.ContainsFunc(r.workloads, func(known workload) bool { return known.name == w.name }) {
		r.workloads = append(r.workloads, w)
	}
	key := cell{w.name, target}
	if r.results[key] == nil {
		r.results[key] = &series{rounds: map[int]measurement{}}
	}
	if err != nil {
		r.results[key].err = err
		return
	}
	r.results[key].rounds[round] = m
}

func (r *report) failed(workload, target string) bool {
	s := r.results[cell{workload, target}]
	return s != nil && s.err != nil
}

// markdown is the whole report. Medians come first, ranges in parentheses. plot is
// the file of the drawing beside it, if there is one.
func (r *report) markdown(plot string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Side by side, %s\n\n", time.Now().Format("2 January 2006"))
	fmt.Fprintf(&b, "%d CPUs, %s, %s, %s. %d rounds of %s, loopback, TLS 1.3, the same app behind each.\n",
		runtime.NumCPU(), kernel(), runtime.Version(), strings.Join(versions(), ", "), r.options.rounds, r.options.duration)
	b.WriteString("CPU seconds are those of all processes of a target (edge and agent here), without app and load generator.\n")
	b.WriteString(r.goals())
	if len(r.workloads) > 0 {
		b.WriteString("\n| workload | target | CPU-s per unit | ratio to nginx | rate | p50 / p99 ms |\n|---|---|---:|---:|---:|---:|\n")
	}
	for _, w := range r.workloads {
		title := w.title
		for _, target := range r.targets {
			s := r.results[cell{w.name, target}]
			if s == nil {
				continue
			}
			fmt.Fprintf(&b, "| %s | %s | %s |\n", title, target, r.row(w, s))
			title = ""
		}
	}
	for _, section := range sectionNames {
		if err := r.faults[section]; err != nil {
			fmt.Fprintf(&b, "\n**%s failed**: %s\n", section, firstLine(err.Error()))
		}
	}
	if r.sizes != nil {
		b.WriteString(r.sizes.markdown())
	}
	if r.network != nil {
		b.WriteString(r.network.markdown())
	}
	if r.scale != nil {
		b.WriteString(scaleMarkdown(r.scale, plot))
	}
	if r.profile != nil {
		b.WriteString(profileMarkdown(r.profile))
	}
	return b.String()
}

func (r *report) row(w workload, s *series) string {
	if s.err != nil {
		return "**failed**: " + strings.ReplaceAll(firstLine(s.err.Error()), "|", "/") + " | | | "
	}
	var costs, rates, p50, p99 []float64
	for _, m := range s.rounds {
		costs = append(costs, m.cost)
		rates = append(rates, m.rate)
		p50 = append(p50, milliseconds(m.p50))
		p99 = append(p99, milliseconds(m.p99))
	}
	latency := ""
	if median(p99) > 0 {
		latency = fmt.Sprintf("%.2f / %.2f", median(p50), median(p99))
	}
	rate := fmt.Sprintf("%.0f/s", median(rates)*1000)
	if w.unit == perGB {
		rate = fmt.Sprintf("%.2f GB/s", median(rates))
	}
	return fmt.Sprintf("%s /%s | %s | %s | %s",
		spread("%.4f", costs), w.unit, spread("%.2f", r.ratios(w.name, s)), rate, latency)
}

// ratios are the costs as multiples of nginx's in the same rounds.
func (r *report) ratios(workload string, s *series) (ratios []float64) {
	base := r.results[cell{workload, reference}]
	for round, m := range s.rounds {
		if base != nil && base.rounds[round].cost > 0 {
			ratios = append(ratios, m.cost/base.rounds[round].cost)
		}
	}
	return ratios
}

// spread is "median (least-most)", or the only value there is.
func spread(format string, values []float64) string {
	switch len(values) {
	case 0:
		return "-"
	case 1:
		return fmt.Sprintf(format, values[0])
	}
	return fmt.Sprintf(format+" ("+format+"-"+format+")", median(values), slices.Min(values), slices.Max(values))
}

// median of no values is 0.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

func kernel() string {
	text, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return runtime.GOOS
	}
	return "Linux " + strings.TrimSpace(string(text))
}

func versions() []string {
	var found []string
	for _, ask := range [][]string{{"nginx", "-v"}, {"haproxy", "-v"}} {
		path, err := find(ask[0])
		if err != nil {
			continue
		}
		output, _ := exec.Command(path, ask[1:]...).CombinedOutput()
		words := strings.Fields(firstLine(string(output)))
		if len(words) > 2 && ask[0] == "haproxy" {
			found = append(found, "HAProxy "+words[2])
		} else if len(words) > 2 {
			found = append(found, words[2])
		}
	}
	return found
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}
