package ingress

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"golang.org/x/crypto/acme"

	"wormhole/shared/protocol"
	"wormhole/shared/socket"
)

// door accepts the connections of one TCP port and knows those that are open.
type door struct {
	in       *Ingress
	listener net.Listener
	// enter takes a new connection over. It runs on a goroutine of its own.
	enter func(*conn)

	leave sync.Once
	left  chan struct{} // closed when no more connections are wanted
	done  chan struct{} // closed when run has ended
	asked chan struct{} // told when a request began; see lookAfter

	mu       sync.Mutex // guards the fields below and conn.place, conn.agent, conn.http1
	open     map[*conn]struct{}
	waiting  list.List     // of *conn that have not completed the handshake, oldest first
	visitors int           // open connections that are not agents'
	hurried  bool          // there is little time for handshakes; see hurry
	shut     bool          // new connections are closed at once
	changed  chan struct{} // closed at the next change; nil while nobody waits
}

func newDoor(in *Ingress, l net.Listener, enter func(*conn)) *door {
	return &door{
		in: in, listener: l, enter: enter, open: make(map[*conn]struct{}),
		left: make(chan struct{}), done: make(chan struct{}), asked: make(chan struct{}, 1),
	}
}

// run accepts until the listener is closed or stopAccepting is called, and then
// closes the listener.
func (d *door) run() error {
	defer close(d.done)
	defer d.listener.Close()
	const firstPause = 5 * time.Millisecond
	pause := firstPause
	for {
		// The slot comes first: at the limit, clients wait in the kernel's queue and no
		// descriptor is spent on them.
		select {
		case d.in.slots <- struct{}{}:
		case <-d.left:
			return nil
		case <-d.in.closed:
			return nil
		}
		raw, err := d.listener.Accept()
		if err != nil {
			<-d.in.slots
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return d.lost(err)
			}
			// Such as no descriptors left, or a client gone before it was accepted: the
			// listener is good, so try again.
			d.in.noise.say("connection not accepted", nil, err)
			select {
			case <-time.After(pause):
			case <-d.in.closed:
				return nil
			}
			pause = min(2*pause, time.Second)
			continue
		}
		pause = firstPause
		boundUnsent(raw)
		c := &conn{Conn: socket.Direct(raw), door: d, budget: -1}
		c.out.W = c.Conn
		if d.admit(c) {
			d.in.work.Go(func() { d.enter(c) })
		}
	}
}

// lost is the error of a listener that was closed by somebody else.
func (d *door) lost(err error) error {
	select {
	case <-d.in.closed:
		return nil
	default:
		return err
	}
}

// stopAccepting makes run take those who are in the kernel's queue already, and
// end.
func (d *door) stopAccepting() {
	d.leave.Do(func() {
		close(d.left)
		if l, ok := d.listener.(interface{ SetDeadline(time.Time) error }); ok {
			if l.SetDeadline(time.Now().Add(20*time.Millisecond)) == nil {
				return
			}
		}
		d.mu.Lock()
		d.shut = true
		d.mu.Unlock()
		_ = d.listener.Close()
	})
}

// admit notes a new connection as waiting. If too many wait, the oldest is closed:
// whoever connects and stays silent makes room for those who do not.
func (d *door) admit(c *conn) bool {
	d.mu.Lock()
	shut := d.shut
	d.open[c] = struct{}{}
	d.visitors++
	c.place = d.waiting.PushBack(c)
	var oldest *conn
	if d.waiting.Len() > d.in.cfg.MaxHandshakes {
		oldest = d.waiting.Front().Value.(*conn)
		d.unqueue(oldest)
	}
	d.mu.Unlock()
	if shut {
		_ = c.Close()
		return false
	}
	if oldest != nil {
		_ = oldest.Close()
	}
	return true
}

// settle notes that a connection has completed its handshake, and whose it is.
func (d *door) settle(c *conn, agent bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unqueue(c)
	if _, open := d.open[c]; open && agent {
		c.agent = true
		d.visitors--
	}
	d.change()
}

// forget is called once for each connection that is closed.
func (d *door) forget(c *conn) {
	d.mu.Lock()
	d.unqueue(c)
	delete(d.open, c)
	if !c.agent {
		d.visitors--
	}
	d.change()
	h1 := c.http1
	d.mu.Unlock()
	if h1 != nil {
		h1.gone() // nobody may be reading, who would notice
	}
	<-d.in.slots
}

// unqueue takes c out of those who wait. d.mu is held.
func (d *door) unqueue(c *conn) {
	if c.place != nil {
		d.waiting.Remove(c.place)
		c.place = nil
	}
}

// change wakes those in await. d.mu is held.
func (d *door) change() {
	if d.changed != nil {
		close(d.changed)
		d.changed = nil
	}
}

// await waits until done, which is asked with d.mu held, or until ctx ends.
func (d *door) await(ctx context.Context, done func() bool) error {
	for {
		d.mu.Lock()
		if done() {
			d.mu.Unlock()
			return nil
		}
		if d.changed == nil {
			d.changed = make(chan struct{})
		}
		changed := d.changed
		d.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// hurriedHello is how long clients have for their ClientHello once the door closes.
// It follows the last packet of TCP's own handshake at once; this allows for a
// retransmission of either by a client that has not measured the way yet (RFC 6298:
// one second), and for one whose machine is busy. With half a second, an upgrade on
// a machine with ten times the load it can carry cut 14 of 600 connections.
const hurriedHello = 1500 * time.Millisecond

// hurry leaves those who have not sent their ClientHello little time.
func (d *door) hurry() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hurried = true
	deadline := time.Now().Add(hurriedHello)
	for e := d.waiting.Front(); e != nil; e = e.Next() {
		_ = e.Value.(*conn).SetReadDeadline(deadline)
	}
}

// startHandshake sets the limits that hold until c.established.
func (d *door) startHandshake(c *conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	c.budget = maxHandshakeBytes
	c.deadline = now.Add(d.in.cfg.HandshakeTimeout)
	hello := d.in.cfg.HelloTimeout
	if d.hurried {
		hello = min(hello, hurriedHello)
	}
	_ = c.SetDeadline(now.Add(hello))
}

// closeConns closes every connection that is open, or those of visitors only, and
// those that are accepted later.
func (d *door) closeConns(agentsToo bool) {
	d.mu.Lock()
	d.shut = true
	conns := make([]*conn, 0, len(d.open))
	for c := range d.open {
		if agentsToo || !c.agent {
			conns = append(conns, c)
		}
	}
	d.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
	}
}

// openTCP prepares the doors and servers of the TCP ports.
func (in *Ingress) openTCP() {
	in.handed = newHandoff(in.https.Addr())
	in.visitor = in.server(http.HandlerFunc(in.serveVisitor))
	in.tcp = newDoor(in, in.https, in.enterTLS)
	if in.http != nil {
		in.opened = newHandoff(in.http.Addr())
		plain := in.to.Plain
		if plain == nil {
			plain = http.NotFoundHandler()
		}
		in.clear = in.server(plain)
		in.plain = newDoor(in, in.http, in.enterPlain)
	}
}

// enterTLS completes the handshake and leads the connection to whom it belongs.
func (in *Ingress) enterTLS(c *conn) {
	c.door.startHandshake(c)
	secure := tls.Server(c, in.visitorTLS)
	if err := secure.Handshake(); err != nil {
		in.refuseTLS(c, err)
		return
	}
	c.established()
	if secure.ConnectionState().NegotiatedProtocol == acme.ALPNProto {
		_ = secure.Close() // the CA has seen what it wanted; nothing may follow
		return
	}
	if serve := in.longLived(secure.ConnectionState().NegotiatedProtocol); serve != nil {
		c.door.settle(c, true)
		defer secure.Close()
		serve(in.agents, secure)
		return
	}
	if secure.ConnectionState().NegotiatedProtocol == "h2" {
		in.handed.give(secure)
	} else {
		c.door.serveH1(c, secure)
	}
	c.door.settle(c, false) // only now, since Shutdown waits for it
}

// longLived returns who serves connections that are not visitors', nil for theirs.
func (in *Ingress) longLived(alpn string) func(context.Context, *tls.Conn) {
	switch alpn {
	case "", "http/1.1", "h2":
		return nil
	case protocol.ALPN:
		return in.to.Agent
	}
	for _, other := range in.to.Others {
		if other.ALPN == alpn {
			return other.Serve
		}
	}
	return nil
}

// refuseTLS ends a connection whose handshake failed.
func (in *Ingress) refuseTLS(c *conn, err error) {
	// The commonest mistake deserves an answer that a person can read.
	if notTLS, ok := errors.AsType[tls.RecordHeaderError](err); ok && notTLS.Conn != nil && looksLikeHTTP(notTLS.RecordHeader) {
		_ = c.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = c.Write([]byte("HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nThis port speaks HTTPS.\n"))
	}
	_ = c.Close()
	in.noise.say("tls handshake failed", c.RemoteAddr(), err)
}

func looksLikeHTTP(head [5]byte) bool {
	switch string(head[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO", "DELET", "PATCH":
		return true
	}
	return false
}

func (in *Ingress) enterPlain(c *conn) {
	in.opened.give(c)
	c.door.settle(c, false)
}
