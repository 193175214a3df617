// Package relay carries streams between edges: an edge without a good backend of
// its own for a site hands the stream to one that has, over a tunnel like those of
// agents (mutual TLS on the public port, ALPN wormhole-relay/1).
//
// The dialling edge opens streams and names the site; the other chooses among the
// tunnels that end at itself, and among no others, so that one hop is the most by
// construction. What is carried are bytes, not requests: policy ran on the first
// edge. The answer is OK and the backend's name, or a refusal which promises that
// no byte reached an app.
package relay

import (
	"errors"
	"io"

	"wormhole/shared/protocol"
)

// ALPN is what edges offer to each other for relays.
const ALPN = "wormhole-relay/1"

// typeRetire (accepting -> dialling edge) names a stream (u64) of a site (the rest)
// whose backend drains: it should carry no further request. Its number is outside
// those of agents.
const typeRetire protocol.Type = 64

// beat and retire messages are small; so are reports of streams' ends.
const maxControl = 1 << 10

// appendHeader writes pattern: length u8, text; then the header that the agent gets.
func appendHeader(b []byte, pattern string, h protocol.StreamHeader) ([]byte, error) {
	if len(pattern) == 0 || len(pattern) > 255 {
		return b, errors.New("relay: a pattern of impossible length")
	}
	b = append(append(b, byte(len(pattern))), pattern...)
	return protocol.AppendStreamHeader(b, h)
}

func readHeader(r io.Reader) (pattern string, h protocol.StreamHeader, err error) {
	if pattern, err = readShort(r); err != nil {
		return "", h, err
	}
	h, err = protocol.ReadStreamHeader(r)
	return pattern, h, err
}

// readShort reads a text with a length of one byte before it.
func readShort(r io.Reader) (string, error) {
	var n [1]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return "", err
	}
	text := make([]byte, n[0])
	_, err := io.ReadFull(r, text)
	return string(text), err
}

// appendAnswer is AnswerOK with the backend's name, or a refusal.
func appendAnswer(b []byte, a protocol.Answer, backend string) []byte {
	b = append(b, byte(a))
	if a != protocol.AnswerOK {
		return b
	}
	backend = backend[:min(len(backend), 255)]
	return append(append(b, byte(len(backend))), backend...)
}
