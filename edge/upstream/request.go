package upstream

import (
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Request is one request to the app. Do does not change it.
type Request struct {
	Method string
	// Target is the request target as it goes on the wire: origin form, or "*".
	Target string
	Host   string
	// Header holds the client's fields. Those about the connection and the framing
	// are left out when it is written, and those for which Keep, if set, returns
	// false. Set holds fields of the edge; nothing in Header can take them away.
	Header http.Header
	Keep   func(name string) bool
	Set    []Field

	// Body is the whole body, if it is in memory. Otherwise Stream is the body, nil
	// for none, and Length its length in bytes, -1 if unknown. Stream is read on a
	// goroutine of its own until Response.Close has returned.
	Body   []byte
	Stream io.Reader
	Length int64
	// Trailer returns the request's trailers once Stream has ended; nil for none.
	Trailer func() http.Header
	// Announced says that trailers may follow, so that the body is sent chunked.
	Announced bool
	// Expect says that the client waits for 100 Continue before it sends the body:
	// Stream is read only when the app wants it.
	Expect bool

	// Upgrade asks to switch to this protocol; empty for an ordinary request.
	Upgrade string
	// H2C speaks HTTP/2 to the app, with prior knowledge.
	H2C bool
	// Fresh forbids a kept stream.
	Fresh bool
	// Queue waits for a stream when the tunnel has no more to give; without it the
	// exchange fails at once, so that another tunnel can be asked.
	Queue bool
	// ID goes into the header of a stream that is opened for the request.
	ID string

	Timeouts Timeouts
	// Proof is how long to wait for the agent's word that a request on a dead stream
	// was not delivered. Default 1 s.
	Proof time.Duration
	// Client, if set, is told when the exchange ends while the client blocks it.
	Client Client
	// Interim, if set, is called with every interim answer (1xx) but 100 and 101,
	// on the goroutine that called Do. The fields are valid during the call.
	Interim func(status int, fields []Field)
}

// Timeouts of an exchange. They are counted from the last progress and checked every
// Config.Tick; zero means the default.
type Timeouts struct {
	// Header is how long the app may take from the end of the request to the head of
	// its answer. Default 60 s.
	Header time.Duration
	// Silence is how long the app may stay silent within the body. Default 5 min.
	Silence time.Duration
	// Client is how long the client may neither send nor take a byte while it is its
	// turn, nor, if it is a Taker, take one of what it is owed, whoever's turn it is.
	// Default 60 s.
	Client time.Duration
}

func (t Timeouts) withDefaults() Timeouts {
	if t.Header <= 0 {
		t.Header = time.Minute
	}
	if t.Silence <= 0 {
		t.Silence = 5 * time.Minute
	}
	if t.Client <= 0 {
		t.Client = time.Minute
	}
	return t
}

// Client is the side of the client that can block an exchange. The methods may be
// called from any goroutine, at any time between the call of Do and the return of
// Response.Close.
type Client interface {
	// InterruptRead makes a Read of the request's body that blocks fail soon.
	InterruptRead()
	// InterruptWrite makes a write of the answer that blocks fail soon.
	InterruptWrite()
}

// Taker is an optional side of a Client whose connection knows what the other end
// has acknowledged. The pool asks it now and then while an answer is delivered.
type Taker interface {
	// Taken returns how many bytes the client has acknowledged in all, and whether it
	// is owed more that has been sent or waits to be. It must not block.
	Taken() (bytes uint64, owed bool)
}

// Errors of requests that cannot be written as HTTP/1.1.
var (
	errMethod = errors.New("method is not a token")
	errTarget = errors.New("request target has a forbidden byte")
	errHost   = errors.New("host has a forbidden byte")
	errHeader = errors.New("header field has a forbidden byte")
)

// streams reports whether the body is read while the exchange runs.
func (r *Request) streams() bool { return r.Stream != nil }

// chunked reports whether the body is sent in chunks.
func (r *Request) chunked() bool { return r.Stream != nil && (r.Length < 0 || r.Announced) }

// reusable reports whether the stream may be kept after this request. A body where
// servers do not expect one, or an expectation, is where they disagree about the
// end of a request (RFC 9110, section 9.3.1; faults D7, D8).
func (r *Request) reusable() bool {
	if r.Expect || r.Upgrade != "" {
		return false
	}
	switch r.Method {
	case http.MethodPost, http.MethodPut, http.MethodPatch:
		return true
	case http.MethodConnect:
		return false
	}
	return r.Stream == nil && len(r.Body) == 0
}

// appendHead appends the request's head to b. Whatever the request holds, the
// result is one request: bytes that could end a line or a field are refused.
func (r *Request) appendHead(b []byte) ([]byte, error) {
	if !validName(r.Method) {
		return nil, errMethod
	}
	b = append(b, r.Method...)
	b = append(b, ' ')
	var err error
	if b, err = appendTarget(b, r.Target); err != nil {
		return nil, err
	}
	if !validHost(r.Host) {
		return nil, errHost
	}
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, r.Host...)
	b = append(b, "\r\n"...)
	for _, f := range r.Set {
		if b, err = appendField(b, f.Name, f.Value); err != nil {
			return nil, err
		}
	}
	nominated := r.Header["Connection"]
	wantsTrailers := false
	for name, values := range r.Header {
		if name == "Te" {
			wantsTrailers = hasAnyToken(values, "trailers")
			continue
		}
		if hopByHop(name) || r.Keep != nil && !r.Keep(name) || hasAnyToken(nominated, name) {
			continue
		}
		for _, v := range values {
			if b, err = appendField(b, name, v); err != nil {
				return nil, err
			}
		}
	}
	switch {
	case r.Upgrade != "":
		b = append(b, "Connection: Upgrade\r\n"...)
		if b, err = appendField(b, "Upgrade", r.Upgrade); err != nil {
			return nil, err
		}
	case wantsTrailers:
		b = append(b, "Te: trailers\r\nConnection: TE\r\n"...)
	}
	if r.Expect && r.Stream != nil {
		b = append(b, "Expect: 100-continue\r\n"...)
	}
	switch {
	case r.chunked():
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
		if r.Announced {
			if b, err = appendAnnounced(b, r.Trailer); err != nil {
				return nil, err
			}
		}
	case r.Stream != nil:
		b = appendLength(b, r.Length)
	case len(r.Body) > 0 || r.Method == http.MethodPost || r.Method == http.MethodPut || r.Method == http.MethodPatch:
		b = appendLength(b, int64(len(r.Body)))
	}
	return append(b, "\r\n"...), nil
}

func appendLength(b []byte, n int64) []byte {
	b = append(b, "Content-Length: "...)
	b = strconv.AppendInt(b, n, 10)
	return append(b, "\r\n"...)
}

// appendAnnounced appends the Trailer field that names the trailers to come.
func appendAnnounced(b []byte, trailer func() http.Header) ([]byte, error) {
	if trailer == nil {
		return b, nil
	}
	list := ""
	for name := range trailer() {
		if trailerAllowed(name) {
			list += ", " + name
		}
	}
	if list == "" {
		return b, nil
	}
	return appendField(b, "Trailer", list[2:])
}

// appendTrailer appends a trailer section with its empty line.
func appendTrailer(b []byte, trailer func() http.Header) ([]byte, error) {
	if trailer != nil {
		for name, values := range trailer() {
			if !trailerAllowed(name) {
				continue
			}
			for _, v := range values {
				var err error
				if b, err = appendField(b, name, v); err != nil {
					return nil, err
				}
			}
		}
	}
	return append(b, "\r\n"...), nil
}

func appendField(b []byte, name, value string) ([]byte, error) {
	if !validName(name) || !validValue(value) {
		return nil, errHeader
	}
	b = append(b, name...)
	b = append(b, ": "...)
	b = append(b, value...)
	return append(b, "\r\n"...), nil
}

// appendTarget appends a request target. Bytes beyond ASCII are percent-encoded: old
// servers split the request line at what Latin-1 calls a space (0x85, 0xa0).
func appendTarget(b []byte, target string) ([]byte, error) {
	if target != "*" && (target == "" || target[0] != '/') {
		return nil, errTarget
	}
	const hex = "0123456789ABCDEF"
	for i := range len(target) {
		switch c := target[i]; {
		case c <= ' ' || c == 0x7f:
			return nil, errTarget
		case c >= 0x80:
			b = append(b, '%', hex[c>>4], hex[c&15])
		default:
			b = append(b, c)
		}
	}
	return b, nil
}

func validHost(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', isDigit(c):
		case c == '.' || c == '-' || c == ':' || c == '[' || c == ']' || c == '_':
		default:
			return false
		}
	}
	return s != ""
}

// hopByHop reports whether a field, in canonical form, is about the connection or
// the framing, which Request writes by itself.
func hopByHop(name string) bool {
	switch name {
	case "Connection", "Content-Length", "Expect", "Host", "Keep-Alive", "Proxy-Authenticate",
		"Proxy-Authorization", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings":
		return true
	}
	return strings.HasPrefix(name, ":")
}

func hasAnyToken(lists []string, token string) bool {
	for _, l := range lists {
		if hasToken(l, token) {
			return true
		}
	}
	return false
}
