package agent

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestTheNearestEdgesInDifferentRegionsAreChosen(t *testing.T) {
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	good := func(node, region string, rtt int) option {
		return option{node: node, region: region, rtt: ms(rtt), settled: true}
	}
	held := func(o option) option { o.held = true; return o }
	for name, c := range map[string]struct {
		choice
		options []option
		want    []string
	}{
		"another region before a nearer edge of the same": {
			choice{min: 2, max: 2}, []option{good("a", "eu", 20), good("b", "eu", 40), good("c", "us", 90), good("d", "asia", 200)}, []string{"a", "c"},
		},
		"the same region when there is no other": {
			choice{min: 2, max: 2}, []option{good("a", "eu", 20), good("b", "eu", 40), good("c", "eu", 90)}, []string{"a", "b"},
		},
		"edges without a region fail alone": {
			choice{min: 2, max: 2}, []option{good("a", "", 20), good("b", "", 40), good("c", "", 90)}, []string{"a", "b"},
		},
		"as near as the nearest, up to the most": {
			choice{min: 1, max: 3}, []option{good("a", "eu", 2), good("b", "eu", 4), good("c", "eu", 6), good("d", "eu", 8), good("e", "us", 90)}, []string{"a", "b", "c"},
		},
		"not what is only a little nearer": {
			choice{min: 1, max: 1}, []option{held(good("a", "eu", 30)), good("b", "eu", 24)}, []string{"a"},
		},
		"what is clearly nearer": {
			choice{min: 1, max: 1}, []option{held(good("a", "eu", 50)), good("b", "eu", 24)}, []string{"b"},
		},
		"not what has not proved itself": {
			choice{min: 1, max: 1}, []option{held(good("a", "eu", 50)), {node: "b", region: "eu", rtt: ms(2)}}, []string{"a"},
		},
		"what has not proved itself rather than too few": {
			choice{min: 2, max: 2}, []option{held(good("a", "eu", 50)), {node: "b", region: "us", rtt: ms(2)}, {node: "c", region: "us", failed: true}}, []string{"a", "b"},
		},
		"what failed rather than too few": {
			choice{min: 2, max: 2}, []option{held(good("a", "eu", 50)), {node: "c", region: "us", failed: true}}, []string{"a", "c"},
		},
		"the region asked for": {
			choice{min: 2, max: 2, region: "us"}, []option{good("a", "eu", 20), good("b", "us", 90), good("c", "us", 95)}, []string{"b", "a"},
		},
		"what is held and not measured stays": {
			choice{min: 1, max: 1}, []option{{node: "a", held: true}, good("b", "eu", 3)}, []string{"a"},
		},
	} {
		for range 20 {
			rand.Shuffle(len(c.options), func(i, j int) { c.options[i], c.options[j] = c.options[j], c.options[i] })
			if got := c.of(c.options); !slices.Equal(got, c.want) {
				t.Errorf("%s: %v, want %v", name, got, c.want)
			}
		}
	}
}

// Whatever the measurements say, noise of a few milliseconds moves no tunnel, and the
// choice has as many edges as there can be.
func TestNoiseMovesNoTunnel(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		c := choice{min: 1 + random.IntN(3), max: 4}
		var base []option
		for i := range 2 + random.IntN(8) {
			base = append(base, option{
				node: fmt.Sprint(i), region: fmt.Sprint(random.IntN(3)), settled: true, order: random.Uint32(),
				rtt: time.Duration(1+random.IntN(200)) * time.Millisecond,
			})
		}
		held := c.of(base)
		if len(held) < min(c.min, len(base)) || len(held) > c.max {
			t.Fatalf("%d chosen of %d with %+v", len(held), len(base), c)
		}
		for range 10 {
			next := slices.Clone(base)
			for i := range next {
				next[i].held = slices.Contains(held, next[i].node)
				next[i].rtt += time.Duration(random.IntN(4000)) * time.Microsecond
			}
			got := c.of(next)
			for _, node := range held {
				if !slices.Contains(got, node) {
					t.Fatalf("%v became %v by noise: %+v", held, got, next)
				}
			}
			held = got
		}
	}
}

func TestFewOfVeryManyEdgesAreMeasured(t *testing.T) {
	var options []option
	for i := range 500 {
		options = append(options, option{node: fmt.Sprint(i), region: fmt.Sprint(i % 5), held: i == 499, order: orderOf("agent", fmt.Sprint(i))})
	}
	got := worthMeasuring(options, 24)
	regions := map[string]int{}
	held := false
	for _, o := range got {
		regions[o.region]++
		held = held || o.held
	}
	if len(got) != 24 || len(regions) != 5 || !held {
		t.Errorf("%d of them in %d regions, held among them: %v", len(got), len(regions), held)
	}
}
