package bus

import (
	"fmt"
	"testing"
	"time"
)

// 100,000 sites of other edges add nothing measurable to the lookup of a site that is
// here: under a microsecond, of a request that costs tens of them.
func TestAHundredThousandRowsSlowNoLookup(t *testing.T) {
	lookup := func(rows int) time.Duration {
		table := newTable()
		for i := range rows {
			table.set(fmt.Sprintf("customer-%d.apps.example.com", i), nodeID(2), Ready)
		}
		best := time.Hour
		for range 50 {
			began := time.Now()
			for range 1000 {
				if table.get("here.example.com") != nil || table.getBelow("example.com") != nil {
					t.Fatal("found what is not there")
				}
			}
			best = min(best, time.Since(began)/1000)
		}
		return best
	}
	few, many := lookup(1), lookup(100_000)
	t.Logf("%s with one row, %s with 100,000", few, many)
	if many-few > time.Microsecond {
		t.Errorf("100,000 rows add %s to a lookup, want at most 1 µs", many-few)
	}
}
