package forward

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
)

// join copies between one stream and one connection of the app.
//
// How ends pass: the app's FIN becomes CloseWrite, its reset an Abort; the edge's
// CloseWrite becomes a FIN, its abort closes the app's connection, with a reset
// where the bytes themselves cannot show that some are missing.
type join struct {
	kind   protocol.Kind
	stream tunnel.Stream
	app    appConn
	pools  *pools
	totals *totals
	ended  func(protocol.StreamEnd)

	gone atomic.Bool   // the edge's side died; what the app does no longer matters
	fin  atomic.Bool   // the app ended its side properly
	over chan struct{} // closed when the edge's side has ended

	mu        sync.Mutex // held while writing to the app; guards what follows
	delivered uint64     // bytes handed to the app's connection
	frozen    bool       // nothing more is handed to the app
}

// run returns when both directions have ended and both connections are closed.
func (j *join) run() {
	done := make(chan struct{})
	go func() { // ends when the app's side ends, or when toApp has closed it
		defer close(done)
		j.fromApp()
	}()
	ended := j.toApp()
	close(j.over)
	<-done
	if ended && j.fin.Load() {
		resetOnClose(j.app, false)
	}
	_ = j.app.Close()
}

// fromApp copies from the app to the edge.
func (j *join) fromApp() {
	buf := buffer{pools: j.pools}
	defer buf.free()
	sent := false
	for {
		n, err := j.app.Read(buf.space())
		if n > 0 {
			if _, werr := j.stream.Write(buf.space()[:n]); werr != nil {
				j.gone.Store(true)
				j.stream.Abort() // toApp may still be waiting in Read
				j.closeApp()
				return
			}
			buf.filled(n)
			j.totals.fromApp.Add(uint64(n))
			sent = true
		}
		if err != nil {
			j.appEnded(err, sent)
			return
		}
	}
}

// lastWords is how long an answer has to reach the edge when the app has reset its
// connection behind it.
const lastWords = 250 * time.Millisecond

// appEnded reports the end of the app's side and passes it on. sent says that
// bytes of the app went before it.
func (j *join) appEnded(err error, sent bool) {
	if j.gone.Load() {
		return // toApp closed the connection because the edge's side ended first
	}
	clean := errors.Is(err, io.EOF)
	j.fin.Store(clean)
	var delivered uint64
	if j.kind == protocol.KindHTTP || !clean {
		// An app that ended an HTTP connection takes no further request from it. What
		// comes from now on must not count as delivered, although the kernel would
		// take it: the edge relies on the count to know that a request never arrived.
		delivered = j.freeze()
	} else {
		j.mu.Lock()
		delivered = j.delivered
		j.mu.Unlock()
	}
	j.ended(protocol.StreamEnd{Stream: j.stream.ID(), Delivered: delivered, Clean: clean})
	if clean {
		_ = j.stream.CloseWrite()
		return
	}
	if sent && j.kind == protocol.KindHTTP {
		// A server that answers before it has read all of a request, and closes, resets
		// the connection (RFC 9112, section 9.6). The abort would overtake its answer.
		// An edge that has got a whole answer closes the stream by itself.
		timer := time.NewTimer(lastWords)
		defer timer.Stop()
		select {
		case <-j.over:
		case <-timer.C:
		}
	}
	j.stream.Abort()
}

// freeze ends the handing over of bytes to the app and returns how many there were.
func (j *join) freeze() uint64 {
	// Interrupts a write that hangs because the app no longer reads.
	_ = j.app.SetWriteDeadline(time.Unix(1, 0))
	j.mu.Lock()
	defer j.mu.Unlock()
	j.frozen = true
	return j.delivered
}

// toApp copies from the edge to the app, and reports whether the edge ended its side
// properly. After the app has ended it goes on reading, so that the edge is not held
// up, until the edge ends too; but raw bytes that the app does not take any more are
// answered with an abort, as its own socket would.
func (j *join) toApp() (ended bool) {
	buf := buffer{pools: j.pools}
	defer buf.free()
	for {
		n, err := j.stream.Read(buf.space())
		if n > 0 {
			taken := j.deliver(buf.space()[:n])
			buf.filled(n)
			if !taken && j.kind != protocol.KindHTTP && j.fin.Load() {
				j.stream.Abort()
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			_ = j.app.CloseWrite()
			return true
		default:
			j.gone.Store(true)
			j.closeApp()
			return false
		}
	}
}

// deliver hands p to the app. If the app refuses it, only the app's own end, seen
// by fromApp, says how the connection ended: there may be an answer to read yet. It
// reports whether the app took p.
func (j *join) deliver(p []byte) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.frozen {
		return false
	}
	n, err := j.app.Write(p)
	j.delivered += uint64(n)
	j.totals.toApp.Add(uint64(n))
	if err != nil {
		j.frozen = true
	}
	return err == nil
}

// closeApp ends the app's connection after the edge's side died. HTTP proves by
// itself that a message is cut short, and the usual case is a kept connection that
// is no longer needed; in other kinds only a reset tells the app.
func (j *join) closeApp() {
	if j.kind == protocol.KindHTTP {
		_ = j.app.Close()
		return
	}
	reset(j.app)
}
