package tlsmux

import "testing"

// Many readers may be fast at first and stall later, all at once (row C4).
func TestWindowsTogetherGrowByHalfTheCeiling(t *testing.T) {
	const ceiling = 16 << 20
	tab := newTable(Options{MemoryCeiling: ceiling, Window: 4 << 20}, false)
	var all []*stream
	for i := range uint32(100) {
		st := &stream{id: 2 * (i + 1), recv: recvHalf{mem: &tab.mem, granted: initialWindow, window: initialWindow}, life: life{acked: true}}
		tab.streams[st.id] = st
		tab.local++
		all = append(all, st)
	}
	sum := func() (n int64) {
		for _, st := range all {
			n += beyond(st.recv.window)
		}
		return n
	}
	for range 100 { // read as fast as it comes
		for _, st := range all {
			pass(t, st)
		}
	}
	if got := sum(); got > ceiling/2 || got < ceiling/4 || got != tab.mem.grown.Load() {
		t.Errorf("windows grew by %d KiB, counted %d KiB, want up to %d KiB", got>>10, tab.mem.grown.Load()>>10, ceiling>>11)
	}
	for _, st := range all[1:] {
		tab.release(st)
	}
	if tab.mem.grown.Load() != beyond(all[0].recv.window) {
		t.Errorf("%d KiB are counted after 99 of 100 streams are gone, want %d", tab.mem.grown.Load()>>10, beyond(all[0].recv.window)>>10)
	}
	for range 100 {
		pass(t, all[0])
	}
	if all[0].recv.window != 4<<20 {
		t.Errorf("alone, a stream's window grew to %d KiB, want all of 4 MiB", all[0].recv.window>>10)
	}
}

// pass receives as much as was granted and reads it.
func pass(t *testing.T, st *stream) {
	t.Helper()
	r := &st.recv
	n := int(r.granted - r.received)
	if _, _, err := r.announce(uint32(n)); err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.consume(n, 0)
}
