package upstream

// Stage says how far a failed exchange came, which decides whether the request may
// be sent again.
type Stage uint8

const (
	// NotSent: no byte of the request reached the app. It may be sent elsewhere,
	// whatever the method.
	NotSent Stage = iota
	// Sent: the app may have seen the request, whole or in part, and no byte of an
	// answer came back.
	Sent
	// Answered: part of an answer arrived.
	Answered
)

// String names the stage.
func (s Stage) String() string {
	switch s {
	case NotSent:
		return "not sent"
	case Sent:
		return "sent"
	}
	return "answered"
}

// Cause says who or what ended an exchange.
type Cause uint8

const (
	// Unreachable: no stream to the app could be opened.
	Unreachable Cause = iota
	// Closed: the stream ended before the exchange did.
	Closed
	// Timeout: the app was silent for too long.
	Timeout
	// Malformed: the app's answer is not HTTP as this package accepts it.
	Malformed
	// ClientStalled: the client neither sent nor took bytes for too long.
	ClientStalled
	// ClientBody: reading the request's body failed.
	ClientBody
	// Canceled: the caller's context ended, as a rule because the client left.
	Canceled
	// BadRequest: the request cannot be written as HTTP/1.1; nothing was sent.
	BadRequest
)

// String names the cause.
func (c Cause) String() string {
	switch c {
	case Unreachable:
		return "unreachable"
	case Closed:
		return "closed"
	case Timeout:
		return "timeout"
	case Malformed:
		return "malformed answer"
	case ClientStalled:
		return "client stalled"
	case ClientBody:
		return "request body failed"
	case Canceled:
		return "canceled"
	}
	return "bad request"
}

// Error is what Pool.Do and Response.Next return when an exchange fails.
type Error struct {
	Stage Stage
	Cause Cause
	// Kept says that the exchange ran on a kept stream, so that Closed is more
	// likely the end of a keep-alive than a failure of the app.
	Kept bool
	Err  error
}

// Error says what happened, for operators.
func (e *Error) Error() string {
	s := "app exchange " + e.Cause.String() + " (" + e.Stage.String() + ")"
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the error below.
func (e *Error) Unwrap() error { return e.Err }
