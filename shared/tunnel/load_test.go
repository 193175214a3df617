package tunnel

import (
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// endless is a stream that takes and gives whatever is asked of it.
type endless struct{ Stream }

func (endless) Read(p []byte) (int, error)  { return len(p), nil }
func (endless) Write(p []byte) (int, error) { return len(p), nil }
func (endless) Close() error                { return nil }

var _ net.Conn = endless{}

func move(t *testing.T, f func([]byte) (int, error), n int) {
	t.Helper()
	for block := make([]byte, 16<<10); n > 0; {
		m, err := f(block[:min(n, len(block))])
		if err != nil {
			t.Fatal(err)
		}
		n -= m
	}
}

func TestAStreamThatMovesMuchOneWayIsBulk(t *testing.T) {
	for name, way := range map[string]func(*Tracked) func([]byte) (int, error){
		"download": func(s *Tracked) func([]byte) (int, error) { return s.Read },
		"upload":   func(s *Tracked) func([]byte) (int, error) { return s.Write },
	} {
		t.Run(name, func(t *testing.T) {
			began := 0
			l := NewLoad(func() { began++ })
			s := l.Track(endless{})
			move(t, way(s), BulkBytes-1)
			if n := l.Bulk(); n != 0 || began != 0 {
				t.Errorf("%d streams are bulk before %d bytes", n, BulkBytes)
			}
			move(t, way(s), 10*BulkBytes)
			if n := l.Bulk(); n != 1 || began != 1 {
				t.Errorf("%d streams are bulk, told %d times; want one, once", n, began)
			}
			s.Rest()
			if n := l.Bulk(); n != 0 {
				t.Errorf("%d streams are bulk after the exchange", n)
			}
			move(t, way(s), BulkBytes)
			if n := l.Bulk(); n != 1 || began != 2 {
				t.Errorf("%d streams are bulk in the next exchange, told %d times", n, began)
			}
			_ = s.Close()
			_ = s.Close()
			move(t, way(s), BulkBytes)
			if n := l.Bulk(); n != 0 {
				t.Errorf("%d streams are bulk after the stream's end", n)
			}
		})
	}
}

func TestSmallExchangesNeverAddUpToBulk(t *testing.T) {
	l := NewLoad(nil)
	s := l.Track(endless{})
	for range 10_000 {
		move(t, s.Write, 300)
		move(t, s.Read, 32<<10)
	}
	if l.Bulk() != 0 {
		t.Error("exchanges of 300 B and 32 KiB are bulk")
	}
}

func TestWindowUpdatesDoNotHideBulk(t *testing.T) {
	l := NewLoad(nil)
	s := l.Track(endless{})
	for range 100 {
		move(t, s.Read, 16<<10)
		move(t, s.Write, 26)
	}
	if l.Bulk() != 1 {
		t.Error("a download over HTTP/2 is no bulk")
	}
	// The next request on the same stream ends it.
	for range 4 {
		move(t, s.Write, 300)
		move(t, s.Read, 300)
	}
	if l.Bulk() != 0 {
		t.Error("small exchanges after a download are bulk")
	}
}

func TestBulkThatStallsIsNoneForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLoad(nil)
		s := l.Track(endless{})
		move(t, s.Read, BulkBytes)
		time.Sleep(BulkRest)
		if l.Bulk() != 1 || l.BulkWithin(time.Second) != 0 {
			t.Errorf("after %v: %d bulk, %d in the last second", BulkRest, l.Bulk(), l.BulkWithin(time.Second))
		}
		time.Sleep(time.Nanosecond)
		if l.Bulk() != 0 {
			t.Error("bulk that stalled counts for ever")
		}
		move(t, s.Read, 1)
		if l.Bulk() != 1 {
			t.Error("bulk that goes on does not count")
		}
	})
}

func TestTheCountComesBackToZero(t *testing.T) {
	l := NewLoad(nil)
	var running sync.WaitGroup
	for range 8 {
		running.Go(func() {
			for range 200 {
				s := l.Track(endless{})
				var both sync.WaitGroup
				both.Go(func() { move(t, s.Read, 2*BulkBytes) })
				both.Go(func() { move(t, s.Write, 100); s.Rest(); _ = s.Close() })
				both.Wait()
			}
		})
	}
	running.Wait()
	if n := l.bulk.Load(); n != 0 {
		t.Errorf("%d streams count as bulk and none is open", n)
	}
}
