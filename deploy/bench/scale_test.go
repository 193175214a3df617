package main

import (
	"testing"
	"time"

	"wormhole/deploy/rig"
)

func TestScaleCountsWhatIsThere(t *testing.T) {
	root, err := rig.Root()
	if err != nil {
		t.Fatal(err)
	}
	s, err := openSite(t.Context(), root, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	}()
	curves, err := measureScale(t.Context(), s, scalePlan{
		tunnels: []int{3, 20}, sites: []int{10, 3000}, clients: []int{5, 40}, agents: 2,
		calm: 50 * time.Millisecond, idle: 200 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	want := [][]int{{3, 20}, {2}, {10, 3000}, {5, 40}}
	if len(curves) != len(want) {
		t.Fatalf("%d curves, want %d", len(curves), len(want))
	}
	for i, c := range curves {
		if len(c.points) != len(want[i]) || c.bare.memory < 5<<10 {
			t.Errorf("%s: %d points, %v KiB without any", c.name, len(c.points), c.bare.memory)
			continue
		}
		for j, p := range c.points {
			if p.n != want[i][j] || p.memory < 5<<10 || p.took <= 0 || p.idle < 0 || p.idle > 2 {
				t.Errorf("%s: point %d is %+v, want %d", c.name, j, p, want[i][j])
			}
		}
	}
	if sites := curves[2].points[1]; sites.another <= 0 || curves[2].each(sites) <= 0 {
		t.Errorf("3,000 sites cost %v KiB each, one more took %v", curves[2].each(sites), sites.another)
	}
	t.Log(scaleMarkdown(curves, ""))
}
