package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"wormhole/shared/protocol"
)

// Greet is the agent's half of the hello: it writes hello and reads the answer.
// A refusal is a *protocol.Reject error. Carriers call it; the caller bounds its
// time through rw.
func Greet(rw io.ReadWriter, hello *protocol.Hello) (*protocol.Welcome, error) {
	if err := protocol.WriteMessage(rw, protocol.TypeHello, hello); err != nil {
		return nil, fmt.Errorf("write hello: %w", err)
	}
	t, payload, err := protocol.ReadMessage(rw, protocol.MaxMessage)
	if err != nil {
		return nil, fmt.Errorf("read answer to hello: %w", err)
	}
	switch t {
	case protocol.TypeWelcome:
		welcome := new(protocol.Welcome)
		if err := protocol.Decode(payload, welcome); err != nil {
			return nil, err
		}
		return welcome, nil
	case protocol.TypeReject:
		reject := new(protocol.Reject)
		if err := protocol.Decode(payload, reject); err != nil {
			return nil, err
		}
		return nil, reject
	}
	return nil, fmt.Errorf("answer to hello is a message of type %d", t)
}

// Answer is the edge's half of the hello: it reads at most protocol.MaxHello
// bytes, asks admit and writes Welcome or Reject. answered says that a Reject was
// written, so that the carrier gives the agent a moment to read it; err is then
// why: admit's own error, or what was wrong with the hello. hello is nil if none
// was understood. The caller bounds its time through rw and ctx alike.
func Answer(ctx context.Context, rw io.ReadWriter, admit Admit, remote net.Addr) (hello *protocol.Hello, welcome *protocol.Welcome, answered bool, err error) {
	hello, reject, err := readHello(rw)
	if err == nil {
		welcome, err = admit(ctx, hello, remote)
		if err == nil && welcome == nil {
			err = errors.New("admission gave no answer")
		}
		if err != nil && !errors.As(err, &reject) {
			reject = &protocol.Reject{Code: protocol.CodeInternal, Reason: "the edge could not decide; try again"}
		}
	}
	switch {
	case err == nil:
		if err := protocol.WriteMessage(rw, protocol.TypeWelcome, welcome); err != nil {
			return hello, nil, false, fmt.Errorf("write welcome: %w", err)
		}
		return hello, welcome, false, nil
	case reject == nil:
		return nil, nil, false, err
	}
	answered = protocol.WriteMessage(rw, protocol.TypeReject, reject) == nil
	return hello, nil, answered, err
}

// frameHeader is the part of protocol.MaxHello that is not payload.
const frameHeader = 4

// readHello reads the hello. reject is what to answer if it is not one, nil if
// there is nobody to answer.
func readHello(r io.Reader) (hello *protocol.Hello, reject *protocol.Reject, err error) {
	t, payload, err := protocol.ReadMessage(r, protocol.MaxHello-frameHeader)
	switch {
	case errors.Is(err, protocol.ErrTooLarge):
		reject = &protocol.Reject{Code: protocol.CodeBadHello, Reason: "hello is too large"}
		return nil, reject, fmt.Errorf("read hello: %w", err)
	case err != nil:
		return nil, nil, fmt.Errorf("read hello: %w", err)
	case t != protocol.TypeHello:
		reject = &protocol.Reject{Code: protocol.CodeBadHello, Reason: "the first message is not a hello"}
		return nil, reject, reject
	}
	hello = new(protocol.Hello)
	if err := protocol.Decode(payload, hello); err != nil {
		reject = &protocol.Reject{Code: protocol.CodeBadHello, Reason: "the hello is not valid JSON"}
		return nil, reject, fmt.Errorf("read hello: %w", err)
	}
	return hello, nil, nil
}
