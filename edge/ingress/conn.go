package ingress

import (
	"container/list"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"wormhole/shared/gather"
	"wormhole/shared/socket"
)

// maxHandshakeBytes bounds what a client may send before the TLS handshake is
// complete. A ClientHello with post-quantum key shares and a session ticket has
// some 3 KiB.
const maxHandshakeBytes = 8 << 10

var errHandshakeTooLong = errors.New("more than 8 KiB before the end of the handshake")

// conn is an accepted TCP connection. It holds a slot of the ingress until it is
// closed, however that comes about.
type conn struct {
	net.Conn
	door *door
	out  gather.Writer // to Conn
	h1   gathered      // the answer being sent, with HTTP/1.1 over TLS

	// budget is how many bytes may still be read while the handshake lasts; negative
	// means no limit. Only the goroutine that reads touches it.
	budget   int
	deadline time.Time // of the handshake

	idle atomic.Bool // the HTTP server waits for its next request

	place *list.Element // among those who wait; guarded by door.mu
	agent bool          // guarded by door.mu
	http1 *h1Conn       // what the server has, with HTTP/1.1 over TLS; guarded by door.mu

	closing sync.Once
	err     error
}

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) {
	if c.budget < 0 {
		return c.Conn.Read(p)
	}
	if c.budget == 0 {
		return 0, errHandshakeTooLong
	}
	n, err := c.Conn.Read(p[:min(len(p), c.budget)])
	c.budget -= n
	return n, err
}

// Write implements net.Conn.
func (c *conn) Write(p []byte) (int, error) { return c.out.Write(p) }

// Hold and Release make one write of what is written between them; see gather.
func (c *conn) Hold()                             { c.out.Hold() }
func (c *conn) Release() error                    { return c.out.Release() }
func (c *conn) ReleaseNow() (all bool, err error) { return c.out.ReleaseNow() }

// helloRead gives a client that sent its ClientHello the rest of the time for the
// handshake.
func (c *conn) helloRead() { _ = c.SetDeadline(c.deadline) }

// established lifts the limits of the handshake.
func (c *conn) established() {
	c.budget = -1
	_ = c.SetDeadline(time.Time{})
}

// NetConn returns the socket, for those who set its options.
func (c *conn) NetConn() net.Conn { return c.Conn }

// CloseWrite ends the sending direction.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// SetWriteDeadline implements net.Conn. A moment long past gives the client up: the
// connection is reset at once. What a client does not read would stay in the kernel
// for minutes, and TLS would take another five seconds to say goodbye.
func (c *conn) SetWriteDeadline(t time.Time) error {
	if t.IsZero() || time.Since(t) < time.Hour {
		return c.Conn.SetWriteDeadline(t)
	}
	if tcp := socket.TCP(c.Conn); tcp != nil {
		_ = tcp.SetLinger(0)
	}
	return c.Close()
}

// Close implements net.Conn. It is idempotent.
func (c *conn) Close() error {
	c.closing.Do(func() {
		c.err = c.Conn.Close()
		c.door.forget(c)
	})
	return c.err
}
