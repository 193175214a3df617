package tunnel

import "testing"

// direct is an endless stream that passes on what tests say has come.
type direct struct {
	endless
	full bool
	to   Sink
}

func (d *direct) Offer([]byte) bool { return !d.full }
func (d *direct) Flush()            {}
func (d *direct) PassTo(s Sink)     { d.to = s }

func TestWhatIsPassedOnCountsAsMoved(t *testing.T) {
	for name, way := range map[string]func(s, other *direct, d Direct) Sink{
		"sent":     func(_, _ *direct, d Direct) Sink { return d },
		"received": func(s, other *direct, d Direct) Sink { d.PassTo(other); return s.to },
	} {
		t.Run(name, func(t *testing.T) {
			l, s, other := NewLoad(nil), new(direct), new(direct)
			tracked := l.Track(s)
			sink := way(s, other, DirectOf(tracked))
			piece := make([]byte, 1<<10)
			s.full, other.full = true, true
			for range 2 * BulkBytes / len(piece) {
				if sink.Offer(piece) {
					t.Fatal("a full stream takes bytes")
				}
			}
			if l.Bulk() != 0 {
				t.Error("what nobody took is bulk")
			}
			s.full, other.full = false, false
			for range BulkBytes / len(piece) {
				if !sink.Offer(piece) {
					t.Fatal("refused")
				}
			}
			if l.Bulk() != 1 {
				t.Error("what was passed on is no bulk")
			}
		})
	}
}

func TestAStreamWithoutADirectSideHasNone(t *testing.T) {
	if DirectOf(endless{}) != nil || DirectOf(NewLoad(nil).Track(endless{})) != nil {
		t.Error("an endless stream has a direct side")
	}
}
