package tlsmux

import (
	"io"
	"testing"
	"time"
)

// FuzzFrames gives the read side of the wire arbitrary frames in arbitrary pieces:
// it must not panic, must not hand out half a header, and what it counts as unread
// must stay within what was granted.
func FuzzFrames(f *testing.F) {
	f.Add(header{kind: typeWindow, flags: flagSYN, id: 1}.append(nil), uint8(5))
	f.Add(append(header{kind: typeData, flags: flagSYN | flagFIN, id: 3, length: 4}.append(nil), "body"...), uint8(13))
	f.Add(header{kind: typeWindow, flags: flagRST, id: 2}.append(nil), uint8(1))
	f.Add(header{kind: typeWindow, flags: flagFIN, id: 2}.append(header{kind: typePing, flags: flagSYN}.append(nil)), uint8(12))
	f.Fuzz(func(t *testing.T, frames []byte, piece uint8) {
		s := &session{start: time.Now(), opt: Options{}.withDefaults(true)}
		s.table = newTable(s.opt, false)
		s.out = newOutbox(io.Discard, s.now, &s.heard, func() {})
		if _, err := s.table.reserve(); err != nil {
			t.Fatal(err)
		}
		if err := s.table.add(newStream(s, 2)); err != nil { // one stream of ours
			t.Fatal(err)
		}
		w := &wire{s: s}
		var held []byte
		for rest := frames; len(rest) > 0; {
			n := min(len(rest), 1+int(piece))
			held = append(held, rest[:n]...)
			rest = rest[n:]
			keep, err := w.inspect(held)
			if keep > len(held) || err == nil && len(held)-keep >= headerLen {
				t.Fatalf("kept %d of %d", keep, len(held))
			}
			if err != nil {
				break
			}
			held = held[keep:]
		}
		if limit := (s.opt.MaxIncoming + 1) * initialWindow; s.table.unread < 0 || s.table.unread > limit {
			t.Fatalf("unread = %d, want within 0 and %d", s.table.unread, limit)
		}
		if open := s.table.open(); open < 0 || open > s.opt.MaxIncoming+1 {
			t.Fatalf("open = %d", open)
		}
	})
}
