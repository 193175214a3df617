package protocol

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Errors of the decoders, for errors.Is.
var (
	// ErrTooLarge means that a frame or a header announces, or would need, more
	// bytes than its limit. Nothing of the payload was read or written.
	ErrTooLarge = errors.New("protocol: too large")
	// ErrMalformed means that the bytes do not follow SPEC.md. The connection or
	// stream they came from cannot be used further.
	ErrMalformed = errors.New("protocol: malformed")
)

// frameHeader is the length of what precedes every payload: type u8, length u24.
const frameHeader = 4

// WriteMessage writes one frame with a single Write. v is encoded as JSON; a
// []byte goes as it is, and nil makes an empty payload. It refuses, with
// ErrTooLarge and before writing, what the peer would refuse to read.
func WriteMessage(w io.Writer, t Type, v any) error {
	var payload []byte
	switch v := v.(type) {
	case nil:
	case []byte:
		payload = v
	default:
		var err error
		if payload, err = json.Marshal(v); err != nil {
			return fmt.Errorf("encode message %d: %w", t, err)
		}
	}
	limit := MaxMessage
	if t == TypeHello {
		limit = MaxHello - frameHeader
	}
	if len(payload) > limit {
		return fmt.Errorf("encode message %d of %d bytes: %w", t, len(payload), ErrTooLarge)
	}
	frame := make([]byte, frameHeader, frameHeader+len(payload))
	binary.BigEndian.PutUint32(frame, uint32(len(payload)))
	frame[0] = byte(t)
	_, err := w.Write(append(frame, payload...))
	return err
}

// ReadMessage reads one frame and not a byte beyond it; max bounds the payload.
// At a frame boundary the end of r is io.EOF, inside a frame io.ErrUnexpectedEOF.
// A type that the caller does not know is no error: skip it.
func ReadMessage(r io.Reader, max int) (Type, []byte, error) {
	var head [frameHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	t := Type(head[0])
	head[0] = 0
	n := int(binary.BigEndian.Uint32(head[:]))
	if n > max {
		return t, nil, fmt.Errorf("message %d of %d bytes: %w", t, n, ErrTooLarge)
	}
	if n == 0 {
		return t, nil, nil
	}
	payload := make([]byte, n)
	if _, err := io.ReadFull(r, payload); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return t, nil, err
	}
	return t, payload, nil
}

// streamEndLen is the length of an encoded StreamEnd.
const streamEndLen = 17

// Encode returns the payload of a TypeStreamEnd frame.
func (e StreamEnd) Encode() []byte {
	b := make([]byte, streamEndLen)
	binary.BigEndian.PutUint64(b, e.Stream)
	binary.BigEndian.PutUint64(b[8:], e.Delivered)
	if e.Clean {
		b[16] = 1
	}
	return b
}

// DecodeStreamEnd reads the payload of a TypeStreamEnd frame. Longer payloads are
// accepted and their tail ignored, so that a newer peer may say more.
func DecodeStreamEnd(payload []byte) (StreamEnd, error) {
	if len(payload) < streamEndLen || payload[16] > 1 {
		return StreamEnd{}, fmt.Errorf("stream end of %d bytes: %w", len(payload), ErrMalformed)
	}
	return StreamEnd{
		Stream:    binary.BigEndian.Uint64(payload),
		Delivered: binary.BigEndian.Uint64(payload[8:]),
		Clean:     payload[16] == 1,
	}, nil
}

// AppendBeat returns the payload of a TypeBeat or TypeBeatAck frame.
func AppendBeat(seq uint64) []byte { return binary.BigEndian.AppendUint64(nil, seq) }

// DecodeBeat reads the payload of a TypeBeat or TypeBeatAck frame.
func DecodeBeat(payload []byte) (seq uint64, err error) {
	if len(payload) != 8 {
		return 0, fmt.Errorf("beat of %d bytes: %w", len(payload), ErrMalformed)
	}
	return binary.BigEndian.Uint64(payload), nil
}
