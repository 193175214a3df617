package rawtcp

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/netip"
	"time"

	"wormhole/edge/balance"
	"wormhole/edge/site"
	"wormhole/edge/upstream"
	"wormhole/shared/pipe"
	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
)

const (
	// maxAttempts is how many backends are asked for a stream.
	maxAttempts = 3
	// reportTimeout is how long the agent's report may come behind the end itself. A
	// tunnel that is silent for so long is closed anyway.
	reportTimeout = 10 * time.Second
)

var (
	errNoSite    = errors.New("the site is gone")
	errForbidden = errors.New("the site does not serve this address")
	errFull      = errors.New("too many connections")
	errNoBackend = errors.New("no backend takes raw TCP for this site")
	errUnproven  = errors.New("the app's end of the connection was not confirmed as a proper one")
)

// accept takes connections until the listener closes.
func (s *Server) accept(d *door, l *net.TCPListener) {
	defer l.Close()
	for {
		conn, err := l.AcceptTCP()
		switch {
		case err == nil:
			// From now on whatever closes the socket resets it, the end of this process
			// included; see client.Close.
			_ = conn.SetLinger(0)
			s.admit(d, conn)
		case errors.Is(err, net.ErrClosed), s.isStopped():
			return
		default: // no descriptor is free, or the client left already
			s.complain("not accepted", d.host, "", err)
			time.Sleep(10 * time.Millisecond)
		}
	}
}

func (s *Server) isStopped() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state == stopped
}

// admit serves a connection if there is a place for it.
func (s *Server) admit(d *door, conn *net.TCPConn) {
	remote := conn.RemoteAddr().String()
	known, ok := s.sites.Lookup(d.host)
	err := errNoSite
	if ok {
		err = s.takePlace(d, known.Rules(), conn.RemoteAddr())
	}
	if err != nil {
		s.away.Add(1)
		s.complain("refused", d.host, remote, err)
		_ = conn.Close()
		return
	}
	s.work.Go(func() {
		defer s.leavePlace(d)
		s.carry(d.host, known, conn, remote)
	})
}

// takePlace counts a connection in, unless the site's rules are against it.
func (s *Server) takePlace(d *door, rules *site.Rules, remote net.Addr) error {
	if len(rules.Allow)+len(rules.Deny) > 0 {
		peer, err := netip.ParseAddrPort(remote.String())
		if err != nil || !rules.Admits(peer.Addr()) {
			return errForbidden
		}
	}
	if s.open.Add(1) > int64(s.cfg.MaxConnections) {
		s.open.Add(-1)
		return errFull
	}
	if d.open.Add(1) > int64(rules.TCP.MaxConnections) {
		d.open.Add(-1)
		s.open.Add(-1)
		return errFull
	}
	return nil
}

func (s *Server) leavePlace(d *door) {
	s.open.Add(-1)
	if d.open.Add(-1) == 0 {
		s.mu.Lock()
		s.forget(d)
		s.mu.Unlock()
	}
}

// carry joins a connection to an app.
func (s *Server) carry(host string, known *site.Site, conn *net.TCPConn, remote string) {
	began := time.Now()
	rules := known.Rules()
	id := newID()
	b, stream, err := s.reach(known, rules, protocol.StreamHeader{Kind: protocol.KindTCP, Client: remote, RequestID: id})
	if err != nil {
		_ = conn.Close()
		s.away.Add(1)
		s.complain("no backend", host, remote, err)
		return
	}
	defer b.Release()
	used := known.Usage()
	s.cfg.Usage.Connection(used)
	result := pipe.JoinCounted(s.ctx, client{conn}, &proven{Stream: stream, ctx: s.ctx}, rules.TCP.IdleTimeout, func(in, out int) {
		s.cfg.Usage.Bytes(used, int64(in), int64(out))
	})
	if result.Err == nil {
		s.carried.Add(1)
	} else {
		s.cutOff.Add(1)
	}
	if !s.cfg.Quiet {
		s.logger.Info("raw TCP connection", "site", host, "backend", b.Name(), "tunnel", b.ID(), "remote", remote, "request_id", id,
			"bytes_in", result.AToB, "bytes_out", result.BToA, "duration", time.Since(began), "err", result.Err)
	}
}

// reach opens a stream to one of the site's backends. Without one it waits, for as
// long and beside as many others as the site's parking lets requests wait.
func (s *Server) reach(known *site.Site, rules *site.Rules, h protocol.StreamHeader) (*balance.Backend, upstream.Stream, error) {
	pool := known.TCP()
	patience, cancel := context.WithTimeout(s.ctx, rules.ParkingWait)
	defer cancel()
	var tried []*balance.Backend
	err := errNoBackend
	for attempt := 0; attempt < maxAttempts; {
		b := pool.Pick(tried...)
		if b == nil {
			if rules.ParkingWait == 0 || !pool.Parked.Take(rules.ParkingMax) {
				return nil, nil, err
			}
			waitErr := pool.Wait(patience)
			pool.Parked.Give()
			if waitErr != nil {
				return nil, nil, err
			}
			tried = nil
			attempt++ // the one that is fit may be one that refused before
			b = pool.Pick()
		} else {
			attempt++
		}
		if b == nil {
			continue
		}
		stream, openErr := b.Upstream().OpenStream(s.ctx, h)
		if openErr == nil {
			b.Report(balance.Served)
			return b, stream, nil
		}
		// Every error promises that no byte reached the app.
		var refused *upstream.Refused
		full := errors.Is(openErr, tunnel.ErrTooManyStreams) || errors.As(openErr, &refused) && refused.Answer == protocol.AnswerFull
		if !full && s.ctx.Err() == nil {
			b.Report(balance.Unreachable)
		}
		b.Release()
		tried, err = append(tried, b), openErr
	}
	return nil, nil, err
}

// client is the visitor's side. Its socket resets when it closes (see accept) unless
// both directions have ended properly.
type client struct{ *net.TCPConn }

// Close is called after both directions have ended: the kernel then delivers what
// is still on its way.
func (c client) Close() error {
	_ = c.SetLinger(-1)
	return c.TCPConn.Close()
}

// Abort resets the connection.
func (c client) Abort() { _ = c.TCPConn.Close() }

// proven is a stream whose end counts only if the agent reported that the app made
// it.
type proven struct {
	upstream.Stream
	ctx context.Context
}

// Read implements net.Conn.
func (p *proven) Read(b []byte) (int, error) {
	n, err := p.Stream.Read(b)
	if errors.Is(err, io.EOF) && !p.clean() {
		err = errUnproven
	}
	return n, err
}

func (p *proven) clean() bool {
	reporter, ok := p.Stream.(upstream.Reporter)
	if !ok {
		return false
	}
	ctx, cancel := context.WithTimeout(p.ctx, reportTimeout)
	defer cancel()
	end, ok := reporter.Ended(ctx)
	return ok && end.Clean
}

// complain logs what a stranger can cause, a line a second at most.
func (s *Server) complain(reason, host, remote string, err error) {
	if s.noise.Allow() {
		s.logger.Warn("raw TCP connection not carried", "reason", reason, "site", host, "remote", remote, "err", err)
	}
}

func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
