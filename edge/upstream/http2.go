package upstream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"sync"
	"time"
)

// http2Answer is what a Response needs of an HTTP/2 exchange.
type http2Answer struct {
	resp *http.Response
	body *http2Body
	buf  *[]byte
}

// http2Transport returns the HTTP/2 client over streams of this tunnel. It speaks
// with prior knowledge; frames and flow control are the library's.
func (p *Pool) http2Transport() (*http.Transport, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, errPoolClosed
	}
	if p.http2 == nil {
		protocols := new(http.Protocols)
		protocols.SetUnencryptedHTTP2(true)
		p.http2 = &http.Transport{
			Protocols:              protocols,
			DialContext:            p.dialHTTP2,
			DisableCompression:     true,
			MaxResponseHeaderBytes: MaxHead,
			IdleConnTimeout:        maxKeepAlive,
			HTTP2: &http.HTTP2Config{
				SendPingTimeout:               15 * time.Second,
				PingTimeout:                   15 * time.Second,
				MaxReceiveBufferPerStream:     1 << 20,
				MaxReceiveBufferPerConnection: 4 << 20,
			},
		}
	}
	return p.http2, nil
}

// unopened marks the error of a stream that could not be opened.
type unopened struct{ error }

func (u unopened) Unwrap() error { return u.error }

func (p *Pool) dialHTTP2(ctx context.Context, _, _ string) (net.Conn, error) {
	c, err := p.open(ctx, &Request{Queue: true}, true)
	if err != nil {
		return nil, unopened{err}
	}
	return &http2Conn{Stream: c.stream, pool: p, conn: c}, nil
}

// http2Conn is a stream that leaves the pool when the HTTP/2 client closes it.
type http2Conn struct {
	Stream
	pool *Pool
	conn *conn
	once sync.Once
}

// Close ends the stream.
func (h *http2Conn) Close() error {
	h.once.Do(func() { h.pool.drop(h.conn) })
	return nil
}

// doHTTP2 is Do for an app that speaks HTTP/2.
func (p *Pool) doHTTP2(ctx context.Context, r *Request) (*Response, error) {
	if _, err := r.appendHead(nil); err != nil { // the same rules as over HTTP/1.1
		return nil, &Error{Stage: NotSent, Cause: BadRequest, Err: err}
	}
	if p.refusing.Load() {
		return nil, draining()
	}
	transport, err := p.http2Transport()
	if err != nil {
		return nil, openError(ctx, err)
	}
	exchange, cancel := context.WithCancel(ctx)
	c := &conn{pool: p, cancel: cancel}
	if err := p.add(c); err != nil {
		cancel()
		return nil, openError(ctx, err)
	}
	x := &Response{pool: p, c: c, req: r, times: r.Timeouts.withDefaults(), kind: bodyHTTP2, http2: new(http2Answer)}
	c.watch.begin(r.Client)
	c.expect(appTurn, x.times.Header)

	resp, err := transport.RoundTrip(x.http2.request(exchange, c, r, x.times)) //nolint:bodyclose // closeHTTP2 does
	if err != nil {
		failure := x.failureHTTP2(ctx, err)
		x.Close()
		return nil, failure
	}
	x.http2.resp = resp
	x.Status, x.Length = resp.StatusCode, resp.ContentLength
	for name, values := range resp.Header {
		for _, v := range values {
			x.Fields = append(x.Fields, Field{Name: name, Value: v})
		}
	}
	for name := range resp.Trailer {
		x.Fields = append(x.Fields, Field{Name: "Trailer", Value: name})
	}
	// Zero without a field that says so: the head ended the stream. gRPC's clients want
	// such a head (trailers only) to end theirs as well.
	x.done = resp.ContentLength == 0 && resp.Header["Content-Length"] == nil
	return x, nil
}

// request builds the library's request.
func (a *http2Answer) request(ctx context.Context, c *conn, r *Request, times Timeouts) *http.Request {
	header := make(http.Header, len(r.Header)+len(r.Set))
	nominated := r.Header["Connection"]
	for name, values := range r.Header {
		if hopByHop(name) || r.Keep != nil && !r.Keep(name) || hasAnyToken(nominated, name) {
			continue
		}
		header[name] = values
	}
	if hasAnyToken(r.Header["Te"], "trailers") {
		header["Te"] = []string{"trailers"}
	}
	if header["User-Agent"] == nil {
		header["User-Agent"] = []string{""} // else the library adds its own
	}
	for _, f := range r.Set {
		header[f.Name] = append(header[f.Name], f.Value)
	}
	if r.Interim != nil {
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
			Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
				if code == http.StatusContinue {
					return nil
				}
				var fields []Field
				for name, values := range h {
					for _, v := range values {
						fields = append(fields, Field{Name: name, Value: v})
					}
				}
				r.Interim(code, fields)
				return nil
			},
		})
	}
	req := &http.Request{
		Method:     r.Method,
		URL:        &url.URL{Scheme: "http", Host: "app", Opaque: ""},
		Host:       r.Host,
		Header:     header,
		Proto:      "HTTP/2.0",
		ProtoMajor: 2,
	}
	if u, err := url.ParseRequestURI(r.Target); err == nil {
		req.URL.Path, req.URL.RawPath, req.URL.RawQuery, req.URL.ForceQuery = u.Path, u.RawPath, u.RawQuery, u.ForceQuery
	} else {
		req.URL.Opaque = r.Target
	}
	switch {
	case len(r.Body) > 0:
		req.ContentLength = int64(len(r.Body))
		req.Body = io.NopCloser(bytes.NewReader(r.Body))
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(r.Body)), nil }
	case r.Stream != nil:
		req.ContentLength = r.Length
		a.body = &http2Body{c: c, r: r, times: times, req: req, gone: make(chan struct{})}
		if r.Announced && r.Trailer != nil {
			req.Trailer = make(http.Header)
			for name := range r.Trailer() {
				req.Trailer[name] = nil
			}
		}
		req.Body = a.body
	}
	return req.WithContext(ctx)
}

// http2Body is the request's body as the library reads it.
type http2Body struct {
	c     *conn
	r     *Request
	times Timeouts
	req   *http.Request
	gone  chan struct{} // closed by Close
	err   error         // set before the library sees it; read after gone is closed
}

// Read reads from the client.
func (b *http2Body) Read(p []byte) (int, error) {
	// Streams of calls are silent by nature, both ways: the longer limit counts.
	b.c.expect(clientSends, max(b.times.Client, b.times.Silence))
	n, err := b.r.Stream.Read(p)
	b.c.expect(appTurn, max(b.times.Header, b.times.Silence))
	if errors.Is(err, io.EOF) && b.r.Trailer != nil {
		for name, values := range b.r.Trailer() {
			if _, announced := b.req.Trailer[name]; announced && trailerAllowed(name) {
				b.req.Trailer[name] = values
			}
		}
	} else if err != nil && b.err == nil {
		b.err = err
	}
	return n, err
}

// Close says that the library reads no more.
func (b *http2Body) Close() error {
	select {
	case <-b.gone:
	default:
		close(b.gone)
	}
	return nil
}

func (x *Response) nextHTTP2(ctx context.Context) ([]byte, error) {
	if x.done {
		return nil, io.EOF
	}
	a := x.http2
	if a.buf == nil {
		a.buf = x.pool.buffers.borrowLarge()
	}
	x.c.expect(appTurn, x.times.Silence)
	for {
		n, err := a.resp.Body.Read(*a.buf)
		if n > 0 {
			x.c.handOut(x.times.Client)
			return (*a.buf)[:n], nil // an error comes again
		}
		if errors.Is(err, io.EOF) {
			x.done = true
			return nil, io.EOF
		}
		if err != nil {
			x.began = true
			return nil, x.failureHTTP2(ctx, err)
		}
	}
}

func (a *http2Answer) trailers() []Field {
	var fields []Field
	for name, values := range a.resp.Trailer {
		for _, v := range values {
			if trailerAllowed(name) {
				fields = append(fields, Field{Name: name, Value: v})
			}
		}
	}
	return fields
}

// closeHTTP2 ends the exchange: the app sees the stream reset if it was not over.
func (x *Response) closeHTTP2(c *conn) {
	c.cancel()
	if a := x.http2; a.resp != nil {
		_ = a.resp.Body.Close()
	}
	if b := x.http2.body; b != nil {
		c.watch.interrupt(false)
		<-b.gone
	}
	c.watch.end()
	if x.http2.buf != nil {
		x.pool.buffers.giveBack(x.http2.buf)
	}
	x.pool.drop(c)
	x.pool.settleHTTP2()
}

// settleHTTP2 closes connections without an exchange when the tunnel drains.
func (p *Pool) settleHTTP2() {
	p.mu.Lock()
	transport, draining := p.http2, p.draining
	p.mu.Unlock()
	if draining {
		transport.CloseIdleConnections()
	}
}

func (x *Response) failureHTTP2(ctx context.Context, err error) *Error {
	c := x.c
	e := &Error{Stage: Sent, Cause: Closed, Err: err}
	if x.http2.resp != nil {
		e.Stage = Answered
	}
	var not unopened
	switch {
	case c.watch.stalled(): // before ctx, as in failure
		e.Cause = ClientStalled
	case ctx.Err() != nil:
		e.Cause, e.Err = Canceled, context.Cause(ctx)
	case c.watch.expired():
		e.Cause = Timeout
	case errors.As(err, &not):
		e.Stage, e.Cause, e.Err = NotSent, Unreachable, not.error
	}
	return e
}
