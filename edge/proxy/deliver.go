package proxy

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"wormhole/edge/upstream"
)

// deliver copies the app's answer to the client. It panics with
// http.ErrAbortHandler when the body cannot be brought to its end: the client must
// never take half of it for the whole.
func (v *visit) deliver(ctx context.Context, resp *upstream.Response) {
	h := v.w.Header()
	copyFields(h, resp.Fields)
	if resp.Status == http.StatusNoContent {
		delete(h, "Content-Length")
	}
	if h["Content-Type"] == nil && resp.Status != http.StatusNotModified {
		h["Content-Type"] = nil // the server must not guess one
	}
	v.rules.ResponseHeaders.Apply(h)
	if name := v.rules.BackendHeader; name != "" {
		h[name] = []string{v.rec.Backend}
	}
	streams := resp.Length < 0
	if quiet(h["Content-Type"]) {
		streams = true
		resp.Keep(v.p.cfg.StreamTimeout)
	}
	v.begun = true
	v.rec.Status = resp.Status
	v.w.WriteHeader(resp.Status)
	if streams && resp.Waiting() {
		v.flush()
	}
	for !resp.Done() {
		piece, err := resp.Next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			v.cut(err)
		}
		more := !resp.Done() && !resp.Waiting()
		if more && len(piece) >= worthHolding {
			v.hold()
		}
		n, err := v.w.Write(piece)
		v.rec.BytesOut += int64(n)
		if whole := wholeUnits(v.rec.BytesOut, n); whole > 0 {
			v.p.cfg.Usage.Bytes(v.site.Usage(), 0, whole)
		}
		if err == nil && !more {
			err = v.release()
		}
		if err != nil {
			v.cut(err)
		}
		if resp.Waiting() {
			v.flush()
		}
	}
	if err := v.release(); err != nil {
		v.cut(err)
	}
	for _, f := range resp.Trailers() {
		name := http.TrailerPrefix + f.Name
		h[name] = append(h[name], f.Value)
	}
	if resp.Early {
		v.flush() // before the request's body is given up
	}
}

// worthHolding is from what size on a piece of a body is sent together with what has
// come behind it.
const worthHolding = 4 << 10

// holder is an optional side of a ResponseWriter that sends several writes as one.
type holder interface {
	Hold()
	Release() error
}

// hold keeps what is written until release, if the client's side can.
func (v *visit) hold() {
	if v.holding != nil {
		v.holding.Hold()
		return
	}
	for w := v.w; ; {
		switch at := w.(type) {
		case holder:
			v.holding = at
			at.Hold()
			return
		case interface{ Unwrap() http.ResponseWriter }:
			w = at.Unwrap()
		default:
			return
		}
	}
}

// release sends what hold has kept.
func (v *visit) release() error {
	if v.holding == nil {
		return nil
	}
	return v.holding.Release()
}

// cut ends an answer that cannot be completed.
func (v *visit) cut(err error) {
	if v.holding != nil { // what has come is the client's, unless it takes nothing
		_ = http.NewResponseController(v.w).SetWriteDeadline(time.Now().Add(time.Second))
		_ = v.release()
	}
	v.rec.Err = err
	if v.r.Context().Err() == nil {
		v.rec.Code = "truncated"
	}
	panic(http.ErrAbortHandler)
}

func (v *visit) flush() {
	if f, ok := v.w.(http.Flusher); ok {
		f.Flush()
		return
	}
	_ = http.NewResponseController(v.w).Flush()
}

// copyFields copies an app's fields. What a middleware has set before is the edge's
// word and stays; Alt-Svc would name ports of the app's (fault D19).
func copyFields(h http.Header, fields []upstream.Field) {
	preset := len(h) > 0
	values := make([]string, len(fields))
	for i, f := range fields {
		if f.Name == "Alt-Svc" {
			continue
		}
		if before, ok := h[f.Name]; ok {
			if !preset || copied(fields[:i], f.Name) {
				h[f.Name] = append(before, f.Value)
			}
			continue
		}
		values[i] = f.Value
		h[f.Name] = values[i : i+1 : i+1]
	}
}

// copied reports whether the name is among the fields.
func copied(fields []upstream.Field, name string) bool {
	for _, f := range fields {
		if f.Name == name {
			return true
		}
	}
	return false
}

// quiet reports whether a content type is that of a stream in which nothing may
// happen for long.
func quiet(contentType []string) bool {
	if len(contentType) == 0 {
		return false
	}
	t := contentType[0]
	return strings.HasPrefix(t, "text/event-stream") || strings.HasPrefix(t, "application/grpc")
}
