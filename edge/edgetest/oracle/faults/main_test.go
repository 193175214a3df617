package main

import (
	"testing"
	"time"

	"wormhole/edge/edgetest/oracle"
)

func TestTheTableIsSortedAndLeavesNothingOut(t *testing.T) {
	names := []string{"TestG8X", "TestA10Y", "TestA2UpgradeRefusesNobody", "TestB3Z", "TestC1Both", "TestC2Skipped"}
	ends := map[string]end{
		"TestA10Y": {how: "pass"}, "TestA2UpgradeRefusesNobody": {how: "fail", last: "x_test.go:1: a | b"},
		"TestB3Z": {how: "pass", took: 1234 * time.Millisecond}, "TestC1Both": {how: "fail"}, "TestC2Skipped": {how: "skip", last: "no root"},
	}
	given := map[string][]oracle.Row{
		"TestA10Y":   {{ID: "A10 ii", OK: true}, {ID: "A10 i", OK: true}},
		"TestC1Both": {{ID: "C1 agent", OK: true}, {ID: "C1 edge", Figure: "3 of 20"}},
		// Gave its row, and its end was never heard of.
		"TestG8X": {{ID: "G8", OK: true}},
	}
	table, failed := tabulate(names, ends, given)
	want := []string{
		"| A2 | upgrade refuses nobody | failed: x_test.go:1: a / b | what the test asserts | FAILED |",
		"| A10 i |  |  |  | ok |", "| A10 ii |  |  |  | ok |",
		"| B3 | z | passed in 1.2s | what the test asserts | ok |",
		"| C1 agent |  |  |  | ok |", "| C1 edge |  | 3 of 20 |  | FAILED |",
		"| C2 | skipped | not run here: no root | what the test asserts | FAILED |",
		"| G8 |  |  |  | ok |", "| G8 | x | did not finish | what the test asserts | FAILED |",
	}
	if failed != 4 || len(table) != len(want) {
		t.Errorf("%d rows, %d failed, want %d and 4", len(table), failed, len(want))
	}
	for i, r := range table {
		if i < len(want) && r.String() != want[i] {
			t.Errorf("row %d is %s\nwant %s", i, r, want[i])
		}
	}
}

func TestAllButOneLeavesThatOne(t *testing.T) {
	if got := allBut([]string{"TestA1", "TestG8", "TestH3"}, "TestG8"); got != "^(TestA1|TestH3)$" {
		t.Error(got)
	}
	if got := allBut([]string{"TestG8"}, "TestG8"); got != "^$" {
		t.Error(got)
	}
}
