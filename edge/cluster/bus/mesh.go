package bus

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// mesh is the NATS server of this edge and a connection to it, or a connection to
// servers that somebody else runs.
type mesh struct {
	nats *server.Server // nil with servers of others
	opts *server.Options
	conn *nats.Conn
}

// openMesh starts a server whose routes listen on addr and go to routes.
func openMesh(network, node, addr, advertise string, routes []string, conf *tls.Config, logger *slog.Logger) (*mesh, error) {
	host, portText, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("mesh: %w", err)
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		return nil, fmt.Errorf("mesh: %q is not a port", portText)
	}
	if port == 0 {
		port = server.RANDOM_PORT
	}
	if host == "" {
		host = "0.0.0.0"
	}
	var secret [24]byte
	_, _ = rand.Read(secret[:]) // never fails
	opts := &server.Options{
		ServerName: node,
		// Without a listener for clients there would be no routing either: it gets a
		// port of loopback and a secret that nobody else knows.
		Host: "127.0.0.1", Port: server.RANDOM_PORT, Authorization: hex.EncodeToString(secret[:]),
		NoSigs: true, MaxPayload: 2 << 20, DisableShortFirstPing: true,
		Cluster: server.ClusterOpts{
			Name: network, Host: host, Port: port, Advertise: advertise,
			TLSConfig: conf, TLSTimeout: 5, AuthTimeout: 5,
			PoolSize: -1, PingInterval: time.Second, MaxPingsOut: 2,
			// Implicit routes are tried for as long as the process lives, so that a mesh
			// that was cut grows together again.
			ConnectRetries: 1 << 30,
			Compression:    server.CompressionOpts{Mode: server.CompressionOff},
		},
		Routes: urls(routes),
	}
	ns, err := server.NewServer(opts)
	if err != nil {
		return nil, fmt.Errorf("mesh: %w", err)
	}
	ns.SetLoggerV2(quietLog{logger}, false, false, false)
	m := &mesh{nats: ns, opts: opts}
	ns.Start()
	if !ns.ReadyForConnections(10 * time.Second) {
		m.close()
		return nil, fmt.Errorf("mesh: %s cannot be listened on", addr)
	}
	m.conn, err = nats.Connect(ns.ClientURL(), nats.InProcessServer(ns), nats.Token(opts.Authorization),
		nats.MaxReconnects(-1), nats.ReconnectBufSize(-1), nats.NoEcho())
	if err != nil {
		m.close()
		return nil, fmt.Errorf("mesh: %w", err)
	}
	return m, nil
}

// joinMesh connects to servers that somebody else runs. joined is called whenever the
// connection is there again.
func joinMesh(connect func(...nats.Option) (*nats.Conn, error), joined func()) (*mesh, error) {
	conn, err := connect(nats.NoEcho(), nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.IgnoreAuthErrorAbort(),
		nats.ReconnectWait(250*time.Millisecond), nats.ReconnectJitter(100*time.Millisecond, 100*time.Millisecond),
		nats.ReconnectBufSize(-1), nats.Timeout(2*time.Second), nats.PingInterval(2*time.Second), nats.MaxPingsOutstanding(2),
		nats.ConnectHandler(func(*nats.Conn) { joined() }), nats.ReconnectHandler(func(*nats.Conn) { joined() }))
	if err != nil {
		return nil, fmt.Errorf("bus: %w", err)
	}
	return &mesh{conn: conn}, nil
}

// routes counts the servers that this one is joined with.
func (m *mesh) routes() int {
	if m.nats == nil {
		return 0
	}
	return m.nats.NumRoutes()
}

// addr is where routes are accepted.
func (m *mesh) addr() string {
	if m.nats == nil {
		return ""
	}
	if a := m.nats.ClusterAddr(); a != nil {
		return a.String()
	}
	return ""
}

// setRoutes replaces the addresses to connect to.
func (m *mesh) setRoutes(routes []string) error {
	if m.nats == nil {
		return nil
	}
	slices.Sort(routes)
	next := m.opts.Clone()
	next.Routes = urls(routes)
	if slices.EqualFunc(m.opts.Routes, next.Routes, func(a, b *url.URL) bool { return a.Host == b.Host }) {
		return nil
	}
	if err := m.nats.ReloadOptions(next); err != nil {
		return fmt.Errorf("mesh: %w", err)
	}
	m.opts.Routes = next.Routes
	return nil
}

func (m *mesh) close() {
	if m.conn != nil {
		m.conn.Close()
	}
	if m.nats == nil {
		return
	}
	m.nats.Shutdown()
	m.nats.WaitForShutdown()
}

func urls(addrs []string) []*url.URL {
	out := make([]*url.URL, 0, len(addrs))
	for _, a := range addrs {
		out = append(out, &url.URL{Scheme: "nats-route", Host: a})
	}
	return out
}

// subscribe calls f with each message, one after another.
func (m *mesh) subscribe(subject string, f func([]byte)) error {
	sub, err := m.conn.Subscribe(subject, func(msg *nats.Msg) { f(msg.Data) })
	if err != nil {
		return err
	}
	err = sub.SetPendingLimits(MaxPending, 256<<20)
	if m.nats != nil { // servers of others may be away, and are told when they come
		err = errors.Join(err, m.conn.Flush())
	}
	return err
}

// quietLog passes what the server says on at debug level: that a peer is gone is
// ordinary, and told by Status.
type quietLog struct{ logger *slog.Logger }

func (l quietLog) say(format string, v []any) {
	l.logger.Debug("mesh", "err", fmt.Sprintf(format, v...))
}

func (l quietLog) Noticef(format string, v ...any) { l.say(format, v) }
func (l quietLog) Warnf(format string, v ...any)   { l.say(format, v) }
func (l quietLog) Fatalf(format string, v ...any)  { l.say(format, v) }
func (l quietLog) Errorf(format string, v ...any)  { l.say(format, v) }
func (l quietLog) Debugf(string, ...any)           {}
func (l quietLog) Tracef(string, ...any)           {}
