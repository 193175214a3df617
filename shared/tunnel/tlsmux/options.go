package tlsmux

import (
	"fmt"
	"log/slog"
	"time"

	"wormhole/shared/protocol"
)

// SystemCongestion is Options.Congestion for the system's own choice.
const SystemCongestion = "system"

// CheckCongestion refuses what cannot be the name of a congestion control.
func CheckCongestion(name string) error {
	const longest = 15 // TCP_CA_NAME_MAX of Linux, less the end of the string
	ok := name != "" && len(name) <= longest
	for _, c := range []byte(name) {
		ok = ok && (c == '_' || c == '-' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z')
	}
	if !ok {
		return fmt.Errorf("%.40q is no name of a congestion control, such as bbr or cubic, nor %s", name, SystemCongestion)
	}
	return nil
}

// The defaults of Options.
const (
	defaultCongestion    = "bbr"
	defaultKeepAlive     = 5 * time.Second
	defaultWriteTimeout  = 10 * time.Second
	defaultMaxStreams    = 1024
	defaultWindow        = 16 << 20
	defaultMemoryCeiling = 96 << 20
	// acceptedMaxIncoming is how many streams an agent may hold open towards an
	// edge, where only the control stream has a purpose today.
	acceptedMaxIncoming = 16
)

// Options tune a session. The zero value is what production uses.
type Options struct {
	// KeepAlive is how long the peer may be silent before it is pinged; 0 means 5 s.
	KeepAlive time.Duration
	// WriteTimeout is how long the peer may then stay silent, and how long one write
	// of at most 32 KiB may take, before the session ends; 0 means 10 s.
	WriteTimeout time.Duration
	// MaxStreams is how many streams opened here may be open at once; 0 means 1,024.
	MaxStreams int
	// MaxIncoming is how many streams the peer may hold open at once, the control
	// stream among them. A peer that exceeds it loses the session. 0 means 16 at
	// Accept, and at Dial twice MaxStreams and some, because the peer may count a
	// stream as gone a little earlier.
	MaxIncoming int
	// RefuseStreams aborts every stream that the peer opens besides the control
	// stream, without anybody calling Session.Accept.
	RefuseStreams bool
	// Window is the largest receive window of a stream, in bytes; 0 means 16 MiB.
	// Every stream starts with 256 KiB and grows while it is read fast.
	Window int
	// MemoryCeiling bounds the memory a session holds for bytes that were received and
	// not yet read; 0 means 96 MiB. Above it the stream that holds most is aborted. In
	// sum windows grow by half of it. The process may need twice as much, for garbage.
	// A connection that joins another's tunnel has a quarter of it.
	MemoryCeiling int
	// Congestion is TCP's congestion control, where the system offers it and lets this
	// process choose; empty means bbr, which a lost packet does not slow down, and
	// SystemCongestion leaves what the system has.
	Congestion string
	// ALPN is what both ends negotiate; empty means protocol.ALPN. Edges use another
	// one among themselves.
	ALPN string
	// Logger gets what yamux has to say, at debug level; nil discards it.
	Logger *slog.Logger
}

// withDefaults fills the zero fields in; accepted is the edge's side.
func (o Options) withDefaults(accepted bool) Options {
	if o.KeepAlive <= 0 {
		o.KeepAlive = defaultKeepAlive
	}
	if o.WriteTimeout <= 0 {
		o.WriteTimeout = defaultWriteTimeout
	}
	if o.MaxStreams <= 0 {
		o.MaxStreams = defaultMaxStreams
	}
	if o.MaxIncoming <= 0 {
		o.MaxIncoming = 2*o.MaxStreams + backlog
		if accepted {
			o.MaxIncoming = acceptedMaxIncoming
		}
	}
	if o.Window <= 0 {
		o.Window = defaultWindow
	}
	if o.Congestion == "" {
		o.Congestion = defaultCongestion
	}
	if o.ALPN == "" {
		o.ALPN = protocol.ALPN
	}
	o.Window = max(o.Window, initialWindow)
	if o.MemoryCeiling <= 0 {
		o.MemoryCeiling = defaultMemoryCeiling
	}
	return o
}

// joining is what holds for a connection that joins the tunnel of another: together
// they must not hold several times as much.
func (o Options) joining() Options {
	o.MemoryCeiling /= 4
	return o
}

// backlog is how many streams of the peer's may wait to be accepted.
func (o Options) backlog() int {
	if o.MaxIncoming < smallBacklog {
		return smallBacklog
	}
	return backlog
}

// synCredits is how many SYNs may be on their way unanswered. It stays below the
// backlog, which bounds them in yamux, because the peer may still hold a stream
// that was aborted here.
func (o Options) synCredits() int { return o.backlog() * 3 / 4 }
