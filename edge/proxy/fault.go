package proxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"net/http"
	"strconv"
	"strings"

	"wormhole/edge/upstream"
	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
)

// fault is an answer of the edge's own. Its text is for clients: it says who failed
// and never more.
type fault struct {
	status int
	code   string
	source string // "client", "edge", "tunnel" or "app"
	text   string
	retry  int // Retry-After in seconds, 0 for none
}

// The faults. Codes are stable.
var (
	badHost      = fault{http.StatusBadRequest, "bad_host", "client", "The request names no valid host.", 0}
	badRequest   = fault{http.StatusBadRequest, "bad_request", "client", "The request is malformed.", 0}
	badMethod    = fault{http.StatusMethodNotAllowed, "method_not_allowed", "client", "This method cannot be proxied.", 0}
	clientSlow   = fault{http.StatusRequestTimeout, "request_timeout", "client", "The request did not arrive in time.", 0}
	bodyTooLarge = fault{http.StatusRequestEntityTooLarge, "body_too_large", "client", "The request body is larger than this site allows.", 0}
	badExpect    = fault{http.StatusExpectationFailed, "expectation_failed", "client", "The only expectation that can be met is 100-continue.", 0}
	noSuchSite   = fault{http.StatusNotFound, "no_such_site", "edge", "There is no site with this name here.", 0}
	misdirected  = fault{http.StatusMisdirectedRequest, "misdirected", "client", "This connection was made for another site.", 0}
	noBackend    = fault{http.StatusServiceUnavailable, "no_backend", "edge", "No instance of the app is connected right now.", 5}
	notReady     = fault{http.StatusServiceUnavailable, "no_backend", "app", "No instance of the app is ready right now.", 5}
	outOfReach   = fault{http.StatusServiceUnavailable, "edge_unreachable", "edge", "The app is connected to a part of the network that cannot be reached from here.", 2}
	backendBusy  = fault{http.StatusServiceUnavailable, "backend_busy", "tunnel", "All instances of the app are at their limit of requests.", 1}
	unreachable  = fault{http.StatusBadGateway, "backend_unreachable", "app", "The app does not accept connections.", 0}
	tunnelDown   = fault{http.StatusBadGateway, "backend_unreachable", "tunnel", "The tunnel to the app cannot be used.", 0}
	closedEarly  = fault{http.StatusBadGateway, "backend_closed", "app", "The app closed the connection before it answered.", 0}
	invalid      = fault{http.StatusBadGateway, "backend_invalid", "app", "The app's answer is not valid HTTP.", 0}
	timeout      = fault{http.StatusGatewayTimeout, "backend_timeout", "app", "The app did not answer in time.", 0}
)

// faultOf is the one place where a failed exchange becomes an answer. It returns nil
// when nobody is left to answer to.
func faultOf(err *upstream.Error) *fault {
	var refused *upstream.Refused
	switch err.Cause {
	case upstream.Unreachable:
		switch {
		case errors.Is(err, tunnel.ErrTooManyStreams):
			return &backendBusy
		case !errors.As(err, &refused):
			return &tunnelDown
		case refused.Answer == protocol.AnswerFull:
			return &backendBusy
		// The edge is about to hear it on the control stream, and will then say the same.
		case refused.Answer == protocol.AnswerNotReady:
			return &notReady
		case refused.Answer == protocol.AnswerDraining:
			return &noBackend
		}
		return &unreachable
	case upstream.Timeout:
		return &timeout
	case upstream.Malformed:
		return &invalid
	case upstream.BadRequest:
		return &badRequest
	case upstream.ClientStalled:
		return &clientSlow
	case upstream.ClientBody:
		return clientFault(err.Err)
	case upstream.Canceled:
		return nil
	}
	return &closedEarly
}

// clientFault is the answer to a request whose body could not be read.
func clientFault(err error) *fault {
	var timeout interface{ Timeout() bool }
	switch {
	case errors.Is(err, errBodyTooLarge):
		return &bodyTooLarge
	case errors.As(err, &timeout) && timeout.Timeout():
		return &clientSlow
	}
	return &badRequest
}

// refuse answers with a fault, if the client has not got anything else yet.
func (v *visit) refuse(f *fault) {
	if f == nil {
		v.rec.Status = statusClientGone
		panic(http.ErrAbortHandler)
	}
	v.rec.Code = f.code
	if v.begun {
		panic(http.ErrAbortHandler)
	}
	v.begun = true
	v.rec.Status = f.status
	h := v.w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Request-Id", v.rec.RequestID)
	if f.retry > 0 {
		h.Set("Retry-After", strconv.Itoa(f.retry))
	}
	if strings.HasPrefix(v.r.Header.Get("Content-Type"), "application/grpc") {
		v.refuseGRPC(f)
		return
	}
	var body string
	if wantsJSON(v.r.Header["Accept"]) {
		h.Set("Content-Type", "application/json")
		body = f.json(v.rec.RequestID)
	} else {
		h.Set("Content-Type", "text/html; charset=utf-8")
		body = f.page(v.rec.RequestID)
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	v.w.WriteHeader(f.status)
	n, _ := v.w.Write([]byte(body))
	v.rec.BytesOut = int64(n)
}

// refuseGRPC answers a gRPC call with trailers only, so that its library sees a
// status it knows instead of a page.
func (v *visit) refuseGRPC(f *fault) {
	const unavailable, internal = "14", "13"
	status := internal
	if f.status >= 500 {
		status = unavailable
	}
	h := v.w.Header()
	h.Set("Content-Type", "application/grpc")
	h.Set("Grpc-Status", status)
	h.Set("Grpc-Message", f.code)
	v.w.WriteHeader(http.StatusOK)
}

// wantsJSON reports whether the client asks for JSON rather than a page.
func wantsJSON(accept []string) bool {
	for _, a := range accept {
		if strings.Contains(a, "html") {
			return false
		}
	}
	for _, a := range accept {
		if strings.Contains(a, "json") {
			return true
		}
	}
	return false
}

func (f *fault) json(id string) string {
	type inner struct {
		Status    int    `json:"status"`
		Code      string `json:"code"`
		Source    string `json:"source"`
		Message   string `json:"message"`
		RequestID string `json:"request_id"`
	}
	b, err := json.Marshal(struct {
		Error inner `json:"error"`
	}{inner{f.status, f.code, f.source, f.text, id}})
	if err != nil {
		return "{}"
	}
	return string(b) + "\n"
}

func (f *fault) page(id string) string {
	const format = `<!doctype html><html lang="en"><head><meta charset="utf-8"><title>%[1]d %[2]s</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:36em;margin:12vh auto;padding:0 1em}code{color:#666}</style></head>
<body><h1>%[1]d %[3]s</h1><p>%[4]s</p><p><code>%[2]s</code> · what failed: %[5]s · request <code>%[6]s</code></p></body></html>
`
	return fmt.Sprintf(format, f.status, f.code, http.StatusText(f.status), f.text, f.source, html.EscapeString(id))
}
