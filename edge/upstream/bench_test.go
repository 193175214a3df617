package upstream

import (
	"context"
	"testing"
	"time"

	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
)

// BenchmarkKeptStream takes a kept stream from the pool and gives it back. It
// allocates nothing, however many requests do so at once.
func BenchmarkKeptStream(b *testing.B) {
	b.ReportAllocs()
	p := New(still{}, Config{Tick: time.Hour})
	b.Cleanup(func() { _ = p.Close() })
	b.RunParallel(func(pb *testing.PB) {
		r := &Request{Method: "GET"}
		for pb.Next() {
			c, err := p.acquire(context.Background(), r)
			if err != nil {
				b.Error(err)
				return
			}
			c.head.keepAlive = -1 // the app promised nothing
			p.put(c)
		}
	})
}

// TestKeptStreamsAndHeadsAllocateNothing is the promise of the benchmarks here,
// held where benchmarks do not run.
func TestKeptStreamsAndHeadsAllocateNothing(t *testing.T) {
	p := New(still{}, Config{Tick: time.Hour})
	t.Cleanup(func() { _ = p.Close() })
	r := &Request{Method: "GET"}
	if n := testing.AllocsPerRun(1000, func() {
		c, err := p.acquire(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		c.head.keepAlive = -1
		p.put(c)
	}); n != 0 {
		t.Errorf("a kept stream allocates %v times a request, want 0", n)
	}
	if active, idle := p.Stats(); active != 0 || idle != 1 {
		t.Errorf("%d active and %d idle streams, want the one that was kept", active, idle)
	}
	h := head{fields: make([]Field, 0, 16)}
	if n := testing.AllocsPerRun(1000, func() {
		if err := parseHead(usualHead, &h); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("a head allocates %v times, want 0", n)
	}
	if h.status != 200 || h.length != 300 || len(h.fields) != 5 {
		t.Errorf("parsed %+v", h)
	}
}

// usualHead is the head of a usual answer.
const usualHead = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 300\r\n" +
	"Date: Sat, 01 Jan 2000 00:00:00 GMT\r\nCache-Control: no-store\r\nEtag: \"x\"\r\n\r\n"

// BenchmarkParseHead reads the head of a usual answer into fields used before. It
// allocates nothing.
func BenchmarkParseHead(b *testing.B) {
	b.ReportAllocs()
	h := head{fields: make([]Field, 0, 16)}
	for b.Loop() {
		h = head{fields: h.fields[:0]}
		if err := parseHead(usualHead, &h); err != nil {
			b.Fatal(err)
		}
	}
}

// still opens streams on which nothing happens.
type still struct{}

func (still) OpenStream(context.Context, protocol.StreamHeader) (Stream, error) {
	return stillStream{}, nil
}

type stillStream struct{ tunnel.Stream }

func (stillStream) Quiet() bool                              { return true }
func (stillStream) Abort()                                   {}
func (stillStream) Close() error                             { return nil }
func (stillStream) CloseWrite() error                        { return nil }
func (stillStream) SetDeadline(time.Time) error              { return nil }
func (stillStream) SetReadDeadline(time.Time) error          { return nil }
func (stillStream) SetWriteDeadline(time.Time) error         { return nil }
func (stillStream) Delivered(context.Context) (uint64, bool) { return 0, false }
