package upstream

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"
)

const (
	max1xx       = 16          // interim answers before the final one
	expectWait   = time.Second // for 100 Continue, before the body is sent anyway
	defaultProof = time.Second // see Request.Proof
)

// bodyKind is how the end of an answer's body is known.
type bodyKind uint8

const (
	bodyNone bodyKind = iota
	bodyLength
	bodyChunked
	bodyToEnd // until the app closes
	bodyHTTP2
)

// Response is the app's answer. It belongs to one goroutine. Close must be called;
// after it, the fields' strings stay valid but not the slices.
type Response struct {
	Status int
	// Fields are the end-to-end header fields in the app's order, names in canonical
	// form. Content-Length is among them as the app sent it.
	Fields []Field
	// Length is the length of the body in bytes, -1 if it is not known.
	Length int64
	// Upgraded says that the app switched protocols: the stream is the caller's to
	// use until Close, see Hijack.
	Upgraded bool
	// Early says that the answer came before the request's body was read whole.
	Early bool

	pool   *Pool
	c      *conn
	req    *Request
	times  Timeouts
	base   uint64 // c.written before this exchange
	kept   bool
	began  bool // a byte of an answer came
	failed bool // writing the request failed
	stop   func() bool
	upload *upload

	kind   bodyKind
	left   int64
	chunks chunks
	done   bool  // the body has been handed out to its end
	err    error // what Next returns from now on
	http2  *http2Answer
}

// Do sends the request and returns the app's answer as soon as its head has come.
// Errors are of type *Error. When ctx ends, the exchange is aborted.
func (p *Pool) Do(ctx context.Context, r *Request) (*Response, error) {
	if r.H2C && r.Upgrade == "" {
		return p.doHTTP2(ctx, r)
	}
	out := p.buffers.borrowSmall()
	defer p.buffers.giveBack(out)
	text, err := r.appendHead((*out)[:0])
	if err != nil {
		return nil, &Error{Stage: NotSent, Cause: BadRequest, Err: err}
	}
	c, err := p.acquire(ctx, r)
	if err != nil {
		return nil, openError(ctx, err)
	}
	if !p.begin() {
		p.retire(c) // it carries nothing
		return nil, draining()
	}
	x := &Response{
		pool: p, c: c, req: r, times: r.Timeouts.withDefaults(),
		base: c.written, kept: c.exchanges > 0,
	}
	c.exchanges++
	c.watch.begin(r.Client)
	c.expect(appTurn, x.times.Header)
	x.stop = context.AfterFunc(ctx, c.abort)
	x.send(text)
	p.sent()
	if err := x.receive(); err != nil {
		failure := x.failure(ctx, err)
		x.Close()
		return nil, failure
	}
	return x, nil
}

// openError is the error of an exchange that got no stream.
func openError(ctx context.Context, err error) *Error {
	if ctx.Err() != nil {
		return &Error{Stage: NotSent, Cause: Canceled, Err: ctx.Err()}
	}
	return &Error{Stage: NotSent, Cause: Unreachable, Err: err}
}

// send writes the request. A body in memory that fits goes out with the head, in one
// write. A failure is not reported here: the app may have answered before it closed,
// and if not, reading will tell.
func (x *Response) send(text []byte) {
	r, c := x.req, x.c
	if n := len(r.Body); n > 0 && len(text)+n <= cap(text) {
		text = append(text, r.Body...)
		x.failed = c.write(text) != nil
		return
	}
	x.failed = c.write(text) != nil
	switch {
	case x.failed:
	case len(r.Body) > 0:
		x.failed = c.write(r.Body) != nil
	case r.streams():
		x.upload = startUpload(x)
	}
}

// receive reads heads until the final one.
func (x *Response) receive() error {
	c := x.c
	for range max1xx {
		text, err := x.readHead()
		if err != nil {
			return err
		}
		if err := parseHead(text, &c.head); err != nil {
			return err
		}
		h := &c.head
		switch {
		case h.status == http.StatusContinue:
			x.upload.proceed()
		case h.status == http.StatusSwitchingProtocols:
			if x.req.Upgrade == "" || !strings.EqualFold(h.upgrade, x.req.Upgrade) {
				return errUnasked101
			}
			x.Upgraded = true
			x.settle()
			return nil
		case h.status < 200:
			if x.req.Interim != nil {
				x.req.Interim(h.status, h.fields)
			}
		default:
			x.settle()
			return nil
		}
	}
	return errTooMany1xx
}

// readHead returns the next head, empty line included.
func (x *Response) readHead() (string, error) {
	rd := &x.c.rd
	seen := 0
	for {
		b := rd.buffered()
		end, next := headEnd(b, seen)
		if end > MaxHead {
			return "", errTooLong
		}
		if end > 0 {
			rd.skip(end)
			return string(b[:end]), nil
		}
		seen = next
		if err := rd.fill(MaxHead); err != nil {
			return "", err
		}
		x.began = true
	}
}

// settle draws the conclusions of the final head.
func (x *Response) settle() {
	h := &x.c.head
	x.Status, x.Fields, x.Length = h.status, h.fields, h.length
	x.Early = x.upload.answered()
	switch {
	case x.Upgraded:
		x.Length = -1
	case x.req.Method == http.MethodHead, h.status == http.StatusNoContent, h.status == http.StatusNotModified:
		x.kind, x.done, x.Length = bodyNone, true, 0
	case h.chunked:
		x.kind = bodyChunked
	case h.length >= 0:
		x.kind, x.left, x.done = bodyLength, h.length, h.length == 0
	default:
		x.kind = bodyToEnd
	}
	if x.kind == bodyChunked {
		x.advance()
	}
}

// Keep sets how long the app and the client may be silent from now on, for answers
// that are quiet by nature.
func (x *Response) Keep(silence time.Duration) {
	x.times.Silence = silence
	x.times.Client = max(x.times.Client, silence)
}

// Next returns the next piece of the body; it is valid until the next call. At the
// proven end of the body the error is io.EOF. Any other error, of type *Error, says
// that the body is incomplete.
func (x *Response) Next(ctx context.Context) ([]byte, error) {
	if x.kind == bodyHTTP2 {
		return x.nextHTTP2(ctx)
	}
	for {
		if x.err != nil {
			return nil, x.failure(ctx, x.err)
		}
		if x.done {
			return nil, io.EOF
		}
		if b := x.take(); len(b) > 0 {
			x.c.handOut(x.times.Client)
			return b, nil
		}
		if x.done || x.err != nil {
			continue
		}
		x.refill()
	}
}

// Done reports whether the body has been handed out to its end, so that Next would
// return io.EOF.
func (x *Response) Done() bool { return x.done }

// Waiting reports whether Next would have to wait for the app: the moment to flush.
func (x *Response) Waiting() bool {
	if x.done || x.err != nil {
		return false
	}
	if x.kind == bodyHTTP2 {
		return true
	}
	if x.kind == bodyChunked { // what comes next may be framing alone
		return len(x.c.rd.buffered()) == 0 || x.chunks.state != chunkData
	}
	return !x.c.rd.ready()
}

// take hands out what is buffered of the body and moves on to what follows it.
func (x *Response) take() []byte {
	rd := &x.c.rd
	b := rd.buffered()
	switch x.kind {
	case bodyLength:
		if int64(len(b)) > x.left {
			b = b[:x.left]
		}
		rd.skip(len(b))
		x.left -= int64(len(b))
		x.done = x.left == 0
	case bodyChunked:
		if x.chunks.state != chunkData {
			return nil
		}
		if int64(len(b)) > x.chunks.left {
			b = b[:x.chunks.left]
		}
		rd.skip(len(b))
		x.chunks.took(len(b))
		x.advance()
	case bodyToEnd:
		rd.skip(len(b))
	}
	return b
}

// advance parses chunk framing as far as it is buffered.
func (x *Response) advance() {
	if err := x.chunks.step(&x.c.rd); err != nil && err != errMore { //nolint:errorlint // never wrapped
		x.err = err
		return
	}
	x.done = x.chunks.state == chunkDone
}

// refill reads once from the stream.
func (x *Response) refill() {
	x.c.expect(appTurn, x.times.Silence)
	err := x.more()
	switch {
	case err == nil:
		if x.kind == bodyChunked {
			x.advance()
		}
	case x.kind == bodyToEnd && errors.Is(err, io.EOF):
		x.done = true // the stream's END, which is proof (tunnel.Stream)
	default:
		x.err = err
	}
}

// more buffers more of the body, lent if that is worth it.
func (x *Response) more() error {
	rd := &x.c.rd
	if x.kind != bodyLength || x.left > smallBuffer {
		if rd.lender != nil && len(rd.buffered()) == 0 {
			if lent, err := rd.lend(); lent || err != nil {
				return err
			}
		}
		if rd.buf != nil && rd.w == len(*rd.buf) { // the app filled it: there is more
			rd.widen()
		}
	}
	return rd.fill(MaxHead)
}

// Trailers returns the trailers once Next has returned io.EOF.
func (x *Response) Trailers() []Field {
	if x.kind == bodyHTTP2 {
		return x.http2.trailers()
	}
	return x.chunks.trailers
}

// Hijack hands over the stream after Upgraded, with the bytes that have already been
// read from it. The stream stays the pool's to close: Close does that.
func (x *Response) Hijack() (Stream, []byte) {
	x.c.watch.end()
	return x.c.stream, x.c.rd.buffered()
}

// Close ends the exchange. If it was clean, the stream is kept for the next one;
// otherwise the app sees it aborted. It waits until the request's body is not read
// any more, and is idempotent.
func (x *Response) Close() {
	c := x.c
	if c == nil {
		return
	}
	x.c = nil
	if x.kind == bodyHTTP2 {
		x.closeHTTP2(c)
		return
	}
	clean := x.done && !x.failed && !x.Early && x.keepable(c)
	if x.upload.running() {
		x.upload.cancel()
	}
	sent := x.upload.wait()
	held := c.watch.end()
	if stopped := x.stop(); clean && sent && held && stopped {
		x.pool.put(c)
		return
	}
	if x.done && x.kind == bodyToEnd {
		_ = c.stream.CloseWrite() // both ways have ended: no reset
	}
	x.pool.drop(c)
}

// keepable reports whether the answer allows the stream to be used again.
func (x *Response) keepable(c *conn) bool {
	h := &c.head
	if x.kind == bodyToEnd || x.Upgraded || h.minor == 0 || h.closes || !x.req.reusable() {
		return false
	}
	if h.status == http.StatusNoContent && (h.chunked || h.length > 0) {
		return false // no body by the status, one by the framing
	}
	return len(c.rd.buffered()) == 0 // bytes that nobody asked for
}

// failure is the *Error for what ended the exchange.
func (x *Response) failure(ctx context.Context, err error) *Error {
	c := x.c
	e := &Error{Stage: Sent, Cause: Closed, Kept: x.kept, Err: err}
	if x.began {
		e.Stage = Answered
	}
	var bad malformed
	switch {
	// Before ctx: the server ends it too when a read that we interrupted fails.
	case c.watch.stalled():
		e.Cause = ClientStalled
	case ctx.Err() != nil:
		e.Cause, e.Err = Canceled, context.Cause(ctx)
	case c.watch.expired():
		e.Cause = Timeout
	case x.upload.clientError() != nil:
		e.Cause, e.Err = ClientBody, x.upload.clientError()
	case errors.As(err, &bad):
		e.Cause = Malformed
	default:
		if errors.Is(err, io.EOF) {
			e.Err = io.ErrUnexpectedEOF
		}
		if e.Stage == Sent && x.undelivered(ctx) {
			e.Stage = NotSent
		}
	}
	return e
}

// undelivered asks the agent whether the app saw any byte of this request.
func (x *Response) undelivered(ctx context.Context) bool {
	proof := x.req.Proof
	if proof <= 0 {
		proof = defaultProof
	}
	ctx, cancel := context.WithTimeout(ctx, proof)
	defer cancel()
	n, ok := x.c.stream.Delivered(ctx)
	return ok && n <= x.base
}
