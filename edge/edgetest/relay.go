package edgetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/time/rate"
)

// Relay is a stretch of network between an agent and an edge that a test can make
// worse: TCP and UDP on one port of loopback. All methods may be called
// concurrently; everything ends with the test.
type Relay struct {
	tb     testing.TB
	target string
	tcp    net.Listener
	udp    *net.UDPConn
	wg     sync.WaitGroup
	ctx    context.Context // ends with the test
	cancel context.CancelFunc

	mu      sync.Mutex // guards what follows
	links   map[*relayed]struct{}
	flows   map[string]*flow
	open    chan struct{} // closed while TCP bytes pass
	refuse  bool
	noUDP   bool
	delay   time.Duration // each way of TCP
	limiter *rate.Limiter // bytes a second each way of a connection; nil is no limit
}

// relayed is one TCP connection through the relay.
type relayed struct{ a, b *net.TCPConn }

// flow is the datagrams of one client.
type flow struct {
	client *net.UDPAddr
	socket *net.UDPConn // towards the target
}

const (
	// burst is how many bytes a limited connection may pass at once.
	burst = 4 << 10
	// queue is the relay's own memory for each direction of a limited connection.
	queue = 12 << 10
)

// StartRelay relays to target (host:port) from a free port of 127.0.0.1.
func StartRelay(tb testing.TB, target string) *Relay {
	tb.Helper()
	r := &Relay{tb: tb, target: target, links: map[*relayed]struct{}{}, flows: map[string]*flow{}, open: make(chan struct{})}
	close(r.open)
	r.ctx, r.cancel = context.WithCancel(context.Background())
	var err error
	for range 20 { // until a port is free for both
		if r.tcp, err = (&net.ListenConfig{Control: smallSegments}).Listen(r.ctx, "tcp", "127.0.0.1:0"); err != nil {
			break
		}
		at := r.tcp.Addr().(*net.TCPAddr)
		if r.udp, err = net.ListenUDP("udp", &net.UDPAddr{IP: at.IP, Port: at.Port}); err == nil {
			break
		}
		_ = r.tcp.Close()
	}
	if err != nil {
		tb.Fatal(err)
	}
	r.wg.Go(r.accept)
	r.wg.Go(r.datagrams)
	tb.Cleanup(r.close)
	return r
}

// Addr is where to dial instead of the target.
func (r *Relay) Addr() string { return r.tcp.Addr().String() }

// Port is the port of Addr.
func (r *Relay) Port() string {
	_, port, _ := net.SplitHostPort(r.Addr())
	return port
}

// Stall stops to pass TCP bytes, as a path that lost its route: connections stay,
// and new ones are taken and led nowhere. Stall(false) lets everything pass that
// was held up.
func (r *Relay) Stall(on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.open:
		if on {
			r.open = make(chan struct{})
		}
	default:
		if !on {
			close(r.open)
		}
	}
}

// Refuse resets every new TCP connection.
func (r *Relay) Refuse(on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refuse = on
}

// Reset resets every live TCP connection towards both ends.
func (r *Relay) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for l := range r.links {
		l.reset()
	}
}

// DropUDP drops every datagram.
func (r *Relay) DropUDP(on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.noUDP = on
}

// Rebind lets all datagrams come from other ports from now on, as a NAT does that
// lost its memory. It returns how many flows there were.
func (r *Relay) Rebind() int {
	r.mu.Lock()
	flows := r.flows
	r.flows = map[string]*flow{}
	r.mu.Unlock()
	for _, f := range flows {
		_ = f.socket.Close()
	}
	return len(flows)
}

// Limit lets bytesPerSecond pass each way of every TCP connection opened from now
// on, with little memory in between.
func (r *Relay) Limit(bytesPerSecond int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.limiter = rate.NewLimiter(rate.Limit(bytesPerSecond), burst)
}

// Delay lets what is sent on TCP arrive so much later, each way.
func (r *Relay) Delay(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.delay = d
}

func (r *Relay) late() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.delay
}

func (r *Relay) close() {
	r.cancel()
	_ = r.tcp.Close()
	_ = r.udp.Close()
	r.Reset()
	r.Rebind()
	r.wg.Wait()
}

func (r *Relay) accept() {
	for {
		c, err := r.tcp.Accept()
		if err != nil {
			return
		}
		r.wg.Go(func() { r.relay(c.(*net.TCPConn)) })
	}
}

func (r *Relay) relay(a *net.TCPConn) {
	r.mu.Lock()
	refuse, limit := r.refuse, r.limiter
	r.mu.Unlock()
	if refuse {
		_ = a.SetLinger(0)
		_ = a.Close()
		return
	}
	if limit != nil {
		_ = a.SetReadBuffer(queue)
		_ = a.SetWriteBuffer(queue)
	}
	link := &relayed{a: a}
	defer r.forget(link)
	r.mu.Lock()
	r.links[link] = struct{}{}
	r.mu.Unlock()
	if !r.passes() {
		return
	}
	d := net.Dialer{Timeout: Patience, Control: smallSegments}
	out, err := d.DialContext(r.ctx, "tcp", r.target)
	if err != nil {
		return
	}
	b := out.(*net.TCPConn)
	if limit != nil {
		_ = b.SetReadBuffer(queue)
		_ = b.SetWriteBuffer(queue)
	}
	r.mu.Lock()
	link.b = b
	r.mu.Unlock()
	var pumps sync.WaitGroup
	pumps.Go(func() { r.pump(b, a, limit) })
	pumps.Go(func() { r.pump(a, b, limit) })
	pumps.Wait()
}

// pump copies from one to the other until either fails.
func (r *Relay) pump(to, from *net.TCPConn, limit *rate.Limiter) {
	size := 32 << 10
	var own *rate.Limiter // each direction has a limiter of its own
	if limit != nil {
		size = burst / 2
		own = rate.NewLimiter(limit.Limit(), burst)
	}
	if r.late() > 0 {
		r.pumpLate(to, from)
		return
	}
	buf := make([]byte, size)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if own != nil && own.WaitN(r.ctx, n) != nil || !r.passes() {
				return
			}
			if _, err := to.Write(buf[:n]); err != nil {
				_ = from.SetLinger(0)
				_ = from.Close()
				return
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			_ = to.CloseWrite()
			return
		case err != nil:
			_ = to.SetLinger(0)
			_ = to.Close()
			return
		}
	}
}

// parcel is what was read at one time; none in it is the end.
type parcel struct {
	due  time.Time
	text []byte
	err  error
}

// pumpLate is pump over a long way: what is under way does not hold up what follows.
func (r *Relay) pumpLate(to, from *net.TCPConn) {
	way := make(chan parcel, 4096)
	r.wg.Go(func() { // ends with from, which the other end of the way closes
		defer close(way)
		buf := make([]byte, 32<<10)
		for {
			n, err := from.Read(buf)
			p := parcel{due: time.Now().Add(r.late()), text: bytes.Clone(buf[:n]), err: err}
			select {
			case way <- p:
			case <-r.ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	})
	for p := range way {
		select {
		case <-time.After(time.Until(p.due)):
		case <-r.ctx.Done():
			return
		}
		if !r.passes() {
			return
		}
		if _, err := to.Write(p.text); err != nil {
			_ = from.SetLinger(0)
			_ = from.Close()
			for range way { // it ends soon
			}
			return
		}
		switch {
		case errors.Is(p.err, io.EOF):
			_ = to.CloseWrite()
		case p.err != nil:
			_ = to.SetLinger(0)
			_ = to.Close()
		}
	}
}

// passes waits while the relay is stalled, and reports false once the test is over.
func (r *Relay) passes() bool {
	r.mu.Lock()
	open := r.open
	r.mu.Unlock()
	select {
	case <-open:
		return true
	case <-r.ctx.Done():
		return false
	}
}

func (r *Relay) forget(l *relayed) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.links, l)
	_ = l.a.Close()
	if l.b != nil {
		_ = l.b.Close()
	}
}

func (l *relayed) reset() {
	for _, c := range []*net.TCPConn{l.a, l.b} {
		if c != nil {
			_ = c.SetLinger(0)
			_ = c.Close()
		}
	}
}

// datagrams passes what clients send to the target.
func (r *Relay) datagrams() {
	to, err := net.ResolveUDPAddr("udp", r.target)
	if err != nil {
		r.tb.Error(err)
		return
	}
	buf := make([]byte, 64<<10)
	for {
		n, client, err := r.udp.ReadFromUDP(buf)
		if err != nil {
			return
		}
		if f := r.flow(client, to); f != nil {
			_, _ = f.socket.Write(buf[:n])
		}
	}
}

// flow is the flow of a client, a new one if need be, nil if nothing may pass.
func (r *Relay) flow(client, to *net.UDPAddr) *flow {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.noUDP || r.ctx.Err() != nil {
		return nil
	}
	if f := r.flows[client.String()]; f != nil {
		return f
	}
	socket, err := net.DialUDP("udp", nil, to)
	if err != nil {
		return nil
	}
	f := &flow{client: client, socket: socket}
	r.flows[client.String()] = f
	r.wg.Go(func() { r.answers(f) })
	return f
}

// answers passes what the target sends to a client.
func (r *Relay) answers(f *flow) {
	buf := make([]byte, 64<<10)
	for {
		n, err := f.socket.Read(buf)
		if err != nil { // an ICMP error is no end; a closed socket is
			if r.gone(f) {
				return
			}
			continue
		}
		r.mu.Lock()
		drop := r.noUDP
		r.mu.Unlock()
		if !drop {
			_, _ = r.udp.WriteToUDP(buf[:n], f.client)
		}
	}
}

// gone reports whether a flow was given up.
func (r *Relay) gone(f *flow) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.flows[f.client.String()] != f
}
