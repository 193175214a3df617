package upstreamtest

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"wormhole/edge/upstream"
	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
)

// Opener opens streams to an app. Its fields may be changed between requests.
type Opener struct {
	listener net.Listener
	apps     sync.Map // remote address of the app's side -> *Stream
	pending  chan net.Conn
	shutting chan struct{} // closed by shut

	mu     sync.Mutex // guards the fields below
	refuse error
	opened []*Stream

	open atomic.Int64
	// Limit, if positive, is how many streams may be open; beyond it OpenStream
	// returns tunnel.ErrTooManyStreams.
	Limit atomic.Int64
}

// New starts an app that runs serve for every connection, and closes the
// connection when serve returns. It stops with the test.
func New(t testing.TB, serve func(c net.Conn)) *Opener {
	t.Helper()
	o := listen(t)
	var running sync.WaitGroup
	running.Go(func() {
		for c := range o.pending {
			running.Go(func() {
				defer c.Close()
				serve(c)
			})
		}
	})
	t.Cleanup(func() {
		o.shut()
		running.Wait()
	})
	return o
}

// NewHTTP starts an app that serves HTTP/1.1, and HTTP/2 with prior knowledge.
func NewHTTP(t testing.TB, h http.Handler) *Opener {
	t.Helper()
	o := listen(t)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Handler: h, Protocols: protocols}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(&accepter{o: o, closed: make(chan struct{})})
	}()
	t.Cleanup(func() {
		o.shut()
		_ = server.Close()
		<-done
	})
	return o
}

// NewListener returns an opener and the listener on which its streams arrive, for
// apps that bring a server of their own.
func NewListener(t testing.TB) (*Opener, net.Listener) {
	t.Helper()
	o := listen(t)
	t.Cleanup(o.shut)
	return o, &accepter{o: o, closed: make(chan struct{})}
}

func listen(t testing.TB) *Opener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := &Opener{listener: l, pending: make(chan net.Conn), shutting: make(chan struct{})}
	go func() {
		defer close(o.pending)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s := &appConn{TCPConn: c.(*net.TCPConn), closed: make(chan struct{})}
			o.apps.Store(c.RemoteAddr().String(), s)
			select {
			case o.pending <- s:
			case <-o.shutting: // the app accepts no more
				_ = s.Close()
			}
		}
	}()
	return o
}

// shut ends the app; it is called once.
func (o *Opener) shut() {
	_ = o.listener.Close()
	close(o.shutting)
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range o.opened {
		s.Abort()
	}
}

// Refuse makes every further OpenStream fail with err; nil lets them pass again.
func (o *Opener) Refuse(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.refuse = err
}

// Opened counts the streams opened so far.
func (o *Opener) Opened() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.opened)
}

// Open counts the streams that are open now.
func (o *Opener) Open() int { return int(o.open.Load()) }

// Kill aborts all streams, as the death of the tunnel does.
func (o *Opener) Kill() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range o.opened {
		s.Abort()
	}
}

// OpenStream connects to the app.
func (o *Opener) OpenStream(ctx context.Context, _ protocol.StreamHeader) (upstream.Stream, error) {
	o.mu.Lock()
	err := o.refuse
	o.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if limit := o.Limit.Load(); o.open.Add(1) > limit && limit > 0 {
		o.open.Add(-1)
		return nil, tunnel.ErrTooManyStreams
	}
	c, err := new(net.Dialer).DialContext(ctx, "tcp", o.listener.Addr().String())
	if err != nil {
		o.open.Add(-1)
		return nil, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	s := &Stream{TCPConn: c.(*net.TCPConn), opener: o, id: uint64(len(o.opened))}
	o.opened = append(o.opened, s)
	return s, nil
}

// Stream is an upstream.Stream over a TCP connection.
type Stream struct {
	*net.TCPConn
	opener *Opener
	id     uint64
	ended  atomic.Bool // the app's END was read
	halved atomic.Bool // CloseWrite was called
	once   sync.Once

	pending []byte // read and neither lent nor returned
	lent    []byte
	loans   int
}

// ID numbers the streams of an opener.
func (s *Stream) ID() uint64 { return s.id }

// Read reads from the app; whatever ends it but a FIN is tunnel.ErrAborted.
func (s *Stream) Read(b []byte) (int, error) {
	if n := copy(b, s.pending); n > 0 {
		s.pending = s.pending[n:]
		return n, nil
	}
	n, err := s.TCPConn.Read(b)
	var timeout net.Error
	switch {
	case err == nil, errors.As(err, &timeout) && timeout.Timeout():
		return n, err
	case errors.Is(err, io.EOF):
		s.ended.Store(true)
		return n, io.EOF
	}
	return n, tunnel.ErrAborted
}

// Lender returns the stream, which lends every other time.
func (s *Stream) Lender() upstream.Lender { return s }

// Lend waits for bytes and lends them, of any number. Those that it lends are spoilt
// by GiveBack.
func (s *Stream) Lend() ([]byte, error) {
	if s.lent != nil {
		panic("a second loan before the first was given back")
	}
	if len(s.pending) == 0 {
		buf := make([]byte, 16<<10)
		n, err := s.Read(buf)
		if err != nil {
			return nil, err
		}
		s.pending = buf[:n]
	}
	if s.loans++; s.loans%2 == 0 {
		return nil, nil
	}
	s.lent, s.pending = s.pending, nil
	return s.lent, nil
}

// GiveBack ends the loan.
func (s *Stream) GiveBack() {
	for i := range s.lent {
		s.lent[i] = '!'
	}
	s.lent = nil
}

// Ready reports whether Read would return at once.
func (s *Stream) Ready() bool { return len(s.pending) > 0 || !s.Quiet() }

// Write writes to the app.
func (s *Stream) Write(b []byte) (int, error) {
	n, err := s.TCPConn.Write(b)
	if err != nil {
		err = tunnel.ErrAborted
	}
	return n, err
}

// CloseWrite says END.
func (s *Stream) CloseWrite() error {
	s.halved.Store(true)
	return s.TCPConn.CloseWrite()
}

// Abort resets the connection.
func (s *Stream) Abort() { s.end(true) }

// Close closes the connection, with a reset unless both ways have ended.
func (s *Stream) Close() error {
	s.end(!s.ended.Load() || !s.halved.Load())
	return nil
}

func (s *Stream) end(reset bool) {
	s.once.Do(func() {
		if reset {
			_ = s.SetLinger(0)
		}
		_ = s.TCPConn.Close()
		s.opener.open.Add(-1)
	})
}

// Quiet reports whether nothing has arrived.
func (s *Stream) Quiet() bool {
	if len(s.pending) > 0 {
		return false
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return false
	}
	quiet := false
	err = raw.Control(func(fd uintptr) {
		var b [1]byte
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		quiet = errors.Is(err, syscall.EAGAIN)
	})
	return err == nil && quiet
}

// Delivered returns what the app has read when it has closed the connection.
func (s *Stream) Delivered(ctx context.Context) (uint64, bool) {
	v, ok := s.opener.apps.Load(s.LocalAddr().String())
	if !ok {
		return 0, false
	}
	app := v.(*appConn)
	select {
	case <-app.closed:
		return app.got.Load(), true
	case <-ctx.Done():
		return 0, false
	}
}

// appConn is the app's side of a stream; it counts what the app reads.
type appConn struct {
	*net.TCPConn
	got    atomic.Uint64
	once   sync.Once
	closed chan struct{}
}

// Read reads from the edge.
func (a *appConn) Read(b []byte) (int, error) {
	n, err := a.TCPConn.Read(b)
	a.got.Add(uint64(n))
	return n, err
}

// Close closes the app's side.
func (a *appConn) Close() error {
	err := a.TCPConn.Close()
	a.once.Do(func() { close(a.closed) })
	return err
}

// accepter is the app's listener.
type accepter struct {
	o      *Opener
	once   sync.Once
	closed chan struct{}
}

// Accept waits for a stream.
func (a *accepter) Accept() (net.Conn, error) {
	select {
	case c, ok := <-a.o.pending:
		if ok {
			return c, nil
		}
	case <-a.closed:
	}
	return nil, net.ErrClosed
}

// Close ends Accept.
func (a *accepter) Close() error {
	a.once.Do(func() { close(a.closed) })
	return nil
}

// Addr is the address of the app.
func (a *accepter) Addr() net.Addr { return a.o.listener.Addr() }
