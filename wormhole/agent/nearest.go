package agent

import (
	"cmp"
	"hash/fnv"
	"slices"
	"time"
)

// option is one edge of a network as something to choose.
type option struct {
	node, region string
	// rtt is the measured round trip, 0 while not known.
	rtt time.Duration
	// held says that a tunnel leads there, settled that the edge has been good for so
	// long that it may take another's place, and failed that it cannot be reached.
	held, settled, failed bool
	// order decides between edges that are equally near, differently in each agent.
	order uint32
}

// What counts as equally near. An edge must be nearer than one we hold by a quarter
// and by nearBy to take its place, so that noise moves nobody.
const (
	nearBy   = 10 * time.Millisecond
	nearStep = 2 * time.Millisecond // finer differences are noise
)

// choice says how many edges are wanted.
type choice struct {
	min, max int
	region   string // edges there come first; empty is no preference
}

// of chooses among the edges of one network: the min nearest ones, each in another
// region than those before it as long as there are regions, and then those that are
// as near as the nearest, up to max. One that holds a tunnel keeps its place unless
// another is clearly nearer. Edges that have not settled, and then those that failed,
// are only taken where there are too few others.
func (c choice) of(options []option) (wanted []string) {
	fit := slices.Clone(options)
	slices.SortFunc(fit, func(a, b option) int {
		return cmp.Or(cmp.Compare(c.score(a), c.score(b)), cmp.Compare(a.order, b.order), cmp.Compare(a.node, b.node))
	})
	classes := [3][]option{}
	for _, o := range fit {
		switch {
		case o.failed && !o.held:
			classes[2] = append(classes[2], o)
		case !o.held && !o.settled:
			classes[1] = append(classes[1], o)
		default:
			classes[0] = append(classes[0], o)
		}
	}
	domains := map[string]bool{}
	taken := map[string]bool{}
	take := func(o option) {
		wanted = append(wanted, o.node)
		taken[o.node], domains[o.domain()] = true, true
	}
	for _, class := range classes {
		for _, elsewhere := range []bool{true, false} {
			for _, o := range class {
				if len(wanted) < c.min && !taken[o.node] && (!elsewhere || !domains[o.domain()]) {
					take(o)
				}
			}
		}
	}
	if len(classes[0]) == 0 {
		return wanted
	}
	nearest := classes[0][0].rtt
	slack := max(nearest/4, nearBy)
	for _, o := range classes[0] {
		limit := nearest + slack
		if o.held {
			limit += slack
		}
		if len(wanted) < c.max && !taken[o.node] && (o.rtt > 0 && o.rtt <= limit || o.rtt == 0 && o.held) {
			take(o)
		}
	}
	return wanted
}

// score orders options: less is better. What is held and not yet measured stays.
func (c choice) score(o option) time.Duration {
	s := o.rtt.Truncate(nearStep)
	switch {
	case o.rtt == 0 && o.held:
		s = 0
	case o.rtt == 0:
		s = time.Minute
	case o.held:
		s = (o.rtt*3/4 - nearBy).Truncate(nearStep)
	}
	if c.region != "" && o.region == c.region {
		s -= time.Hour
	}
	return s
}

// domain is what fails together: a region, or the edge alone if it names none.
func (o option) domain() string {
	if o.region == "" {
		return "\x00" + o.node
	}
	return o.region
}

// orderOf spreads the agents over edges that are equally near.
func orderOf(instance, node string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(instance))
	_, _ = h.Write([]byte(node))
	return h.Sum32()
}

// worthMeasuring are those of more than most edges that an agent looks at: as many of
// each region, other ones in each agent. Edges that are held are always among them.
func worthMeasuring(options []option, most int) []option {
	if len(options) <= most {
		return options
	}
	byRegion := map[string][]option{}
	var regions []string
	for _, o := range options {
		if byRegion[o.region] == nil {
			regions = append(regions, o.region)
		}
		byRegion[o.region] = append(byRegion[o.region], o)
	}
	slices.Sort(regions)
	for _, r := range regions {
		slices.SortFunc(byRegion[r], func(a, b option) int {
			if a.held != b.held {
				if a.held {
					return -1
				}
				return 1
			}
			return cmp.Or(cmp.Compare(a.order, b.order), cmp.Compare(a.node, b.node))
		})
	}
	var out []option
	for i := 0; len(out) < most; i++ {
		for _, r := range regions {
			if i < len(byRegion[r]) && len(out) < most {
				out = append(out, byRegion[r][i])
			}
		}
	}
	for _, o := range options {
		if o.held && !slices.ContainsFunc(out, func(p option) bool { return p.node == o.node }) {
			out = append(out, o)
		}
	}
	return out
}
