package upstream_test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"wormhole/edge/upstream"
	"wormhole/edge/upstream/upstreamtest"
)

// taker is a client whose kernel accepts everything, whoever takes it.
type taker struct {
	bytes       atomic.Uint64
	owed        atomic.Bool
	interrupted atomic.Bool // a write
}

func (k *taker) InterruptRead()        {}
func (k *taker) InterruptWrite()       { k.interrupted.Store(true) }
func (k *taker) Taken() (uint64, bool) { return k.bytes.Load(), k.owed.Load() }

// drip sends the head of an answer and a chunk each time every passes; 0 is never.
func drip(every time.Duration) func(net.Conn) {
	return func(c net.Conn) {
		_, _ = c.Read(make([]byte, 4<<10))
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
		if every == 0 {
			_, _ = io.Copy(io.Discard, c)
			return
		}
		for {
			time.Sleep(every)
			if _, err := io.WriteString(c, "1\r\nx\r\n"); err != nil {
				return
			}
		}
	}
}

// deliver takes what comes at once, and returns after how long and why it ended.
func deliver(t *testing.T, every, limit time.Duration, client upstream.Client) (time.Duration, error) {
	t.Helper()
	p := newPool(t, upstreamtest.New(t, drip(every)), upstream.Config{})
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	r := get("/")
	r.Client, r.Timeouts = client, upstream.Timeouts{Client: 300 * time.Millisecond}
	x, err := p.Do(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	began := time.Now()
	for {
		if _, err := x.Next(ctx); err != nil {
			return time.Since(began), err
		}
	}
}

func TestAClientThatTakesNothingIsStalledWhoeverIsWaitedFor(t *testing.T) {
	for name, every := range map[string]time.Duration{"pieces come": 10 * time.Millisecond, "the app is silent": 0} {
		t.Run(name, func(t *testing.T) {
			k := new(taker)
			k.owed.Store(true)
			took, err := deliver(t, every, 10*time.Second, k)
			var failure *upstream.Error
			if !errors.As(err, &failure) || failure.Cause != upstream.ClientStalled {
				t.Fatalf("got %v, want that the client stalled", err)
			}
			if took < 300*time.Millisecond {
				t.Errorf("given up after %s, before its 300 ms", took)
			}
			if !k.interrupted.Load() {
				t.Error("a write to it would still block")
			}
		})
	}
}

func TestAClientThatTakesOrIsOwedNothingIsNotStalled(t *testing.T) {
	slow := new(taker)
	slow.owed.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	fed := make(chan struct{})
	go func() {
		defer close(fed)
		for ctx.Err() == nil {
			time.Sleep(50 * time.Millisecond)
			slow.bytes.Add(1)
		}
	}()
	for name, c := range map[string]struct {
		client *taker
		every  time.Duration
	}{
		"takes a little":             {slow, 10 * time.Millisecond},
		"has taken all":              {new(taker), 10 * time.Millisecond},
		"has taken all, app silent":  {new(taker), 0},
		"takes a little, app silent": {slow, 0},
	} {
		took, err := deliver(t, c.every, time.Second, c.client)
		var failure *upstream.Error
		if !errors.As(err, &failure) || failure.Cause != upstream.Canceled {
			t.Errorf("%s: %v after %s, want that it goes on", name, err, took)
		}
	}
	cancel()
	<-fed
}
