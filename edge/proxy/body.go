package proxy

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"wormhole/edge/upstream"
	"wormhole/edge/usage"
)

// replayBytes is the longest body that is read whole before it is sent, so that the
// request can be sent again, and so that a slow client holds no stream.
const replayBytes = 64 << 10

var errBodyTooLarge = errors.New("request body too large")

// body is the body of the client's request.
type body struct {
	memory  *[]byte // the whole body, if it is short
	length  int64   // -1 if unknown
	stream  bool
	expect  bool
	limit   int64 // 0 for none
	src     io.Reader
	read    atomic.Int64 // bytes
	touched atomic.Bool  // somebody has begun to read it

	meter *usage.Meter
	used  *usage.Counter
}

// openBody looks at the body's frame. A short body of known length is read now.
func (v *visit) openBody() *fault {
	b, r := &v.body, v.r
	b.length, b.limit, b.src = r.ContentLength, v.rules.MaxBody, r.Body
	if expect := r.Header["Expect"]; len(expect) > 0 {
		if len(expect) > 1 || !strings.EqualFold(expect[0], "100-continue") {
			return &badExpect
		}
		b.expect = b.length != 0
	}
	if b.limit > 0 && b.length > b.limit {
		return &bodyTooLarge
	}
	switch {
	case b.length == 0, r.Body == nil, r.Body == http.NoBody:
		return nil
	case b.length < 0 || b.length > replayBytes || b.expect || len(r.Trailer) > 0:
		b.stream = true
		b.meter, b.used = v.p.cfg.Usage, v.site.Usage()
		return nil
	}
	return v.readBody()
}

// readBody reads a short body into memory. The client may take its time as long as
// it makes progress.
func (v *visit) readBody() *fault {
	b := &v.body
	b.memory = v.p.bodies.borrow(int(b.length))
	buf := *b.memory
	rc := http.NewResponseController(v.w)
	for got := 0; got < len(buf); {
		if v.rules.IdleTimeout > 0 {
			_ = rc.SetReadDeadline(time.Now().Add(v.rules.IdleTimeout))
		}
		n, err := b.src.Read(buf[got:])
		got += n
		b.read.Store(int64(got))
		if err != nil && got < len(buf) {
			v.rec.Err = err
			return clientFault(err)
		}
	}
	if v.rules.IdleTimeout > 0 {
		// The server waits for the connection's next request without our limit.
		_ = rc.SetReadDeadline(time.Time{})
	}
	return nil
}

// attach gives the body to the request to the app.
func (b *body) attach(v *visit, out *upstream.Request) {
	switch {
	case b.memory != nil:
		out.Body = *b.memory
	case b.stream:
		out.Stream, out.Length, out.Expect = b, b.length, b.expect
		out.Trailer = func() http.Header { return v.r.Trailer }
		out.Announced = len(v.r.Trailer) > 0
		if v.r.ProtoMajor == 1 {
			// The app may answer while the client still sends (fault D16).
			_ = http.NewResponseController(v.w).EnableFullDuplex()
		}
	}
}

// Read reads from the client.
func (b *body) Read(p []byte) (int, error) {
	b.touched.Store(true)
	n, err := b.src.Read(p)
	total := b.read.Add(int64(n))
	if whole := wholeUnits(total, n); whole > 0 && total < ended {
		b.meter.Bytes(b.used, whole, 0)
	}
	if b.limit > 0 && total > b.limit {
		return 0, errBodyTooLarge
	}
	return n, err
}

// ended is what read holds beside its bytes once they have been reported.
const ended = 1 << 62

// end returns how many bytes were read; later ones count for nobody.
func (b *body) end() int64 { return b.read.Add(ended) - ended }

// bodyBuffers lends memory for short bodies. The zero value is ready.
type bodyBuffers struct {
	small, large sync.Pool
}

const smallBody = 4 << 10

func (p *bodyBuffers) borrow(size int) *[]byte {
	pool, capacity := &p.small, smallBody
	if size > smallBody {
		pool, capacity = &p.large, replayBytes
	}
	buf, ok := pool.Get().(*[]byte)
	if !ok {
		b := make([]byte, capacity)
		buf = &b
	}
	*buf = (*buf)[:size]
	return buf
}

func (p *bodyBuffers) giveBack(buf *[]byte) {
	switch {
	case buf == nil:
	case cap(*buf) == smallBody:
		p.small.Put(buf)
	default:
		p.large.Put(buf)
	}
}
