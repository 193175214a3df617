package memory

import (
	"bytes"
	"context"
	"math"
	"os"
	"path"
	"path/filepath"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// calm and tight are how often what is used is compared with the ceiling: below
	// near of it, and above.
	calm  = 100 * time.Millisecond
	tight = 10 * time.Millisecond
	near  = 0.50
	// Nothing more is taken in when less than a tenth of the ceiling is left, or less
	// than a fifth and leave bytes: what is in flight needs as much in a small process
	// as in a large one. The collector works for its life when another tenth less is
	// left, and things are taken in again when slack more is; parts of the ceiling.
	least = 0.10
	most  = 0.20
	leave = 64 << 20
	early = 0.10
	slack = 0.08

	// What was taken in a moment ago has not shown yet what it needs. Each piece of
	// work that runs and began in the last ages times age is reckoned to need toCome
	// bytes more than is used: what a visitor who does not read his answer costs.
	toCome = 384 << 10
	age    = 300 * time.Millisecond
	ages   = 4
)

// Ceiling is the memory that this process may use, and whether it is nearly used up.
// The least of the limits of its control groups (both versions) and of GOMEMLIMIT
// counts. All methods may be called concurrently.
type Ceiling struct {
	limit int64 // bytes, 0 for none
	group group
	over  atomic.Bool  // above the mark, and not yet well below it
	spent atomic.Int64 // bytes at the last look
	epoch time.Time    // what the times below count from

	looking sync.Mutex   // one look at a time
	looked  atomic.Int64 // when the last was

	young [ages]struct { // by the time of the beginning, in turn
		turn    atomic.Int64 // which time that is, in ages
		running atomic.Int64
	}
}

// NewCeiling finds the ceiling, and has the collector keep the heap below it. It
// starts nothing; Run watches.
func NewCeiling() *Ceiling {
	c := newCeiling("/sys/fs/cgroup", "/proc/self/cgroup")
	own := debug.SetMemoryLimit(-1)
	if c.limit > 0 && own == math.MaxInt64 {
		debug.SetMemoryLimit(c.mark(early))
	}
	if own != math.MaxInt64 && (c.limit == 0 || own < c.limit) {
		c.limit, c.group = own, group{}
	}
	return c
}

// newCeiling reads the control groups only.
func newCeiling(root, self string) *Ceiling {
	c := &Ceiling{epoch: time.Now().Add(-ages * age)}
	text, _ := os.ReadFile(self)
	for line := range strings.Lines(string(text)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		switch {
		case parts[0] == "0" && parts[1] == "":
			c.climb(filepath.Join(root, parts[2]), root, group{limit: "memory.max", used: "memory.current", cache: []string{"inactive_file", "active_file"}})
		case strings.Contains(","+parts[1]+",", ",memory,"):
			mount := filepath.Join(root, "memory")
			c.climb(filepath.Join(mount, parts[2]), mount, group{limit: "memory.limit_in_bytes", used: "memory.usage_in_bytes", cache: []string{"total_inactive_file", "total_active_file"}})
		}
	}
	return c
}

// group is a control group with a limit, and the names of its files.
type group struct {
	dir, limit, used string
	cache            []string // lines of memory.stat that can be taken back
}

// climb looks at dir and all above it, up to top.
func (c *Ceiling) climb(dir, top string, g group) {
	for {
		text, err := os.ReadFile(filepath.Join(dir, g.limit))
		if err == nil {
			n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64) // "max" is none
			if err == nil && n > 0 && n < 1<<50 && (c.limit == 0 || n < c.limit) {
				c.limit, c.group = n, g
				c.group.dir = dir
			}
		}
		switch {
		case dir == top:
			return
		case strings.HasPrefix(dir, top+"/"):
			dir = path.Dir(dir)
		default: // named from outside of what this process sees
			dir = top
		}
	}
}

// mark is the use above which nothing is taken in, less a part of the ceiling.
func (c *Ceiling) mark(below float64) int64 {
	limit := float64(c.limit)
	return int64(limit - max(least*limit, min(most*limit, leave)) - below*limit)
}

// Limit is the ceiling in bytes, 0 if there is none.
func (c *Ceiling) Limit() int64 { return c.limit }

// Part is that part of the ceiling in bytes, at most most, and most if there is no
// ceiling.
func (c *Ceiling) Part(part float64, most int) int {
	if c.limit == 0 {
		return most
	}
	return int(min(part*float64(c.limit), float64(most)))
}

// Full reports whether so much is used, or may soon be by what has just begun, that
// nothing more should be taken in.
func (c *Ceiling) Full() bool {
	return c.limit != 0 && c.fullAt(int64(time.Since(c.epoch)))
}

// fullAt is Full, now being the time since the epoch. What was seen last is looked at
// again before it is held against anybody.
func (c *Ceiling) fullAt(now int64) bool {
	return c.over.Load() || !c.room(now) && (!c.refresh(now) || !c.room(now))
}

// Work is a piece of work that Begin let in.
type Work struct{ turn int64 }

// Begin reports whether there is memory for another piece of work, which runs until
// End is called with what Begin returned. There is none while the ceiling is Full.
func (c *Ceiling) Begin() (Work, bool) {
	if c.limit == 0 {
		return Work{}, true
	}
	now := int64(time.Since(c.epoch))
	if c.fullAt(now) {
		return Work{}, false
	}
	turn := now / int64(age)
	y := &c.young[turn%ages]
	if old := y.turn.Load(); old != turn && y.turn.CompareAndSwap(old, turn) {
		y.running.Store(0) // what began so long ago has shown what it needs
	}
	y.running.Add(1)
	return Work{turn + 1}, true
}

// End notes that the work has ended. It is called once.
func (c *Ceiling) End(w Work) {
	if w.turn == 0 {
		return
	}
	turn := w.turn - 1
	if y := &c.young[turn%ages]; y.turn.Load() == turn {
		y.running.Add(-1)
	}
}

// room reports whether one more fits beside what is used and what may be to come.
func (c *Ceiling) room(now int64) bool {
	coming := int64(1)
	for i := range c.young {
		if y := &c.young[i]; y.turn.Load() > now/int64(age)-ages {
			coming += max(y.running.Load(), 0)
		}
	}
	return c.spent.Load()+coming*toCome < c.mark(0)
}

// refresh looks what is used, and reports whether it did: not while another does, or
// did a moment ago.
func (c *Ceiling) refresh(now int64) bool {
	if now-c.looked.Load() < int64(tight/5) || !c.looking.TryLock() {
		return false
	}
	defer c.looking.Unlock()
	c.spent.Store(c.used())
	c.looked.Store(int64(time.Since(c.epoch)))
	return true
}

// Run compares until ctx ends. told is called when the use has come above the mark, so
// that Full says so until it is well below it, and then.
func (c *Ceiling) Run(ctx context.Context, told func(full bool, used int64)) {
	if c.limit == 0 {
		<-ctx.Done()
		return
	}
	wake := time.NewTimer(0)
	defer wake.Stop()
	collecting := make(chan struct{}, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	var freed time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-wake.C:
		}
		c.looking.Lock()
		used := c.used()
		c.spent.Store(used)
		c.looked.Store(int64(time.Since(c.epoch)))
		c.looking.Unlock()
		switch {
		case !c.over.Load() && used >= c.mark(0):
			c.over.Store(true)
			told(true, used)
		case c.over.Load() && used < c.mark(slack):
			c.over.Store(false)
			told(false, used)
		}
		if c.over.Load() && time.Since(freed) > time.Second {
			select {
			case collecting <- struct{}{}:
				freed = time.Now()
				wg.Go(func() { // takes as long as it takes, and looking must go on
					debug.FreeOSMemory() // collects, and gives back what is free
					<-collecting
				})
			default:
			}
		}
		if float64(used) < near*float64(c.limit) {
			wake.Reset(calm)
		} else {
			wake.Reset(tight)
		}
	}
}

// used is what counts against the ceiling: of a control group all but the page cache,
// sockets' buffers included; else what the runtime holds.
func (c *Ceiling) used() int64 {
	if c.group.dir != "" {
		if n, ok := c.group.read(int64(near * float64(c.limit))); ok {
			return n
		}
	}
	samples := [...]metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(samples[:])
	return int64(samples[0].Value.Uint64() - samples[1].Value.Uint64())
}

// read is what the group uses. Page cache counts if all is less than little: to find
// out how much it is takes time.
func (g group) read(little int64) (int64, bool) {
	text, err := os.ReadFile(filepath.Join(g.dir, g.used))
	if err != nil {
		return 0, false
	}
	used, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0, false
	}
	if used < little {
		return used, true
	}
	stat, _ := os.ReadFile(filepath.Join(g.dir, "memory.stat"))
	for line := range bytes.Lines(stat) {
		name, value, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
		for _, want := range g.cache {
			if name == want {
				n, _ := strconv.ParseInt(value, 10, 64)
				used -= n
			}
		}
	}
	return max(used, 0), true
}
