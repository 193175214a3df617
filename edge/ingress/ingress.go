// Package ingress is the public door of an edge: one TCP port and the UDP port of
// the same number, for visitors and agents alike, and a port for plain HTTP.
//
// Whoever connects has a few seconds and a few KiB to complete a TLS handshake.
// The protocol negotiated there (ALPN) decides who takes over: agents speak
// protocol.ALPN over TLS or QUIC, visitors HTTP/1.1 and 2 over TLS, and HTTP/3
// over QUIC. No byte of anybody passes through further copies or goroutines once
// that is settled.
//
// Guarantees: a server name without a certificate is answered with an alert before
// anything is looked up outside memory; connections are accepted only while file
// descriptors are left; a flood of nonsense writes one log line a second; Shutdown
// lets requests in flight finish and tells HTTP/2 and HTTP/3 clients where the
// accepted ones end (GOAWAY).
package ingress

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/quic-go/quic-go"
)

// Certificates is where TLS handshakes get their certificates. It must answer
// from memory for names it does not know.
type Certificates interface {
	GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error)
}

// Handlers are whom the door leads to. Visitor is required.
type Handlers struct {
	// Visitor serves HTTP over TLS and QUIC.
	Visitor http.Handler
	// Agent serves an agent's connection after the TLS handshake, until the tunnel
	// ends. The connection is closed when it returns. ctx ends with the ingress.
	Agent func(ctx context.Context, conn *tls.Conn)
	// AgentQUIC does the same for QUIC.
	AgentQUIC func(ctx context.Context, conn *quic.Conn)
	// Plain serves HTTP without TLS.
	Plain http.Handler
	// Others are further protocols over TLS, such as those of edges among themselves.
	Others []Other
}

// Other is a protocol with a TLS configuration of its own.
type Other struct {
	// ALPN is what clients offer.
	ALPN string
	// TLS is for their handshake; its NextProtos must be ALPN alone.
	TLS *tls.Config
	// Serve takes a connection over after the handshake. The connection is closed
	// when it returns. ctx ends with the ingress.
	Serve func(ctx context.Context, conn *tls.Conn)
}

// Config says where to listen, and the limits. Zero fields have the defaults.
type Config struct {
	// HTTPS is the address for TLS over TCP and, unless DisableQUIC is set, for QUIC
	// over UDP. Port 0 takes a port that is free for both.
	HTTPS string
	// HTTP is the address for plain HTTP; empty for none.
	HTTP string
	// DisableQUIC leaves the UDP port alone.
	DisableQUIC bool

	// HTTPSListener, HTTPListener and QUICConn are sockets that are open already;
	// they take the place of the addresses above. The ingress closes them.
	HTTPSListener net.Listener
	HTTPListener  net.Listener
	QUICConn      net.PacketConn
	// QUICAfter, unless nil, keeps QUIC from reading its socket until it is closed:
	// until then another process answers there.
	QUICAfter <-chan struct{}

	// AltSvcPort is the UDP port that clients reach from outside, if it is not the
	// one listened on.
	AltSvcPort int

	// HelloTimeout is how long a client has to send its ClientHello (default 5s), and
	// HandshakeTimeout to complete the handshake (default 10s).
	HelloTimeout     time.Duration
	HandshakeTimeout time.Duration
	// HeaderTimeout is how long a client has to send a request head (default 10s).
	HeaderTimeout time.Duration
	// IdleTimeout is how long a connection may be without a request (default 75s; 30s
	// for QUIC at most).
	IdleTimeout time.Duration
	// MaxHeaderBytes is the largest request head (default 64 KiB).
	MaxHeaderBytes int

	// MaxConns bounds the TCP connections open at once (default: seven eighths of
	// the file descriptors the process may have). At the limit, new ones wait in the
	// kernel.
	MaxConns int
	// MaxHandshakes bounds the TCP connections that have not completed the handshake
	// (default 4096). At the limit, the one that waited longest is closed for each
	// new one.
	MaxHandshakes int
	// MaxQUICConns bounds the QUIC connections open at once (default 10,000); more
	// are refused.
	MaxQUICConns int

	// QUIC takes the place of the built-in QUIC settings.
	QUIC *quic.Config
	// StatelessResetKey and TokenGeneratorKey are shared by the edges that answer
	// under one address; nil makes random ones.
	StatelessResetKey *quic.StatelessResetKey
	TokenGeneratorKey *quic.TokenGeneratorKey
}

func (c *Config) setDefaults() {
	setDefault(&c.HelloTimeout, 5*time.Second)
	setDefault(&c.HandshakeTimeout, 10*time.Second)
	setDefault(&c.HeaderTimeout, 10*time.Second)
	setDefault(&c.IdleTimeout, 75*time.Second)
	setDefault(&c.MaxHeaderBytes, 64<<10)
	setDefault(&c.MaxConns, connsForDescriptors())
	setDefault(&c.MaxHandshakes, 4096)
	setDefault(&c.MaxQUICConns, 10_000)
}

func setDefault[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}

// connsForDescriptors leaves an eighth of the descriptors, at least 64, for files
// and outgoing connections.
func connsForDescriptors() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 1000
	}
	n := int(min(limit.Cur, 1<<20))
	return max(n-max(n/8, 64), 16)
}

// Ingress is the door. Its life is New, Listen, Serve; Shutdown may be called while
// Serve runs.
type Ingress struct {
	cfg   Config
	certs Certificates
	to    Handlers
	log   *slog.Logger
	noise *noise // log lines that a stranger can cause

	https  net.Listener
	http   net.Listener
	packet net.PacketConn

	visitorTLS, agentTLS *tls.Config

	tcp     *door                    // for TLS
	plain   *door                    // for plain HTTP; nil without
	visitor *http.Server             // fed by handed
	clear   *http.Server             // fed by opened
	handed  *handoff                 // from tcp to visitor
	opened  *handoff                 // from plain to clear
	quic    atomic.Pointer[quicDoor] // nil without QUIC, and while it has to wait

	slots  chan struct{}      // holds one token for each TCP connection open
	agents context.Context    // of the handlers of agents
	stop   context.CancelFunc // ends agents
	work   sync.WaitGroup     // all goroutines of the ingress

	started atomic.Bool // Serve began
	drains  atomic.Bool // Shutdown or Close began
	failed  chan error  // why a listener ended that should not have
	closing sync.Once
	closed  chan struct{} // closed when Close began
	ended   chan struct{} // closed when Close is done
}

// New prepares an ingress; it opens nothing yet. The error lists every fault in cfg.
func New(cfg Config, certs Certificates, h Handlers, logger *slog.Logger) (*Ingress, error) {
	cfg.setDefaults()
	var faults []error
	if certs == nil || h.Visitor == nil {
		faults = append(faults, errors.New("ingress: certificates and a handler for visitors are required"))
	}
	if cfg.HTTPS == "" && cfg.HTTPSListener == nil {
		faults = append(faults, errors.New("https: an address is required"))
	}
	if cfg.AltSvcPort < 0 || cfg.AltSvcPort > 65535 {
		faults = append(faults, fmt.Errorf("alt-svc port: %d is not a port", cfg.AltSvcPort))
	}
	if cfg.MaxConns < 1 || cfg.MaxHandshakes < 1 || cfg.MaxQUICConns < 1 || cfg.MaxHeaderBytes < 1<<10 {
		faults = append(faults, errors.New("ingress: a limit is too low"))
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	in := &Ingress{
		cfg: cfg, certs: certs, to: h, log: logger, noise: newNoise(logger),
		slots:  make(chan struct{}, cfg.MaxConns),
		failed: make(chan error, 1),
		closed: make(chan struct{}),
		ended:  make(chan struct{}),
	}
	in.agents, in.stop = context.WithCancel(context.Background())
	in.visitorTLS, in.agentTLS = in.tlsConfigs()
	return in, nil
}

// Serve serves until ctx ends, and then closes everything at once; for a gentle end
// call Shutdown first. It returns nil after ctx ended or Close was called, an error
// when a listener failed. Listen must have succeeded.
func (in *Ingress) Serve(ctx context.Context) error {
	if in.https == nil {
		return errors.New("ingress: Serve before Listen")
	}
	if !in.started.CompareAndSwap(false, true) {
		return errors.New("ingress: Serve was called twice")
	}
	in.work.Go(func() { in.report(in.visitor.Serve(in.handed)) })
	in.work.Go(func() { in.report(in.tcp.run()) })
	in.work.Go(in.tcp.lookAfter)
	if in.http != nil {
		in.work.Go(func() { in.report(in.clear.Serve(in.opened)) })
		in.work.Go(func() { in.report(in.plain.run()) })
	}
	if in.packet != nil {
		in.work.Go(func() { in.report(in.serveQUIC()) })
	}
	var err error
	select {
	case <-ctx.Done():
	case <-in.closed:
	case err = <-in.failed:
	}
	return errors.Join(err, in.Close())
}

// report notes the end of a loop that should not have ended.
func (in *Ingress) report(err error) {
	if err == nil || errors.Is(err, http.ErrServerClosed) || in.drains.Load() {
		return
	}
	select {
	case in.failed <- err:
	default:
	}
}

// Close ends everything at once: listeners, requests, tunnels. It is idempotent,
// and waits until the handlers of agents have returned.
func (in *Ingress) Close() error {
	in.closing.Do(func() {
		in.drains.Store(true)
		close(in.closed)
		in.stop()
		if in.https != nil {
			in.closeTCP()
		}
		if d := in.quic.Load(); d != nil {
			d.close()
		} else if in.packet != nil {
			_ = in.packet.Close()
		}
		in.work.Wait()
		close(in.ended)
	})
	<-in.ended
	return nil
}
