package cluster

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestPlacementsAreCheckedAndKept(t *testing.T) {
	a, b, c := strings.Repeat("a", 16), strings.Repeat("b", 16), strings.Repeat("c", 16)
	id := strings.Repeat("0f", 16)
	good := Placement{Generation: 2, ID: id, Nodes: []string{a, b, c}}
	for what, p := range map[string]Placement{
		"no generation": {Generation: 0, ID: id, Nodes: []string{a}},
		"short id":      {Generation: 2, ID: id[2:], Nodes: []string{a}},
		"no hex":        {Generation: 2, ID: strings.Repeat("zz", 16), Nodes: []string{a}},
		"a path as id":  {Generation: 2, ID: "../../../../../../etc/passwd00000"[:32], Nodes: []string{a}},
		"nobody":        {Generation: 2, ID: id, Nodes: nil},
		"two":           {Generation: 2, ID: id, Nodes: []string{a, b}},
		"four":          {Generation: 2, ID: id, Nodes: []string{a, b, c, strings.Repeat("d", 16)}},
		"twice":         {Generation: 2, ID: id, Nodes: []string{a, a, b}},
		"out of order":  {Generation: 2, ID: id, Nodes: []string{b, a, c}},
		"no node":       {Generation: 2, ID: id, Nodes: []string{a, b, "x"}},
		"two servers":   {Generation: 2, ID: id, Nodes: []string{a, b, c}, Servers: []string{a, b}},
		"other servers": {Generation: 2, ID: id, Nodes: []string{a, b, c}, Servers: []string{a, c, b}},
		"of later":      {Generation: 2, ID: id, Nodes: []string{a, b, c}, Servers: []string{a, b, c + "-3"}},
		"of nothing":    {Generation: 2, ID: id, Nodes: []string{a, b, c}, Servers: []string{a, b, c + "-"}},
		"of 02":         {Generation: 2, ID: id, Nodes: []string{a, b, c}, Servers: []string{a, b, c + "-02"}},
		"for one":       {Generation: 2, ID: id, Nodes: []string{a}, Servers: []string{a}},
	} {
		if p.valid() {
			t.Errorf("%s: %+v is taken", what, p)
		}
	}
	for _, p := range []Placement{good, {Generation: 3, ID: id, Nodes: []string{a}}} {
		if !p.valid() {
			t.Errorf("%+v is refused", p)
		}
	}
	for what, p := range map[string]plan{
		"host is not of it": {good, strings.Repeat("d", 16), strings.Repeat("0", 64)},
		"short secret":      {good, a, "secret"},
		"one edge":          {Placement{Generation: 3, ID: id, Nodes: []string{a}}, a, strings.Repeat("0", 64)},
	} {
		if p.valid() {
			t.Errorf("%s: the plan is taken", what)
		}
	}

	// One of three is replaced, and comes back in place of another.
	d := strings.Repeat("d", 16)
	third := good.replaced(b, d)
	fourth := third.replaced(a, b)
	for _, c := range []struct {
		p             Placement
		nodes, server string
		newest        string
	}{
		{good, a + b + c, "", ""},
		{third, a + c + d, a + c + d + "-3", d},
		{fourth, b + c + d, b + "-4" + c + d + "-3", b},
	} {
		newest, _ := c.p.newest()
		if got := strings.Join(c.p.Nodes, ""); !c.p.valid() || c.p.ID != id || got != c.nodes || strings.Join(c.p.Servers, "") != c.server || newest != c.newest {
			t.Errorf("%+v, newest %s; want %+v", c.p, newest, c)
		}
	}

	dir := t.TempDir()
	if p, err := loadPlacement(dir); err != nil || p.Generation != 0 {
		t.Errorf("of nothing: %+v %v", p, err)
	}
	if err := savePlacement(dir, good); err != nil {
		t.Fatal(err)
	}
	if p, err := loadPlacement(dir); err != nil || p.ID != id || !slices.Equal(p.Nodes, good.Nodes) {
		t.Errorf("read %+v %v", p, err)
	}
	// Half a file is not "never moved".
	path := filepath.Join(dir, placementFile)
	if err := os.Truncate(path, 20); err != nil {
		t.Fatal(err)
	}
	if p, err := loadPlacement(dir); err == nil {
		t.Errorf("of half a file: %+v", p)
	}
}
