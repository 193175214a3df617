package rig

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Tally counts who answered. Its zero value is ready to use, by one goroutine.
type Tally struct {
	Answers  map[string]int // by who
	Failures []error
	Slowest  time.Duration
}

// Count adds the outcome of a request that began at a time.
func (t *Tally) Count(began time.Time, who string, err error) {
	t.Slowest = max(t.Slowest, time.Since(began))
	if err != nil {
		t.Failures = append(t.Failures, err)
		return
	}
	if t.Answers == nil {
		t.Answers = map[string]int{}
	}
	t.Answers[who]++
}

// Merge adds what another one counted.
func (t *Tally) Merge(other Tally) {
	for who, n := range other.Answers {
		if t.Answers == nil {
			t.Answers = map[string]int{}
		}
		t.Answers[who] += n
	}
	t.Failures = append(t.Failures, other.Failures...)
	t.Slowest = max(t.Slowest, other.Slowest)
}

// Verdict is nil when nothing failed.
func (t *Tally) Verdict() error {
	if len(t.Failures) == 0 {
		return nil
	}
	return fmt.Errorf("%d requests failed, the first with: %w", len(t.Failures), t.Failures[0])
}

// String is such as "20 requests, 0 failed: statler 11, waldorf 9".
func (t *Tally) String() string {
	total := len(t.Failures)
	var parts []string
	for who, n := range t.Answers {
		total += n
		parts = append(parts, fmt.Sprintf("%s %d", who, n))
	}
	slices.Sort(parts)
	return fmt.Sprintf("%d requests, %d failed: %s", total, len(t.Failures), strings.Join(parts, ", "))
}

// Wait lets a time pass; it errs if ctx ends first.
func Wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
