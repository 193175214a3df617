package oracle

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// Client speaks one version of HTTP, with connections of its own, and does not
// cover up failures; see the package's comment. It may be used concurrently.
type Client struct {
	proto  string
	url    string // scheme and host
	roots  *x509.CertPool
	addr   Addr
	http   *http.Client
	dialed atomic.Int64
	close  func()
}

// Addr says which address (host:port) to dial now.
type Addr func(context.Context) (string, error)

// At is always the same address.
func At(addr string) Addr { return func(context.Context) (string, error) { return addr, nil } }

// ClientConfig says whom a client asks.
type ClientConfig struct {
	Proto string         // "h1", "h2", "h3"; "h1" with an http URL is in the clear
	URL   string         // such as https://app.example.com, without a path
	Roots *x509.CertPool // verify the server
	Addr  Addr           // where to dial, whatever the URL says
}

// NewClient makes a client. Close must be called.
func NewClient(cfg ClientConfig) (*Client, error) {
	c := &Client{proto: cfg.Proto, url: cfg.URL, roots: cfg.Roots, addr: cfg.Addr}
	c.http = &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	switch cfg.Proto {
	case "h1", "h2":
		c.useTCP()
	case "h3":
		c.useQUIC()
	default:
		return nil, fmt.Errorf("oracle: protocol %q is none of h1, h2, h3", cfg.Proto)
	}
	return c, nil
}

// Close ends its connections.
func (c *Client) Close() { c.close() }

// Dialed counts the connections opened so far.
func (c *Client) Dialed() int64 { return c.dialed.Load() }

func (c *Client) tlsConfig(alpn ...string) *tls.Config {
	return &tls.Config{RootCAs: c.roots, MinVersion: tls.VersionTLS12, NextProtos: alpn}
}

func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	addr, err := c.addr(ctx)
	if err != nil {
		return nil, err
	}
	c.dialed.Add(1)
	return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
}

func (c *Client) useTCP() {
	transport := &http.Transport{
		TLSClientConfig:     c.tlsConfig(),
		MaxIdleConnsPerHost: 256,
		DisableCompression:  true,
		Protocols:           new(http.Protocols),
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := c.dial(ctx)
			if err != nil || c.proto != "h1" {
				return conn, err
			}
			return &counted{Conn: conn}, nil
		},
	}
	if c.proto == "h2" {
		transport.Protocols.SetHTTP2(true)
	} else {
		transport.Protocols.SetHTTP1(true)
		transport.DialTLSContext = func(ctx context.Context, _, addr string) (net.Conn, error) {
			raw, err := c.dial(ctx)
			if err != nil {
				return nil, err
			}
			conf := c.tlsConfig("http/1.1")
			conf.ServerName, _, _ = net.SplitHostPort(addr)
			conn := tls.Client(raw, conf)
			if err := conn.HandshakeContext(ctx); err != nil {
				_ = raw.Close()
				return nil, err
			}
			return &counted{Conn: conn}, nil
		}
	}
	c.http.Transport = transport
	c.close = transport.CloseIdleConnections
}

// useQUIC keeps one UDP socket for all connections, as a browser does, so that
// giving up a connection leaves nothing behind.
func (c *Client) useQUIC() {
	var mu sync.Mutex // guards socket
	var socket *quic.Transport
	transport := &http3.Transport{
		TLSClientConfig:    c.tlsConfig(),
		DisableCompression: true,
		Dial: func(ctx context.Context, _ string, conf *tls.Config, qc *quic.Config) (*quic.Conn, error) {
			addr, err := c.addr(ctx)
			if err != nil {
				return nil, err
			}
			to, err := net.ResolveUDPAddr("udp", addr)
			if err != nil {
				return nil, err
			}
			mu.Lock()
			if socket == nil {
				conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
				if err != nil {
					mu.Unlock()
					return nil, err
				}
				socket = &quic.Transport{Conn: conn}
			}
			from := socket
			mu.Unlock()
			c.dialed.Add(1)
			return from.Dial(ctx, to, conf, qc)
		},
	}
	c.http.Transport = transport
	c.close = func() {
		_ = transport.Close()
		mu.Lock()
		defer mu.Unlock()
		if socket != nil {
			_ = socket.Close()
			_ = socket.Conn.Close()
		}
	}
}

// Question is one request of a test's own.
type Question struct {
	Method  string // GET when empty
	Path    string // with its query
	Body    []byte
	Chunked bool   // send the body without its length
	ID      string // made when empty
}

// Reply is what came of it.
type Reply struct {
	ID     string
	Status int // 0 without an answer
	Header http.Header
	Body   []byte
	Err    error // also when the answer's body did not come to its end
	Took   time.Duration
}

// Ask sends one request, stamped with an id, and reads the whole answer.
func (c *Client) Ask(ctx context.Context, q Question) Reply {
	if q.ID == "" {
		q.ID = newID()
	}
	if q.Method == "" {
		q.Method = http.MethodGet
	}
	began := time.Now()
	for {
		sent := new(sending)
		reply := c.once(httptrace.WithClientTrace(ctx, sent.trace()), q)
		// A kept connection that was closed before anything was written to it was never
		// a connection to send on.
		if reply.Err == nil || reply.Status != 0 || c.proto != "h1" || !sent.nothing() || ctx.Err() != nil {
			reply.ID, reply.Took = q.ID, time.Since(began)
			return reply
		}
	}
}

func (c *Client) once(ctx context.Context, q Question) (reply Reply) {
	r, err := c.request(ctx, q)
	if err != nil {
		return Reply{Err: err}
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return Reply{Err: err}
	}
	defer resp.Body.Close()
	reply.Status, reply.Header = resp.StatusCode, resp.Header
	reply.Body, reply.Err = io.ReadAll(resp.Body)
	return reply
}

func (c *Client) request(ctx context.Context, q Question) (*http.Request, error) {
	var body io.Reader
	if q.Body != nil {
		body = bytes.NewReader(q.Body)
	}
	if q.Chunked {
		body = struct{ io.Reader }{body}
	}
	r, err := http.NewRequestWithContext(ctx, q.Method, c.url+q.Path, body)
	if err != nil {
		return nil, err
	}
	r.Header.Set(IDHeader, q.ID)
	switch {
	case c.proto == "h1":
		// Without GetBody, net/http takes a request with a body for one that cannot be
		// sent twice. An empty body is found to be empty and does not reach the wire.
		r.GetBody = nil
		if q.Body == nil {
			r.Body = empty{}
		}
	case q.Body != nil: // what a server did not process may be sent again
		r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(q.Body)), nil }
	}
	return r, nil
}

// empty is a body without bytes that is not http.NoBody.
type empty struct{}

func (empty) Read([]byte) (int, error) { return 0, io.EOF }
func (empty) Close() error             { return nil }

// counted counts the bytes written to a connection.
type counted struct {
	net.Conn
	written atomic.Int64
}

func (c *counted) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.written.Add(int64(n))
	return n, err
}

// sending watches whether a request got onto the wire.
type sending struct {
	mu     sync.Mutex // guards what follows
	conn   *counted
	before int64
	reused bool
}

func (s *sending) trace() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if conn, ok := info.Conn.(*counted); ok {
			s.conn, s.before, s.reused = conn, conn.written.Load(), info.Reused
		}
	}}
}

// nothing reports whether a kept connection was given and not one byte was written.
func (s *sending) nothing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn != nil && s.reused && s.conn.written.Load() == s.before
}
