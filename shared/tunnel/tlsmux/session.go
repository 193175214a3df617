package tlsmux

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"

	"wormhole/shared/tunnel"
)

const (
	// backlog is how many streams may wait to be accepted, before yamux refuses. It
	// costs 8 bytes each, used or not, so a side that takes few has the small one.
	backlog      = 512
	smallBacklog = 128
	// lastWords is how long Close lets what is queued go out.
	lastWords = 250 * time.Millisecond
)

var errSilent = errors.New("peer is silent")

// session implements tunnel.Session.
type session struct {
	conn    *tls.Conn
	raw     net.Conn
	opt     Options
	mux     *yamux.Session
	table   *table
	out     *outbox
	start   time.Time
	heard   atomic.Int64 // when the peer was last heard, see now
	control *stream
	watch   *time.Timer
	done    chan struct{}

	mu   sync.Mutex // guards err, soft
	err  error
	soft bool // ended by Close: what is queued goes out
}

var _ tunnel.Session = (*session)(nil)

// newSession starts the multiplexer on conn, whose hello is done. dialer is the
// side that dialed the connection. The session owns conn from here on.
func newSession(conn *tls.Conn, dialer bool, opt Options) (*session, error) {
	s := &session{
		conn:  conn,
		raw:   conn.NetConn(),
		opt:   opt,
		table: newTable(opt, dialer),
		start: time.Now(),
		done:  make(chan struct{}),
	}
	s.out = newOutbox(conn, s.now, &s.heard, s.run)
	s.out.under, _ = s.raw.(holder)
	s.out.hold = unsentLimit(s.raw)
	cfg := &yamux.Config{
		AcceptBacklog:     opt.backlog(),
		KeepAliveInterval: time.Hour, // disabled: watchPeer does it
		// Frames of yamux's never wait on the network, so this bounds nothing real.
		ConnectionWriteTimeout: time.Hour,
		MaxStreamWindowSize:    initialWindow, // it never sees data, nor grants any
		Logger:                 yamuxLog{opt.Logger},
	}
	newMux := yamux.Server
	if dialer {
		newMux = yamux.Client
	}
	ready := make(chan struct{})
	mux, err := newMux(&gate{wire: wire{s: s, conn: conn}, ready: ready}, cfg)
	if err != nil {
		return nil, err
	}
	s.mux = mux
	s.watch = time.AfterFunc(opt.KeepAlive, s.watchPeer)
	close(ready)
	return s, nil
}

// gate holds yamux's reader back until the session is assembled.
type gate struct {
	wire
	ready chan struct{}
}

func (g *gate) Read(p []byte) (int, error) {
	if g.ready != nil {
		<-g.ready
		g.ready = nil
	}
	return g.wire.Read(p)
}

// run writes what is queued. If that is because the session ends, it takes
// everything down.
func (s *session) run() {
	over, err := s.out.run()
	if !over {
		return
	}
	if err != nil {
		err = fmt.Errorf("write to peer: %w", err)
	} else {
		err = tunnel.ErrSessionClosed
	}
	s.fail(err)
	s.raw.Close()
	s.mux.Close() // waits for yamux's goroutines
	s.watch.Stop()
	for _, st := range s.table.kill() {
		st.sessionEnded()
	}
	close(s.done)
}

// fail ends the session at once. The first reason stays.
func (s *session) fail(reason error) {
	s.mu.Lock()
	first := s.err == nil
	if first {
		s.err = reason
	}
	soft := s.soft
	s.mu.Unlock()
	s.out.close()
	if first || !soft {
		s.raw.Close()
	}
}

// Close implements tunnel.Session. Frames that are queued go out first, if the
// peer takes them at once.
func (s *session) Close() error {
	s.mu.Lock()
	if s.err == nil {
		s.err, s.soft = tunnel.ErrSessionClosed, true
		_ = s.raw.SetDeadline(time.Now().Add(lastWords))
	}
	s.mu.Unlock()
	s.out.close()
	<-s.done
	return nil
}

// now is the time since the session's start, in nanoseconds and never 0.
func (s *session) now() int64 { return int64(time.Since(s.start)) + 1 }

// watchPeer pings a silent peer and ends the session of a dead one, or of one
// that does not take what is written.
func (s *session) watchPeer() {
	now := s.now()
	if w := s.out.writing.Load(); w != 0 && time.Duration(now-w) > s.opt.WriteTimeout {
		s.fail(fmt.Errorf("write to peer: %w", errSilent))
		return
	}
	next := s.opt.KeepAlive
	switch silent := time.Duration(now - s.heard.Load()); {
	case silent >= s.opt.KeepAlive+s.opt.WriteTimeout:
		s.fail(errSilent)
		return
	case silent >= s.opt.KeepAlive:
		if !s.out.control(header{kind: typePing, flags: flagSYN}) {
			s.fail(errBacklog)
			return
		}
		next = min(next, s.opt.KeepAlive+s.opt.WriteTimeout-silent)
	default:
		next -= silent
	}
	s.out.rest(now - int64(s.opt.KeepAlive))
	select {
	case <-s.done:
	default:
		s.watch.Reset(max(next, time.Millisecond))
	}
}

// Open implements tunnel.Session.
func (s *session) Open(ctx context.Context) (tunnel.Stream, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	wait, err := s.table.reserve()
	if err != nil {
		return nil, s.because(err)
	}
	if wait != nil {
		select {
		case <-wait:
		case <-ctx.Done():
			s.table.unreserve(wait)
			return nil, fmt.Errorf("%w: %w", tunnel.ErrTooManyStreams, ctx.Err())
		}
	}
	ys, err := s.mux.OpenStream()
	if err != nil {
		s.table.unreserve(nil)
		s.fail(fmt.Errorf("open stream: %w", err)) // also when 2^31 ids are used up
		return nil, s.because(tunnel.ErrSessionClosed)
	}
	st := s.table.attach(ys)
	if st == nil {
		return nil, tunnel.ErrAborted // refused by the peer, before we came to it
	}
	return st, nil
}

// Accept implements tunnel.Session.
func (s *session) Accept(ctx context.Context) (tunnel.Stream, error) {
	for {
		ys, err := s.mux.AcceptStreamWithContext(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, s.because(tunnel.ErrSessionClosed)
		}
		if st := s.table.attach(ys); st != nil {
			return st, nil
		}
	}
}

// because adds to ErrSessionClosed why the session ended, if it did for a reason.
func (s *session) because(err error) error {
	if reason := s.Err(); errors.Is(err, tunnel.ErrSessionClosed) && reason != nil && !errors.Is(reason, err) {
		return fmt.Errorf("%w: %w", err, reason)
	}
	return err
}

// Control implements tunnel.Session.
func (s *session) Control() tunnel.Stream { return s.control }

// Done implements tunnel.Session.
func (s *session) Done() <-chan struct{} { return s.done }

// Err implements tunnel.Session.
func (s *session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *session) Carrier() tunnel.Carrier { return tunnel.TLS }
func (s *session) LocalAddr() net.Addr     { return s.conn.LocalAddr() }
func (s *session) RemoteAddr() net.Addr    { return s.conn.RemoteAddr() }

// Streams implements tunnel.Session.
func (s *session) Streams() int { return s.table.open() }

// yamuxLog passes what yamux says to a logger at debug level.
type yamuxLog struct{ logger *slog.Logger }

func (l yamuxLog) Print(v ...any)   { l.log(fmt.Sprint, v) }
func (l yamuxLog) Println(v ...any) { l.log(fmt.Sprint, v) }
func (l yamuxLog) Printf(format string, v ...any) {
	l.log(func(v ...any) string { return fmt.Sprintf(format, v...) }, v)
}

func (l yamuxLog) log(text func(...any) string, v []any) {
	if l.logger != nil && l.logger.Enabled(context.Background(), slog.LevelDebug) {
		l.logger.Debug("multiplexer", "err", text(v...))
	}
}

// setControl makes st the control stream, which is not counted as open and never
// aborted for memory.
func (s *session) setControl(st *stream) {
	s.control = st
	s.table.setControl(st)
}
