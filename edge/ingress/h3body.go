package ingress

import (
	"errors"
	"io"
	"net/http"
	"time"
)

// endTime is how long the end of a request's stream may take to follow its head.
const endTime = 250 * time.Millisecond

// lookForBody finds out whether a request over HTTP/3 has a body. Its head does not
// say: only the end of its stream does, and quic-go leaves it at "unknown length",
// with which a GET would go to the app as one with a chunked body that cannot be
// sent twice. Methods that usually have a body are left alone, as theirs may be
// waiting for an answer.
func lookForBody(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength >= 0 {
		return
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodDelete, http.MethodTrace:
	default:
		return
	}
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(endTime))
	var first [1]byte
	n, err := r.Body.Read(first[:])
	_ = control.SetReadDeadline(time.Time{})
	switch {
	case n > 0:
		r.Body = &begun{ReadCloser: r.Body, first: first[:n]}
	case errors.Is(err, io.EOF):
		r.Body, r.ContentLength = http.NoBody, 0
	}
}

// begun is a body of which some bytes were read.
type begun struct {
	io.ReadCloser
	first []byte
}

// Read returns them first.
func (b *begun) Read(p []byte) (int, error) {
	if len(b.first) > 0 {
		n := copy(p, b.first)
		b.first = b.first[n:]
		return n, nil
	}
	return b.ReadCloser.Read(p)
}
