package forward

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"time"

	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
)

var errNoEndpoint = errors.New("the app's address is not known yet")

// Config says where the app is and how long to wait for it. Zero values take the
// defaults.
type Config struct {
	// Endpoint is the app's address. It may be zero and set later by SetEndpoint;
	// until then every stream is refused as not ready.
	Endpoint Endpoint
	// DialTimeout bounds one connect to the app, TLS included; default 5 s.
	DialTimeout time.Duration
	// HeaderTimeout bounds reading a stream's header; default 5 s.
	HeaderTimeout time.Duration
	// MaxStreams is the most streams joined at once, over all tunnels; default 10,000.
	MaxStreams int

	// ReadyPath is requested to learn whether the app is ready; any 2xx is yes.
	// Empty: it is ready when it accepts a connection.
	ReadyPath string
	// HealthInterval is the time between two checks of a ready app; default 5 s.
	HealthInterval time.Duration
	// HealthTimeout bounds one check; default 2 s.
	HealthTimeout time.Duration
	// HealthThreshold is how many checks must fail in a row before a ready app is
	// taken for unready; default 3. A port that nobody listens on counts at once.
	HealthThreshold int
}

func (c Config) withDefaults() Config {
	if c.DialTimeout == 0 {
		c.DialTimeout = 5 * time.Second
	}
	if c.HeaderTimeout == 0 {
		c.HeaderTimeout = 5 * time.Second
	}
	if c.MaxStreams == 0 {
		c.MaxStreams = 10_000
	}
	if c.HealthInterval == 0 {
		c.HealthInterval = 5 * time.Second
	}
	if c.HealthTimeout == 0 {
		c.HealthTimeout = 2 * time.Second
	}
	if c.HealthThreshold == 0 {
		c.HealthThreshold = 3
	}
	return c
}

// Forwarder joins streams to one app. All methods may be called concurrently. It
// starts no goroutine that outlives the call.
type Forwarder struct {
	cfg      Config
	endpoint atomic.Pointer[Endpoint]
	dialer   net.Dialer
	answered atomic.Int32 // index of the endpoint's address that answered last
	open     atomic.Int64 // streams being served
	doubt    chan struct{}
	pools    pools
	totals   totals
}

// New makes a Forwarder.
func New(cfg Config) *Forwarder {
	f := &Forwarder{cfg: cfg.withDefaults(), doubt: make(chan struct{}, 1)}
	f.dialer.Timeout = f.cfg.DialTimeout
	if !cfg.Endpoint.IsZero() {
		f.SetEndpoint(cfg.Endpoint)
	}
	return f
}

// SetEndpoint changes the app's address for streams and checks that follow.
func (f *Forwarder) SetEndpoint(e Endpoint) {
	f.answered.Store(0)
	f.endpoint.Store(&e)
}

// Endpoint is the app's address, zero if it is not known yet.
func (f *Forwarder) Endpoint() Endpoint {
	if e := f.endpoint.Load(); e != nil {
		return *e
	}
	return Endpoint{}
}

// Serve carries one stream that the edge opened until both sides have ended, and
// closes it. gate is asked once, after the header was read: any value but
// AnswerOK refuses the stream. ended is called at most once, and before the
// stream's end reaches the edge, if the app's side ends first. When ctx ends,
// both sides are reset.
func (f *Forwarder) Serve(ctx context.Context, stream tunnel.Stream, gate func() protocol.Answer, ended func(protocol.StreamEnd)) {
	defer func() { _ = stream.Close() }()
	open := f.open.Add(1)
	defer f.open.Add(-1)
	f.totals.served.Add(1)
	stop := context.AfterFunc(ctx, stream.Abort)
	defer stop()

	_ = stream.SetReadDeadline(time.Now().Add(f.cfg.HeaderTimeout))
	header, err := protocol.ReadStreamHeader(stream)
	if err != nil {
		if ctx.Err() == nil && !errors.Is(err, tunnel.ErrAborted) {
			f.totals.refused.Add(1)
			answer(stream, protocol.AnswerUnsupported)
		}
		return
	}
	_ = stream.SetReadDeadline(time.Time{})

	if a := f.check(header, open, gate); a != protocol.AnswerOK {
		f.totals.refused.Add(1)
		answer(stream, a)
		return
	}
	dialCtx, cancel := context.WithTimeout(ctx, f.cfg.DialTimeout)
	app, err := f.dial(dialCtx, header.Kind == protocol.KindTLS)
	cancel()
	if err != nil {
		f.raiseDoubt()
		f.totals.refused.Add(1)
		f.totals.unreachable.Add(1)
		answer(stream, refusal(err))
		return
	}
	if header.Kind != protocol.KindHTTP {
		// Raw bytes do not show that some are missing: only two proper ends end it
		// properly; see join.run.
		resetOnClose(app, true)
	}
	// A write to an app that does not read is interrupted by nothing else.
	stopApp := context.AfterFunc(ctx, func() { reset(app) })
	defer stopApp()
	if _, err := stream.Write([]byte{byte(protocol.AnswerOK)}); err != nil {
		reset(app)
		return
	}
	j := &join{kind: header.Kind, stream: stream, app: app, pools: &f.pools, totals: &f.totals, ended: ended, over: make(chan struct{})}
	j.run()
}

// Streams counts the streams being served now.
func (f *Forwarder) Streams() int { return int(f.open.Load()) }

func (f *Forwarder) check(h protocol.StreamHeader, open int64, gate func() protocol.Answer) protocol.Answer {
	switch h.Kind {
	case protocol.KindHTTP, protocol.KindTCP, protocol.KindTLS:
	default:
		return protocol.AnswerUnsupported
	}
	if h.Port != "" {
		return protocol.AnswerNoSuchPort
	}
	if open > int64(f.cfg.MaxStreams) {
		return protocol.AnswerFull
	}
	return gate()
}

// answer refuses the stream, cleanly in our direction so that the byte arrives,
// and reads nothing more.
func answer(stream tunnel.Stream, a protocol.Answer) {
	_ = stream.SetWriteDeadline(time.Now().Add(5 * time.Second))
	if _, err := stream.Write([]byte{byte(a)}); err != nil {
		return
	}
	if err := stream.CloseWrite(); err != nil {
		return
	}
	// Closing now would abort the stream and might overtake the answer. The edge
	// closes when it has read it.
	_ = stream.SetReadDeadline(time.Now().Add(5 * time.Second))
	var scrap [512]byte
	for {
		if _, err := stream.Read(scrap[:]); err != nil {
			return
		}
	}
}
