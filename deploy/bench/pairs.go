package main

import (
	"fmt"
	"math"
)

// comparison is what pairs of measurements say about one figure beside another.
type comparison struct {
	pairs int
	ratio float64 // the geometric mean of the pairs' ratios
	sigma float64 // the standard deviation of a pair's ratio, as a share of it
	// With 95 % the true ratio is from low to high. One pair says nothing of that.
	low, high float64
}

// compare compares values with those of base, pair by pair. It works on logarithms:
// half and twice as much are the same distance from equal.
func compare(values, base []float64) comparison {
	c := comparison{pairs: len(values), high: math.Inf(1)}
	if len(values) == 0 || len(values) != len(base) {
		return comparison{high: math.Inf(1)}
	}
	logs := make([]float64, len(values))
	var sum, squares float64
	for i := range values {
		logs[i] = math.Log(values[i] / base[i])
		sum += logs[i]
	}
	mean := sum / float64(len(logs))
	c.ratio = math.Exp(mean)
	if len(logs) < 2 {
		return c
	}
	for _, l := range logs {
		squares += (l - mean) * (l - mean)
	}
	c.sigma = math.Sqrt(squares / float64(len(logs)-1))
	reach := student(len(logs)-1) * c.sigma / math.Sqrt(float64(len(logs)))
	c.low, c.high = math.Exp(mean-reach), math.Exp(mean+reach)
	return c
}

// student is how many standard errors from the mean the ends of a 95 % interval are,
// with so many degrees of freedom. Between the rows of the table it is the one for
// fewer, which makes the interval a little wider.
func student(freedom int) float64 {
	t := 12.706
	for _, row := range []struct {
		freedom int
		t       float64
	}{
		{2, 4.303},
		{3, 3.182},
		{4, 2.776},
		{5, 2.571},
		{6, 2.447},
		{7, 2.365},
		{8, 2.306},
		{9, 2.262},
		{10, 2.228},
		{12, 2.179},
		{15, 2.131},
		{20, 2.086},
		{30, 2.042},
		{60, 2.000},
		{120, 1.980},
	} {
		if freedom >= row.freedom {
			t = row.t
		}
	}
	return t
}

// tolerable is what pairs must exclude before they are said to show no loss: that of
// 5 % or more.
const tolerable = 0.95

// noLower reports whether the pairs show that the first figure is no lower: they do
// not show that it is lower, and exclude that it is lower by 5 % or more. So chance
// decides nothing; few pairs that differ much show nothing.
func (c comparison) noLower() bool { return c.high >= 1 && c.low > tolerable }

func (c comparison) String() string {
	if c.pairs < 2 {
		return fmt.Sprintf("%d pairs, ratio %.3f: nothing is shown by so few", c.pairs, c.ratio)
	}
	judged := "lower"
	switch {
	case c.low >= 1:
		judged = "not lower"
	case c.noLower():
		judged = "they cannot tell the two apart, and exclude a loss of 5 %"
	case c.high >= 1:
		judged = "they exclude neither a loss of 5 % nor that there is none"
	}
	return fmt.Sprintf("%d pairs, ratio %.3f, 95 %% %.3f to %.3f: %s", c.pairs, c.ratio, c.low, c.high, judged)
}
