package main

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"
)

// pairsAround makes n pairs of which the second is ratio times the first on average,
// and each ratio off by about noise. Every other one is off the other way, so that
// the mean is what is said.
func pairsAround(n int, ratio, noise float64) (values, base []float64) {
	chance := rand.New(rand.NewPCG(1, 2))
	off := 0.0
	for i := range n {
		if i%2 == 0 {
			off = noise * (0.5 + chance.Float64())
		} else {
			off = -off
		}
		if i == n-1 && n%2 == 1 {
			off = 0
		}
		b := 0.4e6 + 0.1e6*chance.Float64()
		base = append(base, b)
		values = append(values, b*ratio*math.Exp(off))
	}
	return values, base
}

func TestPairsJudgeWhetherBulkIsLower(t *testing.T) {
	for _, c := range []struct {
		name         string
		n            int
		ratio, noise float64
		met          bool
		words        string
	}{
		{"clearly lower", 30, 0.92, 0.03, false, ": lower"},
		{"lower by little, but surely", 30, 0.98, 0.01, false, ": lower"},
		{"half, a few pairs that agree", 3, 0.5, 0.001, false, ": lower"},
		{"few pairs that differ much", 3, 0.97, 0.1, false, "exclude neither"},
		{"few pairs that differ much, higher by chance", 3, 1.04, 0.1, false, "exclude neither"},
		{"many that differ so much that 5 % less may be", 30, 0.97, 0.1, false, "exclude neither"},
		{"equal, few pairs that agree", 6, 1, 0.01, true, "cannot tell"},
		{"equal, many pairs", 30, 1, 0.06, true, "cannot tell"},
		{"a little lower, many pairs", 30, 0.995, 0.06, true, "cannot tell"},
		{"higher", 30, 1.05, 0.03, true, ": not lower"},
		{"one pair", 1, 2, 0, false, "nothing is shown"},
		{"none", 0, 1, 0, false, "nothing is shown"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := compare(pairsAround(c.n, c.ratio, c.noise))
			if got.noLower() != c.met || !strings.Contains(got.String(), c.words) {
				t.Errorf("met is %v, want %v: %v", got.noLower(), c.met, got)
			}
			if c.n > 0 && math.Abs(got.ratio-c.ratio) > 1e-9 {
				t.Errorf("ratio %v, want %v", got.ratio, c.ratio)
			}
		})
	}
	if c := compare([]float64{1, 2}, []float64{1}); c.noLower() {
		t.Errorf("what is no pairs was judged: %v", c)
	}
}

// An interval of 95 % misses what it should contain once in twenty times, with few
// pairs as with many.
func TestIntervalsContainTheTrueRatioAsOftenAsTheySay(t *testing.T) {
	const truth, runs = 0.97, 4000
	chance := rand.New(rand.NewPCG(3, 4))
	for _, n := range []int{2, 3, 6, 30} {
		missed := 0
		for range runs {
			var values, base []float64
			for range n {
				base = append(base, 1)
				values = append(values, truth*math.Exp(0.05*chance.NormFloat64()))
			}
			if c := compare(values, base); c.low > truth || c.high < truth {
				missed++
			}
		}
		if share := float64(missed) / runs; share < 0.03 || share > 0.07 {
			t.Errorf("of intervals of %d pairs %.1f %% miss the true ratio, want about 5 %%", n, 100*share)
		}
	}
}
