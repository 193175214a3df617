package upstream

import (
	"errors"
	"io"
	"sync/atomic"
	"time"
)

// upload sends a request's body while the answer is read. Its goroutine is started
// by Pool.Do and waited for by Response.Close. The methods of a nil upload say that
// there is nothing to send.
type upload struct {
	c     *conn
	r     *Request
	times Timeouts

	done chan struct{}
	quit chan struct{} // closed by cancel
	wake chan struct{} // 100 Continue came
	head atomic.Bool   // the final head came
	from atomic.Int32  // how far the client's body was read: see below

	// Valid once done is closed: how it ended, and whether by the client's fault.
	err    error
	client bool
}

// How far the client's body was read. Each is set before what was read is written, as
// the app may answer before that write has returned.
const (
	bodyPart  int32 = iota
	bodyWhole       // all its bytes
	bodyEnded       // and its end: the client's connection is done with it
)

// lastPiece is how long the end of a body, which was read whole, may take to be
// written when the answer has been delivered already.
const lastPiece = 250 * time.Millisecond

var (
	errBodyLength = errors.New("request body does not have the announced length")
	errNotWanted  = errors.New("answered without the body")
)

func startUpload(x *Response) *upload {
	u := &upload{c: x.c, r: x.req, times: x.times, done: make(chan struct{}), quit: make(chan struct{}), wake: make(chan struct{}, 1)}
	go u.run()
	return u
}

func (u *upload) run() {
	if u.r.Expect && !u.awaitContinue() {
		u.err = errNotWanted
	} else {
		u.err = u.copy()
	}
	// done comes first, so that whoever sees the abort can ask why.
	client := u.client
	close(u.done)
	if client {
		u.c.abort()
	}
}

// awaitContinue waits until the app wants the body, or has had time to say so.
func (u *upload) awaitContinue() bool {
	t := time.NewTimer(expectWait)
	defer t.Stop()
	select {
	case <-u.wake:
	case <-t.C:
	case <-u.quit:
		return false
	}
	return true
}

// copy sends the body. Each piece is one write, its chunk framing included.
func (u *upload) copy() error {
	const before, after = 18, 2 // a size line and the CRLF that follows the data
	r, c := u.r, u.c
	buf := c.pool.buffers.borrowLarge()
	defer c.pool.buffers.giveBack(buf)
	data := (*buf)[before : len(*buf)-after]
	var total int64
	for {
		u.expect(clientSends, u.times.Client)
		n, err := r.Stream.Read(data)
		if n > 0 {
			total += int64(n)
			if !r.chunked() && total > r.Length {
				u.client = true
				return errBodyLength
			}
			switch {
			case errors.Is(err, io.EOF):
				u.from.Store(bodyEnded)
			case total == r.Length:
				u.from.Store(bodyWhole)
			}
			u.expect(appTurn, u.times.Header)
			if werr := c.write(piece(*buf, before, n, r.chunked())); werr != nil {
				return werr
			}
		}
		if err != nil && !errors.Is(err, io.EOF) {
			u.client = true
			return err
		}
		if err != nil {
			u.from.Store(bodyEnded)
			break
		}
	}
	if !r.chunked() {
		if total != r.Length {
			u.client = true
			return errBodyLength
		}
	} else {
		end, err := appendTrailer(append((*buf)[:0], "0\r\n"...), r.Trailer)
		if err != nil {
			u.client = true
			return err
		}
		if err := c.write(end); err != nil {
			return err
		}
	}
	u.expect(appTurn, u.times.Header)
	return nil
}

// piece frames the n bytes that stand in buf behind the first before.
func piece(buf []byte, before, n int, chunked bool) []byte {
	if !chunked {
		return buf[before : before+n]
	}
	const hex = "0123456789abcdef"
	start := before - 2
	copy(buf[start:], "\r\n")
	for size := n; size > 0; size >>= 4 {
		start--
		buf[start] = hex[size&15]
	}
	end := before + n
	copy(buf[end:], "\r\n")
	return buf[start : end+2]
}

// expect moves the exchange's deadline. Once the answer flows, its own pace decides
// unless the upload allows more.
func (u *upload) expect(t turn, d time.Duration) {
	if u.head.Load() {
		d = max(d, u.times.Silence)
	}
	u.c.expect(t, d)
}

// proceed lets a client that waits for 100 Continue send.
func (u *upload) proceed() {
	if u == nil {
		return
	}
	select {
	case u.wake <- struct{}{}:
	default:
	}
}

// running reports whether the body is still being sent.
func (u *upload) running() bool {
	if u == nil {
		return false
	}
	select {
	case <-u.done:
		return false
	default:
		return true
	}
}

// answered notes that the final head has come and reports whether that was before
// the body was read whole. An answer to the whole body often overtakes the end of the
// write that completed it.
func (u *upload) answered() bool {
	if u == nil {
		return false
	}
	u.head.Store(true)
	return u.running() && u.from.Load() == bodyPart
}

// cancel ends an upload that the answer has made pointless, and what it waits for.
// It is called once, and only while the upload may still be running.
func (u *upload) cancel() {
	if u.from.Load() != bodyPart {
		t := time.NewTimer(lastPiece)
		defer t.Stop()
		select {
		case <-u.done:
			return
		case <-t.C:
		}
	}
	u.c.abort()
	close(u.quit)
	if u.from.Load() != bodyEnded {
		// A client whose body was read to its end has no read of ours to interrupt, but
		// perhaps its next request on the way.
		u.c.watch.interrupt(false)
	}
}

// wait waits for the end and reports whether the whole body was sent.
func (u *upload) wait() bool {
	if u == nil {
		return true
	}
	<-u.done
	return u.err == nil
}

// clientError is why the body could not be read, if that ended the upload.
func (u *upload) clientError() error {
	if u == nil {
		return nil
	}
	select {
	case <-u.done:
		if u.client {
			return u.err
		}
	default:
	}
	return nil
}
