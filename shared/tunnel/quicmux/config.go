package quicmux

import (
	"time"

	"github.com/quic-go/quic-go"
)

const (
	idleTimeout = 5 * time.Second
	keepAlive   = time.Second

	// packetSize is what every path must carry (RFC 9000, section 14); larger ones
	// are probed for.
	packetSize = 1200

	defaultMaxStreams = 1024

	// A peer that was not admitted yet has one stream, and so can make this side
	// hold firstWindow bytes. Windows grow while a stream is read fast.
	firstWindow     = 64 << 10
	maxStreamWindow = 4 << 20
	// sessionWindow bounds what a session holds unread. It is given at once: the
	// streams share it, and a small one would be used up by a few that are not read,
	// which would stall all others.
	sessionWindow = 128 << 20
)

// The codes that a connection or a stream is closed with; they inform, and decide
// nothing.
const (
	codeClosed   quic.ApplicationErrorCode = 0 // Close
	codeRejected quic.ApplicationErrorCode = 1 // no hello, or refused
	codeAbort    quic.StreamErrorCode      = 1
)

// Options tune a session. The zero value is what production uses.
type Options struct {
	// MaxStreams is how many streams opened here may be open at once; 0 means 1,024.
	MaxStreams int
	// MaxIncoming is how many streams a dialed edge may hold open at once; 0 means
	// 2,048. On the edge's side ServerConfig decides.
	MaxIncoming int
}

func (o Options) withDefaults() Options {
	if o.MaxStreams <= 0 {
		o.MaxStreams = defaultMaxStreams
	}
	if o.MaxIncoming <= 0 {
		o.MaxIncoming = 2 * defaultMaxStreams
	}
	return o
}

// ServerConfig returns what a listener uses for agents' connections. They may
// open one stream, the one for the hello, which is the control stream later.
func ServerConfig() *quic.Config { return config(1) }

func config(maxIncoming int) *quic.Config {
	return &quic.Config{
		HandshakeIdleTimeout:           idleTimeout,
		MaxIdleTimeout:                 idleTimeout,
		KeepAlivePeriod:                keepAlive,
		InitialPacketSize:              packetSize,
		InitialStreamReceiveWindow:     firstWindow,
		MaxStreamReceiveWindow:         maxStreamWindow,
		InitialConnectionReceiveWindow: sessionWindow,
		MaxConnectionReceiveWindow:     sessionWindow,
		MaxIncomingStreams:             int64(maxIncoming),
		MaxIncomingUniStreams:          -1,
	}
}
