// Package pipe joins two connections: what comes out of one goes into the other,
// in both directions, and so does the way it ends.
package pipe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Errors in Result.Err, for errors.Is. Besides them it holds what a Read or Write
// returned, or the cause of the context's end.
var (
	// ErrIdle means that nothing moved in either direction for the idle time.
	ErrIdle = errors.New("connection idle for too long")
	// ErrNoHalfClose means that one side ended and the other cannot be told so
	// without cutting what it still sends.
	ErrNoHalfClose = errors.New("connection cannot be closed in one direction")
)

// Conn is one side of a Join: any net.Conn. Two optional methods matter:
// CloseWrite() error passes an END on, and Abort() passes an abort on. Without
// Abort, a TCP connection (also one under TLS) is reset and any other closed.
type Conn interface {
	io.ReadWriteCloser
}

// Result says how a Join went.
type Result struct {
	// AToB and BToA count the bytes that were read from one side and taken by the other.
	AToB, BToA int64
	// AEnded and BEnded say whether that side ended properly (io.EOF).
	AEnded, BEnded bool
	// Err is nil if both directions ended properly. Otherwise it is what came
	// first, and both sides were aborted.
	Err error
}

// Join copies between a and b until both directions have ended, then closes both.
// An io.EOF on one side becomes a CloseWrite on the other; anything else that ends
// a side aborts both, as do the end of ctx and idle without a byte in either
// direction (0 means no limit; it is noticed up to a quarter late).
//
// Join owns a and b from the call on. It starts one goroutine and waits for it.
func Join(ctx context.Context, a, b Conn, idle time.Duration) Result {
	return JoinCounted(ctx, a, b, idle, nil)
}

// JoinCounted is Join that tells count of bytes as they pass, from both directions at
// once, for those who cannot wait for the Result. Nil is nobody.
func JoinCounted(ctx context.Context, a, b Conn, idle time.Duration, count func(aToB, bToA int)) Result {
	j := &join{a: a, b: b, count: count}
	if ctx.Done() != nil {
		stop := context.AfterFunc(ctx, func() { j.fail(context.Cause(ctx)) })
		defer stop()
	}
	if idle > 0 {
		j.mu.Lock()
		j.watch = time.AfterFunc(idle/idleTicks, func() { j.tick(idle / idleTicks) })
		j.mu.Unlock()
		defer j.watch.Stop()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		j.copy(b, a, &j.toB, &j.aEnded, "a to b")
	}()
	j.copy(a, b, &j.toA, &j.bEnded, "b to a")
	<-done

	j.mu.Lock()
	err := j.err
	j.finished = true
	j.mu.Unlock()
	if err == nil {
		a.Close()
		b.Close()
	}
	return Result{
		AToB: j.toB.Load(), BToA: j.toA.Load(),
		AEnded: j.aEnded, BEnded: j.bEnded,
		Err: err,
	}
}

// idleTicks is how often within the idle time progress is looked for.
const idleTicks = 4

// join is the state that the two directions of one Join share.
type join struct {
	a, b           Conn
	count          func(aToB, bToA int) // or nil
	toA, toB       atomic.Int64
	aEnded, bEnded bool // each written by one direction, read after both

	mu       sync.Mutex // guards what follows
	watch    *time.Timer
	err      error
	finished bool
	seen     int64 // progress at the last tick
	still    int   // ticks without progress
}

// fail notes the first reason and aborts both sides, which ends both directions.
func (j *join) fail(err error) {
	j.mu.Lock()
	first := j.err == nil && !j.finished
	if first {
		j.err = err
	}
	j.mu.Unlock()
	if first {
		abort(j.a)
		abort(j.b)
	}
}

// tick looks for progress and comes again.
func (j *join) tick(every time.Duration) {
	progress := j.toA.Load() + j.toB.Load()
	j.mu.Lock()
	if progress != j.seen {
		j.seen, j.still = progress, 0
	} else {
		j.still++
	}
	idle, over := j.still >= idleTicks, j.finished || j.err != nil
	if !idle && !over {
		j.watch.Reset(every)
	}
	j.mu.Unlock()
	if idle && !over {
		j.fail(ErrIdle)
	}
}

// copy moves one direction until its source ends.
func (j *join) copy(dst, src Conn, moved *atomic.Int64, ended *bool, direction string) {
	buf := small.Get().(*[]byte)
	defer func() { pool(buf).Put(buf) }()
	for {
		n, err := src.Read(*buf)
		if n > 0 {
			m, werr := dst.Write((*buf)[:n])
			moved.Add(int64(m))
			switch {
			case j.count == nil:
			case moved == &j.toB:
				j.count(m, 0)
			default:
				j.count(0, m)
			}
			if werr != nil {
				j.fail(fmt.Errorf("write %s: %w", direction, werr))
				return
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				j.fail(fmt.Errorf("read %s: %w", direction, err))
				return
			}
			*ended = true
			if err := closeWrite(dst); err != nil {
				j.fail(fmt.Errorf("end %s: %w", direction, err))
			}
			return
		}
		buf = resize(buf, n)
	}
}

// closeWrite passes an END on.
func closeWrite(c Conn) error {
	half, ok := c.(interface{ CloseWrite() error })
	if !ok {
		return ErrNoHalfClose
	}
	return half.CloseWrite()
}

// abort ends c so that its peer cannot take it for a proper end.
func abort(c Conn) {
	if a, ok := c.(interface{ Abort() }); ok {
		a.Abort()
		c.Close()
		return
	}
	raw, _ := c.(net.Conn)
	for raw != nil {
		if tcp, ok := raw.(interface{ SetLinger(sec int) error }); ok {
			// Close then sends RST instead of FIN, and drops what is unsent.
			_ = tcp.SetLinger(0)
			raw.Close() // before any layer above can say goodbye or block on it
			break
		}
		inner, ok := raw.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		raw = inner.NetConn()
	}
	c.Close()
}
