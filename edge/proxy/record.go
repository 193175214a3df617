package proxy

import (
	"net/http"
	"strings"
	"time"
)

// Record is what there is to say about one request when it is over.
type Record struct {
	Start     time.Time
	Duration  time.Duration // until the answer's body ended
	RequestID string
	// Site is the site's host pattern, empty if there is none; Host what was asked
	// for, in canonical form, empty if malformed.
	Site, Host string
	Method     string
	// Path is the request target without its query, which may hold secrets.
	Path      string
	Proto     string // "HTTP/1.1", "HTTP/2.0", "HTTP/3.0"
	Remote    string // the client's address, host:port
	UserAgent string
	// Status is what the client got; 499 if it left before.
	Status int
	// BytesIn and BytesOut count the bodies, in bytes.
	BytesIn, BytesOut int64
	// Backend and Tunnel say who was asked last, empty if nobody was.
	Backend, Tunnel string
	// Attempts counts how often a backend was asked, and Parked is how long the
	// request waited for one.
	Attempts int
	Parked   time.Duration
	// Code is that of the edge's own answer, "truncated" if the app's could not be
	// brought to its end, empty when the app answered.
	Code string
	// Err is why the request failed, nil if it did not; for operators only.
	Err error
}

// statusClientGone is nginx's word for a client that left before it got an answer.
const statusClientGone = 499

func (rec *Record) describe(r *http.Request) {
	rec.Method, rec.Proto, rec.Remote = r.Method, r.Proto, r.RemoteAddr
	if ua := r.Header["User-Agent"]; len(ua) > 0 {
		rec.UserAgent = ua[0]
	}
	rec.Path = r.URL.Path
	if strings.HasPrefix(r.RequestURI, "/") {
		rec.Path, _, _ = strings.Cut(r.RequestURI, "?")
	}
}

// noMetrics counts nothing.
type noMetrics struct{}

func (noMetrics) RequestDone(*Record)    {}
func (noMetrics) Retried(string, string) {}
