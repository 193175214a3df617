package tlsmux

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"testing/iotest"
	"time"
)

// pieces hands out a connection's bytes in pieces of at most n.
type pieces struct {
	rest []byte
	n    int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), p.n)], p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// offline returns the edge's side of a session that hears what conn says, and its
// stream 2, which it opened.
func offline(t testing.TB, conn io.Reader, opt Options) (*wire, *stream) {
	s := &session{start: time.Now(), opt: opt.withDefaults(true)}
	s.table = newTable(s.opt, false)
	s.out = newOutbox(io.Discard, s.now, &s.heard, func() {})
	s.done = make(chan struct{})
	s.raw, _ = net.Pipe()
	if _, err := s.table.reserve(); err != nil {
		t.Fatal(err)
	}
	st := newStream(s, 2)
	if err := s.table.add(st); err != nil {
		t.Fatal(err)
	}
	return &wire{s: s, conn: conn}, st
}

// FuzzFrames gives the read side of the wire arbitrary frames in arbitrary pieces.
// Whatever comes, yamux must get whole headers of frames without a body, the streams
// must hold just what was sent on them, and what is held must be counted.
func FuzzFrames(f *testing.F) {
	f.Add(header{kind: typeWindow, flags: flagSYN, id: 1}.append(nil), uint8(5), false)
	f.Add(append(header{kind: typeData, flags: flagSYN | flagFIN, id: 3, length: 4}.append(nil), "body"...), uint8(13), true)
	f.Add(header{kind: typeWindow, flags: flagRST, id: 2}.append(nil), uint8(1), false)
	f.Add(header{kind: typeWindow, flags: flagFIN, id: 2}.append(header{kind: typePing, flags: flagSYN}.append(nil)), uint8(12), true)
	f.Add(append(header{kind: typeData, id: 2, length: 1_500}.append(nil), make([]byte, 1_500)...), uint8(255), false)
	f.Add(append(header{kind: typeData, id: 7, length: 700}.append(nil), make([]byte, 712)...), uint8(99), false)
	f.Fuzz(func(t *testing.T, frames []byte, piece uint8, reading bool) {
		w, st := offline(t, &pieces{rest: frames, n: 1 + 3*int(piece)}, Options{MemoryCeiling: 64 << 10})
		table := w.s.table
		want := sentOn(frames, st.id)
		var got []byte
		read := func() {
			var b [700]byte
			for table.open() > 0 && st.ended() == nil {
				n, _, _ := st.recv.read(b[:], 0)
				if got = append(got, b[:n]...); n == 0 {
					return
				}
			}
		}
		p := make([]byte, 4096)
		for {
			n, err := w.Read(p)
			if n%headerLen != 0 || err == nil && n == 0 {
				t.Fatalf("%d bytes and %v went to yamux", n, err)
			}
			for b := p[:n]; len(b) > 0; b = b[headerLen:] {
				if h := decodeHeader(b); h.length != 0 || h.flags == 0 || h.kind > typeWindow || h.version != 0 {
					t.Fatalf("%+v went to yamux", h)
				}
			}
			if reading {
				read()
			}
			if err != nil {
				break
			}
		}
		read()
		if !bytes.HasPrefix(want, got) {
			t.Errorf("read what was not sent")
		}
		var held int64
		table.mu.Lock()
		for _, st := range table.streams {
			chunks := int64(0)
			for c := st.recv.head; c != nil; c = c.next {
				chunks += int64(len(c.buf))
				if c.r > c.w || c.w > len(c.buf) || c.next == nil && c != st.recv.tail {
					t.Fatalf("a chunk is %d, %d of %d", c.r, c.w, len(c.buf))
				}
			}
			if chunks != int64(st.recv.held) || st.life.released && chunks > 0 {
				t.Errorf("a stream holds %d bytes and counts %d", chunks, st.recv.held)
			}
			held += chunks
		}
		table.mu.Unlock()
		if counted := table.mem.held.Load(); counted != held || held > 64<<10+largeChunk {
			t.Errorf("%d bytes are held, %d counted", held, counted)
		}
		if open := table.open(); open < 0 || open > w.s.opt.MaxIncoming+1 {
			t.Fatalf("open = %d", open)
		}
	})
}

// sentOn returns the bodies of the data frames for one stream in a well-formed
// beginning of frames.
func sentOn(frames []byte, id uint32) (sent []byte) {
	for len(frames) >= headerLen {
		h := decodeHeader(frames)
		frames = frames[headerLen:]
		if h.kind != typeData {
			continue
		}
		n := min(int(h.length), len(frames))
		if h.id == id {
			sent = append(sent, frames[:n]...)
		}
		frames = frames[n:]
	}
	return sent
}

func TestABodyThatIsCutOffIsNoEnd(t *testing.T) {
	frame := append(header{kind: typeData, flags: flagFIN, id: 2, length: 100}.append(nil), make([]byte, 60)...)
	w, st := offline(t, iotest.OneByteReader(bytes.NewReader(frame)), Options{})
	if n, err := w.Read(make([]byte, 4096)); n != 0 || !errors.Is(err, io.EOF) {
		t.Fatalf("yamux got %d bytes and %v", n, err)
	}
	if st.recv.whole() {
		t.Error("a stream whose last frame was cut counts as whole")
	}
}
