package token

import (
	"fmt"

	"wormhole/shared/protocol"
)

// Error refuses a token. Verify returns no other error.
type Error struct {
	// Code is the refusal for programs.
	Code protocol.Code
	// Reason is one sentence for the person who reads the agent's log. It repeats
	// nothing of the token but names and times.
	Reason string
}

// Error returns the reason and the code.
func (e *Error) Error() string { return fmt.Sprintf("%s (%s)", e.Reason, e.Code) }

// Reject is the refusal as the agent receives it.
func (e *Error) Reject() *protocol.Reject {
	return &protocol.Reject{Code: e.Code, Reason: e.Reason}
}

func malformed(format string, args ...any) *Error {
	return &Error{Code: protocol.CodeTokenMalformed, Reason: fmt.Sprintf(format, args...)}
}
