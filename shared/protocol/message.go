package protocol

import (
	"encoding/json"
	"fmt"
	"time"
)

// ALPN is the application protocol (RFC 7301) that agents offer, over TLS and
// over QUIC alike. Its number is the protocol's major version: a peer that
// speaks another major version fails the TLS handshake, not the hello.
const ALPN = "wormhole/1"

// Limits that both ends enforce. Lengths are in bytes.
const (
	// MaxHello bounds everything an unauthenticated peer may send: the hello
	// frame with its header.
	MaxHello = 8 << 10
	// MaxMessage bounds the payload of one control message after the hello.
	MaxMessage = 64 << 10
	// MaxStreamHeader bounds an encoded StreamHeader.
	MaxStreamHeader = 1 << 10

	// HelloTimeout is how long the peer has from the end of the TLS handshake
	// until its hello is read whole.
	HelloTimeout = 5 * time.Second
	// BeatInterval is the time between two beats of an agent on each tunnel.
	BeatInterval = time.Second
)

// Type is the first byte of a frame and says how to read its payload.
type Type uint8

// The frame types. Numbers are for ever; a receiver skips a type that it does
// not know, so that a newer peer may say more.
const (
	TypeHello     Type = 1  // agent -> edge: Hello, JSON
	TypeWelcome   Type = 2  // edge -> agent: Welcome, JSON
	TypeReject    Type = 3  // edge -> agent: Reject, JSON, then the edge closes
	TypeReady     Type = 4  // agent -> edge: Ready, JSON
	TypeDrain     Type = 5  // agent -> edge: Drain, JSON
	TypeDrainAck  Type = 6  // edge -> agent: no payload; no new request follows
	TypeBeat      Type = 7  // agent -> edge: 8 bytes, big endian sequence
	TypeBeatAck   Type = 8  // edge -> agent: the 8 bytes of the beat
	TypeToken     Type = 9  // agent -> edge: TokenRefresh, JSON
	TypeEdges     Type = 10 // edge -> agent: Edges, JSON
	TypeGoAway    Type = 11 // edge -> agent: GoAway, JSON
	TypeStreamEnd Type = 12 // agent -> edge: StreamEnd, 17 bytes
	TypeTokenAck  Type = 13 // edge -> agent: TokenAck, JSON
)

// Hello is the first message on a carrier connection. The edge answers with
// Welcome or Reject, and neither side sets up multiplexer state before that.
type Hello struct {
	// Token is the JWT that says who the agent is and what it may serve.
	Token string `json:"token"`
	// Instance is the agent process: 16 random bytes in hex, made at start. All
	// tunnels of one process carry the same one.
	Instance string `json:"instance"`
	// Tunnel joins this connection to a tunnel of the same instance and token that is
	// open already (Welcome.Tunnel); empty opens a new one.
	Tunnel string `json:"tunnel,omitempty"`
	// Hosts are the host names to serve, each within what the token allows; empty
	// means all exact host names of the token.
	Hosts []string `json:"hosts,omitempty"`
	// Name, Tags, Release and Branch describe the backend to people and rules.
	Name    string            `json:"name,omitempty"`
	Tags    map[string]string `json:"tags,omitempty"`
	Release string            `json:"release,omitempty"`
	Branch  string            `json:"branch,omitempty"`
	// ReleaseDescription is one line about the release, such as a commit's subject.
	ReleaseDescription string `json:"release_description,omitempty"`
	// Version is the agent's own version; it decides nothing.
	Version string `json:"version,omitempty"`
	// AppProtocol is what the app speaks: "http1" (default when empty), "h2c".
	AppProtocol string `json:"app_protocol,omitempty"`
	// Ready says whether the app accepts requests now; a Ready message changes it.
	Ready bool `json:"ready"`
}

// Welcome accepts an agent.
type Welcome struct {
	// Tunnel names the tunnel, unique for the life of the edge.
	Tunnel string `json:"tunnel"`
	// Node is the edge's id and Region the region it is in.
	Node   string `json:"node"`
	Region string `json:"region,omitempty"`
	// Hosts are the host patterns that were registered, in canonical form.
	Hosts []string `json:"hosts"`
	// Edges are the edges known now, this one included; see Edges.
	Edges []Edge `json:"edges,omitempty"`
	// Version is the edge's own version; it decides nothing.
	Version string `json:"version,omitempty"`
	// MaxStreams is the most streams the edge will hold open at once.
	MaxStreams int `json:"max_streams,omitempty"`
	// Connections is how many connections the tunnel may have, the first one
	// included. 0, which edges say that know of one only, is one.
	Connections int `json:"connections,omitempty"`
}

// Edge is one node an agent may dial.
type Edge struct {
	Node   string `json:"node"`
	Region string `json:"region,omitempty"`
	// Addr is host:port as an agent dials it.
	Addr string `json:"addr"`
}

// Code is why a hello was rejected; stable, for programs.
type Code string

// The codes of Reject. Permanent ones cannot heal without another token or
// other settings.
const (
	CodeTokenMalformed   Code = "token_malformed"  // not a token of ours, or a forbidden algorithm
	CodeTokenSignature   Code = "token_signature"  // unknown key or wrong signature
	CodeTokenExpired     Code = "token_expired"    // past exp
	CodeTokenNotYetValid Code = "token_not_yet"    // before nbf or iat: look at the clocks
	CodeTokenRevoked     Code = "token_revoked"    // taken back by an operator
	CodeTokenAudience    Code = "token_audience"   // issued for another network
	CodeHostForbidden    Code = "host_forbidden"   // asks for a host outside the token
	CodeBadHello         Code = "bad_hello"        // not understood
	CodeBusy             Code = "busy"             // try again after RetryAfter
	CodeDraining         Code = "draining"         // this edge is leaving; use another
	CodeTooManyTunnels   Code = "too_many_tunnels" // the token's limit, or the tunnel's of connections
	CodeNoTunnel         Code = "no_tunnel"        // none of this instance and token to join
	CodeInternal         Code = "internal"         // the edge could not decide
)

// Permanent reports whether trying again with the same token and settings is
// useless.
func (c Code) Permanent() bool {
	switch c {
	case CodeTokenMalformed, CodeTokenSignature, CodeTokenExpired, CodeTokenRevoked,
		CodeTokenAudience, CodeHostForbidden, CodeBadHello:
		return true
	}
	return false
}

// Reject refuses a hello. It is an error, so that an edge's admission returns it
// and an agent's dial yields it.
type Reject struct {
	Code Code `json:"code"`
	// Reason is one sentence for the person who reads the agent's log.
	Reason string `json:"reason"`
	// RetryAfter, in milliseconds, is the least wait before the next try; 0 leaves
	// it to the agent's back-off.
	RetryAfterMillis int64 `json:"retry_after_ms,omitempty"`
}

// Error says the code and the reason.
func (r *Reject) Error() string { return fmt.Sprintf("rejected (%s): %s", r.Code, r.Reason) }

// RetryAfter is the least wait that the edge asked for.
func (r *Reject) RetryAfter() time.Duration {
	return time.Duration(r.RetryAfterMillis) * time.Millisecond
}

// Ready says that the app began or ceased to accept requests.
type Ready struct {
	Ready  bool   `json:"ready"`
	Reason string `json:"reason,omitempty"`
}

// Drain says that the agent wants no further request on this tunnel. Requests
// in flight go on. The edge answers TypeDrainAck once no new one can follow.
type Drain struct {
	Reason string `json:"reason,omitempty"`
}

// TokenRefresh replaces the tunnel's token; the edge answers with TokenAck.
type TokenRefresh struct {
	Token string `json:"token"`
}

// TokenAck answers TokenRefresh. When Reject is set, the old token stays in force.
type TokenAck struct {
	Reject *Reject `json:"reject,omitempty"`
}

// Edges is the current list of edges; it replaces the one of the Welcome.
type Edges struct {
	Edges []Edge `json:"edges"`
}

// GoAway tells the agent that the edge will leave. The agent opens a tunnel
// elsewhere, and goes on serving this one until the edge, whose clients must find
// their way elsewhere too, closes it.
type GoAway struct {
	Reason string `json:"reason,omitempty"`
	// Code is set when the tunnel is closed for cause, such as CodeTokenRevoked.
	Code Code `json:"code,omitempty"`
	// DelayMillis is how long this agent should wait before it dials elsewhere, so
	// that not all do at once.
	DelayMillis int64 `json:"delay_ms,omitempty"`
	// DeadlineMillis is how long requests in flight have.
	DeadlineMillis int64 `json:"deadline_ms,omitempty"`
}

// StreamEnd reports how the agent's side of a stream ended, so that an edge can
// tell a request that never reached the app from one that did. It is sent after
// every stream whose app connection ended before the edge closed the stream.
type StreamEnd struct {
	// Stream is the stream's id in its session.
	Stream uint64
	// Delivered counts the bytes after the header that the agent handed to the
	// app's connection. Bytes that the edge sent beyond it never reached the app.
	Delivered uint64
	// Clean says that the app ended its side properly (FIN, not reset).
	Clean bool
}

// Kind is what a stream carries.
type Kind uint8

// The kinds of streams.
const (
	KindHTTP Kind = 1 // HTTP/1.1 exchanges one after another, or one h2c connection
	KindTCP  Kind = 2 // one raw TCP connection of a client
	KindTLS  Kind = 3 // one TLS connection of a client, not ended by the edge
)

// StreamHeader is the first thing the edge writes on a stream. The agent answers
// with one byte: an Answer.
type StreamHeader struct {
	Kind Kind
	// Port is the name of the app's port; empty is the only one.
	Port string
	// Client is the client's address as text (host:port), empty if there is no
	// single client, as on kept HTTP streams.
	Client string
	// RequestID is the id of the request for which the stream was opened.
	RequestID string
}

// Answer is the agent's first byte on a stream. Every value but AnswerOK is a
// refusal and promises that no byte reached the app.
type Answer uint8

// The answers.
const (
	AnswerOK          Answer = 0
	AnswerDraining    Answer = 1 // the agent is leaving
	AnswerFull        Answer = 2 // too many streams
	AnswerAppDown     Answer = 3 // the app's address does not accept
	AnswerNoSuchPort  Answer = 4 // the header names a port the agent does not have
	AnswerUnsupported Answer = 5 // malformed header or unknown kind
	AnswerNotReady    Answer = 6 // the app is starting or fails its readiness check
)

// Decode reads the JSON payload of a frame into v. Unknown fields are ignored.
func Decode(payload []byte, v any) error {
	if err := json.Unmarshal(payload, v); err != nil {
		return fmt.Errorf("decode %T: %w", v, err)
	}
	return nil
}
