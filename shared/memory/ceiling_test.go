package memory

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, []byte(text), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestTheLeastLimitOfAllGroupsCounts(t *testing.T) {
	for name, c := range map[string]struct {
		self  string
		files map[string]string
		want  int64
	}{
		"version 2":           {"0::/a/b\n", map[string]string{"a/b/memory.max": "2000\n", "a/memory.max": "max\n"}, 2000},
		"version 2, a parent": {"0::/a/b\n", map[string]string{"a/b/memory.max": "2000\n", "a/memory.max": "1000\n"}, 1000},
		"version 2, own root": {"0::/\n", map[string]string{"memory.max": "3000\n"}, 3000},
		"version 1":           {"4:memory:/x\n2:cpu:/y\n0::/\n", map[string]string{"memory/x/memory.limit_in_bytes": "5000\n", "memory/memory.limit_in_bytes": "9223372036854771712\n"}, 5000},
		"none":                {"4:memory:/\n", map[string]string{"memory/memory.limit_in_bytes": "9223372036854771712\n"}, 0},
		"outside":             {"0::/../../a\n", map[string]string{"memory.max": "max\n"}, 0},
		"nonsense":            {"\n::\nx\n", nil, 0},
	} {
		dir := t.TempDir()
		for file, text := range c.files {
			write(t, filepath.Join(dir, "cg", file), text)
		}
		write(t, filepath.Join(dir, "self"), c.self)
		if got := newCeiling(filepath.Join(dir, "cg"), filepath.Join(dir, "self")).Limit(); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

// The page cache does not count: the kernel takes it back.
func TestFullComesAndGoes(t *testing.T) {
	mib := func(n int) string { return fmt.Sprintln(n << 20) }
	dir := t.TempDir()
	group := filepath.Join(dir, "cg", "a")
	write(t, filepath.Join(group, "memory.max"), mib(1000))
	write(t, filepath.Join(group, "memory.current"), mib(920))
	write(t, filepath.Join(group, "memory.stat"), "anon 1\ninactive_file "+mib(300)+"active_file "+mib(50))
	write(t, filepath.Join(dir, "self"), "0::/a\n")
	c := newCeiling(filepath.Join(dir, "cg"), filepath.Join(dir, "self"))
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	changes := make(chan bool, 10)
	wg.Go(func() { c.Run(ctx, func(full bool, _ int64) { changes <- full }) })
	defer wg.Wait()
	defer cancel()
	time.Sleep(3 * calm)
	if c.Full() {
		t.Error("full by what is only cache")
	}
	next := func(want bool) {
		t.Helper()
		select {
		case got := <-changes:
			if got != want || c.Full() != want {
				t.Errorf("told %v, Full is %v, want %v", got, c.Full(), want)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("not noticed")
		}
	}
	write(t, filepath.Join(group, "memory.stat"), "inactive_file "+mib(10))
	next(true)
	write(t, filepath.Join(group, "memory.current"), mib(870))
	time.Sleep(3 * calm)
	if !c.Full() {
		t.Error("not full between the marks")
	}
	write(t, filepath.Join(group, "memory.current"), mib(700))
	next(false)
}

// What begins in one moment does not all fit because none of it shows yet.
func TestWhatHasJustBegunIsReckonedWith(t *testing.T) {
	const limit = 100 << 20
	dir := t.TempDir()
	group := filepath.Join(dir, "cg", "a")
	write(t, filepath.Join(group, "memory.max"), fmt.Sprint(limit))
	use := func(n int) { write(t, filepath.Join(group, "memory.current"), fmt.Sprint(n)) }
	use(50 << 20)
	write(t, filepath.Join(dir, "self"), "0::/a\n")
	c := newCeiling(filepath.Join(dir, "cg"), filepath.Join(dir, "self"))
	c.spent.Store(c.used())

	fill := func() (let []Work) {
		t.Helper()
		for {
			w, ok := c.Begin()
			if !ok {
				return let
			}
			if let = append(let, w); len(let) > 1000 {
				t.Fatal("everything is let in")
			}
		}
	}
	const room = (80 - 50) << 20 / toCome
	first := fill()
	if n := len(first); n < room-1 || n > room {
		t.Errorf("%d let in at once, want %d", n, room)
	}
	if !c.Full() {
		t.Error("not full")
	}
	for _, w := range first[:10] {
		c.End(w)
	}
	if n := len(fill()); n < 8 || n > 10 {
		t.Errorf("%d let in after 10 have ended", n)
	}
	time.Sleep((ages + 1) * age) // they have shown what they need: nothing
	if c.Full() {
		t.Error("full by what began long ago")
	}
	if n := len(fill()); n < room-1 || n > room {
		t.Errorf("%d let in after a while, want %d", n, room)
	}
	for _, w := range first {
		c.End(w) // and nothing is counted for them any more, some twice at that
	}
	time.Sleep((ages + 1) * age)
	use(79 << 20) // nobody has looked
	if n := len(fill()); n > room {
		t.Errorf("%d let in", n)
	}
	if len(fill()) != 0 || c.spent.Load() != 79<<20 {
		t.Errorf("what is used was not looked at when it was to be known: %d", c.spent.Load())
	}
}

func TestWithoutACeilingEverythingIsLetIn(t *testing.T) {
	c := newCeiling(t.TempDir(), filepath.Join(t.TempDir(), "none"))
	for range 10_000 {
		if _, ok := c.Begin(); !ok || c.Full() {
			t.Fatal("full")
		}
	}
	if n := c.Part(0.25, 7); n != 7 {
		t.Errorf("a part of no ceiling is %d, want 7", n)
	}
}

func TestPartIsTheLess(t *testing.T) {
	c := &Ceiling{limit: 64 << 20}
	if n := c.Part(0.25, 96<<20); n != 16<<20 {
		t.Errorf("%d", n)
	}
	if n := c.Part(0.25, 1<<20); n != 1<<20 {
		t.Errorf("%d", n)
	}
}

func BenchmarkBegin(b *testing.B) {
	c := &Ceiling{limit: 1 << 40, epoch: time.Now().Add(-ages * age)}
	b.ReportAllocs()
	for b.Loop() {
		w, _ := c.Begin()
		c.End(w)
	}
}
