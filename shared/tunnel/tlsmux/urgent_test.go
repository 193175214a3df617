package tlsmux

import (
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// turnstile lets one write through for each value that is sent to it.
type turnstile struct {
	open chan struct{}

	mu  sync.Mutex // guards out
	out []byte
}

func (w *turnstile) Write(p []byte) (int, error) {
	<-w.open
	w.mu.Lock()
	defer w.mu.Unlock()
	w.out = append(w.out, p...)
	return len(p), nil
}

// A beat that waits its turn behind a thousand answers comes too late on a busy
// machine.
func TestTheControlConversationDoesNotWaitBehindBulk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &turnstile{open: make(chan struct{})}
		began := time.Now()
		var heard atomic.Int64
		o := newOutbox(w, func() int64 { return int64(time.Since(began)) + 1 }, &heard, nil)
		var running sync.WaitGroup
		o.start = func() { running.Go(func() { _, _ = o.run() }) }
		s := &session{out: o, table: newTable(Options{}, true)}

		const streams, each = 1000, 64 << 10
		for i := range streams {
			st := newStream(s, uint32(controlID+2+2*i))
			running.Go(func() {
				for sent := 0; sent < each; {
					n, err := o.send(st, make([]byte, each-sent))
					if err != nil {
						t.Error(err)
						return
					}
					sent += n
				}
			})
		}
		synctest.Wait() // all stand in line, and the peer takes nothing
		told := make(chan struct{})
		running.Go(func() {
			defer close(told)
			if n, err := o.send(newStream(s, controlID), make([]byte, 13)); n != 13 || err != nil {
				t.Errorf("%d bytes sent, %v", n, err)
			}
		})
		synctest.Wait()
		select {
		case <-told:
		default:
			t.Error("it waits")
		}
		close(w.open)
		<-told
		synctest.Wait()
		o.close()
		running.Wait()

		before := 0
		for b := w.out; ; {
			h := decodeHeader(b)
			if h.id == controlID {
				break
			}
			before += int(h.length)
			b = b[headerLen+int(h.length):]
		}
		if most := 2 * fastLimit; before > most {
			t.Errorf("%d bytes of %d go first, want %d at most", before, streams*each, most)
		}
	})
}

// Nor may it pile up where the peer reads nothing, whatever window it has granted.
func TestTheControlConversationIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &turnstile{open: make(chan struct{})}
		began := time.Now()
		var heard atomic.Int64
		o := newOutbox(w, func() int64 { return int64(time.Since(began)) + 1 }, &heard, nil)
		var running sync.WaitGroup
		o.start = func() { running.Go(func() { _, _ = o.run() }) }
		st := newStream(&session{out: o, table: newTable(Options{}, true)}, controlID)
		o.credit(st, 4<<20)
		st.send.deadline = time.Now().Add(time.Second)
		total := 0
		for {
			n, err := o.send(st, make([]byte, 1000))
			if total += n; err != nil {
				break
			}
		}
		if most := 2*fastLimit + 2*controlRoom; total > most {
			t.Errorf("%d bytes are queued, want %d at most", total, most)
		}
		close(w.open)
		o.close()
		running.Wait()
	})
}

// One that stood in line and passes it after all leaves its place.
func TestTheControlConversationHasOnePlace(t *testing.T) {
	now := int64(1)
	o := newOutbox(io.Discard, func() int64 { return now }, new(atomic.Int64), func() {})
	s := &session{out: o, table: newTable(Options{}, true)}
	control := newStream(s, controlID)
	control.send.queued, o.waiting = true, []*stream{control}
	if n, err := o.send(control, make([]byte, 13)); n != 13 || err != nil {
		t.Fatal(n, err)
	}
	if control.send.queued || len(o.waiting) > 0 || o.reserved > 0 {
		t.Errorf("queued %v, %d in line, %d bytes kept", control.send.queued, len(o.waiting), o.reserved)
	}
}
