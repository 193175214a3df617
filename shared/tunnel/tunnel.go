// Package tunnel says what a session and a stream are, whatever carries them.
// The carriers tlsmux (yamux over TLS/TCP) and quicmux (QUIC) fulfil it; the
// suite in tunneltest is this contract as tests.
package tunnel

import (
	"context"
	"errors"
	"net"

	"wormhole/shared/protocol"
)

// Errors that sessions and streams return, for errors.Is.
var (
	// ErrAborted is returned by Read and Write when the stream ended otherwise than
	// by the peer's CloseWrite: the peer aborted it, or the session died. Bytes may
	// be missing.
	ErrAborted = errors.New("stream aborted")
	// ErrSessionClosed is returned by Open and Accept once the session has ended.
	ErrSessionClosed = errors.New("tunnel session closed")
	// ErrTooManyStreams is returned by Open when the session holds as many streams
	// as it may, or the peer is slow to take new ones. Nothing was sent.
	ErrTooManyStreams = errors.New("too many streams in tunnel session")
)

// Carrier names a way to carry a session.
type Carrier string

// The carriers.
const (
	TLS  Carrier = "tls"  // TLS over TCP, multiplexed by yamux
	QUIC Carrier = "quic" // QUIC over UDP
)

// Session is one authenticated carrier connection between an agent and an edge.
// All methods may be called concurrently.
type Session interface {
	// Open opens a stream to the peer. It returns at once when the peer may take
	// more; it never waits past ctx. Errors: ErrTooManyStreams, ErrSessionClosed.
	Open(ctx context.Context) (Stream, error)
	// Accept waits for a stream that the peer opened. Someone must call it in a
	// loop that does nothing else.
	Accept(ctx context.Context) (Stream, error)
	// Control is the stream for control messages. It exists from the handshake on;
	// one reader and one writer at a time.
	Control() Stream
	// Close ends the session at once: open streams read ErrAborted on both ends. It
	// is idempotent and returns when no goroutine of the session is left.
	Close() error
	// Done is closed when the session has ended, for whatever reason; Err then
	// says why (ErrSessionClosed after a local Close).
	Done() <-chan struct{}
	Err() error

	Carrier() Carrier
	LocalAddr() net.Addr
	RemoteAddr() net.Addr
	// Streams counts the streams open now, the control stream not among them.
	Streams() int
}

// Stream is one connection inside a session. As with net.Conn, one goroutine may
// read while another writes, and Close, Abort and deadlines may come from any.
//
// Its end is explicit: Read returns io.EOF only after the peer's CloseWrite, with
// every byte before it delivered. Whatever else ends a stream is ErrAborted.
type Stream interface {
	net.Conn
	// ID is the stream's number, the same on both ends and unique in its session.
	ID() uint64
	// CloseWrite says END: no more bytes from here, all of them good. Reading goes on.
	CloseWrite() error
	// Abort ends both directions at once; the peer's Read and Write return
	// ErrAborted. It is idempotent, and does nothing after a Close.
	Abort()
	// Close releases the stream. If either direction has not ended cleanly (own
	// CloseWrite, peer's END read), it aborts. It never blocks on the network.
	Close() error
}

// Admit decides on a hello. A *protocol.Reject error is sent to the agent as it
// is, any other as protocol.CodeInternal without its text. ctx ends at the hello
// deadline. It is called once per connection, before any multiplexer state exists.
type Admit func(ctx context.Context, hello *protocol.Hello, remote net.Addr) (*protocol.Welcome, error)
