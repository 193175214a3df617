package protocol

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// streamHeaderFixed is the part of a stream header that never varies: kind u8,
// length u16 of what follows.
const streamHeaderFixed = 3

// AppendStreamHeader appends the encoded h to b. It fails with ErrMalformed if a
// field is longer than 255 bytes or holds anything but printable ASCII without
// spaces, or if the kind is 0; b is then returned as it was.
func AppendStreamHeader(b []byte, h StreamHeader) ([]byte, error) {
	if h.Kind == 0 {
		return b, fmt.Errorf("stream header without a kind: %w", ErrMalformed)
	}
	start := len(b)
	out := append(b, byte(h.Kind), 0, 0)
	for _, field := range [...]string{h.Port, h.Client, h.RequestID} {
		if len(field) > 255 || !printable(field) {
			return b, fmt.Errorf("stream header field %q: %w", field, ErrMalformed)
		}
		out = append(out, byte(len(field)))
		out = append(out, field...)
	}
	binary.BigEndian.PutUint16(out[start+1:], uint16(len(out)-start-streamHeaderFixed))
	return out, nil
}

// ReadStreamHeader reads one header and not a byte beyond it. An unknown kind is
// no error here: the agent answers AnswerUnsupported. Errors: ErrMalformed,
// ErrTooLarge, io.EOF if r ends before the first byte, and whatever r returns.
func ReadStreamHeader(r io.Reader) (StreamHeader, error) {
	var fixed [streamHeaderFixed]byte
	if _, err := io.ReadFull(r, fixed[:]); err != nil {
		return StreamHeader{}, err
	}
	n := int(binary.BigEndian.Uint16(fixed[1:]))
	if n > MaxStreamHeader-streamHeaderFixed {
		return StreamHeader{}, fmt.Errorf("stream header of %d bytes: %w", n, ErrTooLarge)
	}
	rest := make([]byte, n)
	if _, err := io.ReadFull(r, rest); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return StreamHeader{}, err
	}
	h := StreamHeader{Kind: Kind(fixed[0])}
	if h.Kind == 0 {
		return StreamHeader{}, fmt.Errorf("stream header without a kind: %w", ErrMalformed)
	}
	for _, field := range [...]*string{&h.Port, &h.Client, &h.RequestID} {
		if len(rest) == 0 || len(rest) < 1+int(rest[0]) {
			return StreamHeader{}, fmt.Errorf("stream header field past the end: %w", ErrMalformed)
		}
		end := 1 + int(rest[0])
		*field, rest = string(rest[1:end]), rest[end:]
		if !printable(*field) {
			return StreamHeader{}, fmt.Errorf("stream header field %q: %w", *field, ErrMalformed)
		}
	}
	// What is left belongs to fields of a later minor version.
	return h, nil
}

// printable reports whether s may go into logs and headers as it is.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
