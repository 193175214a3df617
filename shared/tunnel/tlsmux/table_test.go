package tlsmux

import "testing"

// Many readers may be fast at first and stall later, all at once (row C4).
func TestWindowsTogetherGrowByHalfTheCeiling(t *testing.T) {
	const ceiling = 16 << 20
	tab := &table{opt: Options{MemoryCeiling: ceiling, Window: 4 << 20}, streams: map[uint32]*stream{}}
	var all []*stream
	for i := range uint32(100) {
		st := &stream{id: 2 * (i + 1), recv: recvHalf{granted: initialWindow, window: initialWindow}, life: life{acked: true}}
		tab.streams[st.id] = st
		tab.local++
		all = append(all, st)
	}
	sum := func() (n int) {
		for _, st := range all {
			n += beyond(st.recv.window)
		}
		return n
	}
	for range 100 { // read as fast as it comes
		for _, st := range all {
			n := int(st.recv.granted - st.recv.received)
			if _, err := tab.receive(st, uint32(n)); err != nil {
				t.Fatal(err)
			}
			tab.consume(st, n, 0)
		}
	}
	if got := sum(); got > ceiling/2 || got < ceiling/4 || got != tab.grown {
		t.Errorf("windows grew by %d KiB, counted %d KiB, want up to %d KiB", got>>10, tab.grown>>10, ceiling>>11)
	}
	for _, st := range all[1:] {
		tab.release(st)
	}
	if tab.grown != beyond(all[0].recv.window) {
		t.Errorf("%d KiB are counted after 99 of 100 streams are gone, want %d", tab.grown>>10, beyond(all[0].recv.window)>>10)
	}
	for range 100 {
		n := int(all[0].recv.granted - all[0].recv.received)
		_, _ = tab.receive(all[0], uint32(n))
		tab.consume(all[0], n, 0)
	}
	if all[0].recv.window != 4<<20 {
		t.Errorf("alone, a stream's window grew to %d KiB, want all of 4 MiB", all[0].recv.window>>10)
	}
}
