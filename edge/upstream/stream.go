package upstream

import (
	"context"
	"fmt"

	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
)

// Stream is a stream of the tunnel, joined by the agent to one connection of the
// app.
type Stream interface {
	tunnel.Stream
	// Delivered returns how many bytes after the stream header the agent handed to
	// the app, once the agent has reported it (protocol.StreamEnd). It waits for the
	// report until ctx ends; ok is false when there is none. It returns at once
	// when the tunnel is gone.
	Delivered(ctx context.Context) (n uint64, ok bool)
}

// Opener opens streams of one tunnel.
type Opener interface {
	// OpenStream opens a stream, writes the header and reads the agent's answer.
	// Any error promises that no byte reached the app; a refusal by the agent is a
	// *Refused.
	OpenStream(ctx context.Context, h protocol.StreamHeader) (Stream, error)
}

// Prober is an optional side of a Stream. Quiet reports, without waiting, that
// nothing has arrived which Read has not returned yet: no byte, no END, no abort. It
// is called before every reuse. Streams without it are probed by a Read with a short
// deadline once they have been idle for a while, which costs more and sees less.
type Prober interface {
	Quiet() bool
}

// Lender is an optional side of a Stream, for long bodies: it hands out what it has
// received without a copy. Its methods are for the goroutine that reads.
type Lender interface {
	// Lend waits as Read does and lends what Read would return first, until GiveBack.
	// It lends nil when there is so little that a Read, which does not wait then,
	// costs less. Its errors are those of Read.
	Lend() ([]byte, error)
	// GiveBack ends the loan, if there is one. It must come before the next Lend or
	// Read, and may come after Close.
	GiveBack()
	// Ready reports whether Read would return at once.
	Ready() bool
}

// lenderOf returns the side of s that lends, or nil.
func lenderOf(s Stream) Lender {
	if l, ok := s.(interface{ Lender() Lender }); ok {
		return l.Lender()
	}
	return nil
}

// Placed is an optional side of a Stream whose tunnel runs on several connections.
type Placed interface {
	// Behind reports whether the stream's connection carries bulk, and a new stream
	// would be placed on one that carries none. It is called before every reuse.
	Behind() bool
	// Rest says that an exchange is over: what it moved has nothing to do with the next.
	Rest()
}

// Reporter is an optional side of a Stream, for those who carry bytes that do not
// prove their own end. Ended returns what the agent reported of how the app's side
// ended; it waits for the report until ctx ends or the tunnel is gone, and ok is
// then false.
type Reporter interface {
	Ended(ctx context.Context) (end protocol.StreamEnd, ok bool)
}

// Refused is the error of a stream that the agent refused: no byte reached the app.
type Refused struct {
	Answer protocol.Answer
}

// Error says why the agent refused.
func (r *Refused) Error() string {
	return "stream refused: " + answerText(r.Answer)
}

func answerText(a protocol.Answer) string {
	switch a {
	case protocol.AnswerDraining:
		return "agent is draining"
	case protocol.AnswerFull:
		return "too many streams"
	case protocol.AnswerAppDown:
		return "app does not accept connections"
	case protocol.AnswerNoSuchPort:
		return "no such port"
	case protocol.AnswerUnsupported:
		return "not supported by the agent"
	case protocol.AnswerNotReady:
		return "app is not ready"
	}
	return fmt.Sprintf("answer %d", a)
}
