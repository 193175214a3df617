package proxy

import (
	"errors"
	"net/http"

	"wormhole/edge/balance"
	"wormhole/edge/upstream"
	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
)

// maxAttempts is the first try and two retries.
const maxAttempts = 3

// mayRetry is the retry law, and this is the only place that knows it. After a
// failed attempt the request may be sent again, at most twice:
//
//   - when it is certain that no byte of it reached the app: whatever its method, if
//     its body can be sent from the start. This costs apps nothing, so no budget
//     bounds it;
//   - when the app may have seen it but returned nothing, and the connection broke:
//     if its method is idempotent, its body can be sent from the start, the client
//     has got nothing, and the site's retries stay within a fifth of its active
//     requests (balance.Budget; three are always allowed, so that a quiet site can
//     retry at all).
//
// Nothing else is sent twice: no POST that the app may have seen, nothing after a
// timeout, nothing of which the client has got a byte.
func (v *visit) mayRetry(err *upstream.Error) bool {
	if v.rec.Attempts >= maxAttempts || v.begun || !v.replayable() {
		return false
	}
	switch {
	case err.Stage == upstream.NotSent && (err.Cause == upstream.Unreachable || err.Cause == upstream.Closed):
		return true
	case err.Stage == upstream.Sent && err.Cause == upstream.Closed && idempotent(v.r.Method):
		return v.takeBudget()
	}
	return false
}

// replayable reports whether the body can be sent from its start: there is none, it
// is in memory, or nobody has read any of it.
func (v *visit) replayable() bool {
	return v.out.Stream == nil || v.body.read.Load() == 0 && !v.body.touched.Load()
}

// idempotent says which methods may be delivered twice (RFC 9110, section 9.2.2).
func idempotent(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return true
	}
	return false
}

// takeBudget counts this request among the site's retries, once.
func (v *visit) takeBudget() bool {
	if !v.budgeted {
		v.budgeted = v.pool.Retries.Take()
	}
	return v.budgeted
}

// reason names a retry for the metrics.
func reason(err *upstream.Error) string {
	switch {
	case err.Cause == upstream.Unreachable:
		return "refused"
	case err.Stage == upstream.NotSent:
		return "stale"
	}
	return "closed"
}

// lesson is what a failed attempt says about the backend; ok is false when it says
// nothing.
func lesson(err *upstream.Error) (o balance.Outcome, ok bool) {
	var refused *upstream.Refused
	switch err.Cause {
	case upstream.Unreachable:
		full := errors.Is(err, tunnel.ErrTooManyStreams) ||
			errors.As(err, &refused) && refused.Answer == protocol.AnswerFull
		return balance.Unreachable, !full
	case upstream.Closed:
		// The end of a kept stream is the end of a keep-alive, not a failure.
		return balance.Broken, !err.Kept
	case upstream.Timeout:
		return balance.Broken, true
	}
	return 0, false
}
