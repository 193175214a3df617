package ingress

import (
	"context"
	"slices"
	"sync"
	"time"
)

// StopAccepting takes those who wait in the kernel's queue and then nobody any more;
// with a socket that another process shares, that one serves whoever comes. It does
// not wait. Shutdown does the same first.
func (in *Ingress) StopAccepting() {
	if in.https == nil {
		return
	}
	in.drains.Store(true)
	in.tcp.stopAccepting()
	if in.plain != nil {
		in.plain.stopAccepting()
	}
}

// Shutdown ends the service of visitors gently: it accepts nobody any more, tells
// those who are connected to go elsewhere, lets requests and upgraded connections
// in flight finish until ctx ends, and closes what is left then. Its error is that
// of ctx if something was left.
//
// Agents' connections stay: closing tunnels belongs to whoever handles them, or to
// Close. Serve goes on until its context ends.
func (in *Ingress) Shutdown(ctx context.Context) error {
	in.drains.Store(true)
	if in.https == nil || !in.started.Load() {
		return in.Close()
	}
	var (
		wg   sync.WaitGroup
		errs [3]error
	)
	wg.Go(func() { errs[0] = in.shutdownTCP(ctx, in.tcp, in.visitor) })
	if in.plain != nil {
		wg.Go(func() { errs[1] = in.shutdownTCP(ctx, in.plain, in.clear) })
	}
	if d := in.quic.Load(); d != nil {
		wg.Go(func() { errs[2] = d.shutdown(ctx) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

const (
	// lastAnswers is how long kept connections have to hear that they end. In 120 s of
	// rolling restarts on a busy machine, half a second cut 5 requests of 36,821.
	lastAnswers = 1200 * time.Millisecond
	// lastReads is how long requests that have arrived may take to be begun, and
	// lookAgain how often that is looked at.
	lastReads = 500 * time.Millisecond
	lookAgain = 5 * time.Millisecond
)

// server is the part of http.Server that ends it.
type server interface {
	Shutdown(context.Context) error
	Close() error
}

func (in *Ingress) shutdownTCP(ctx context.Context, d *door, s server) error {
	d.stopAccepting()
	err := d.leaveGently(ctx, s)
	if err != nil {
		_ = s.Close()
		d.closeConns(false)
	}
	return err
}

// leaveGently waits until no visitor is left. Its error is that of ctx.
func (d *door) leaveGently(ctx context.Context, s server) error {
	// A kept HTTP/1.1 connection cannot be told to go but in an answer. One that is
	// closed while idle may have a request on its way, and its client cannot know
	// whether it was processed (RFC 9112, section 9.5). So those in use get an answer
	// more, which says that it is the last. Whoever completes its handshake meanwhile
	// is told so in its first answer.
	linger, stop := context.WithTimeout(ctx, lastAnswers)
	defer stop()
	select {
	case <-d.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	// Whoever was accepted is served, but need not be waited for if it has nothing
	// to say.
	d.hurry()
	if err := d.await(ctx, func() bool { return d.waiting.Len() == 0 }); err != nil {
		return err
	}
	nobody := func() bool { return d.visitors == 0 }
	if d.await(linger, nobody) != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	// The server closes idle connections whatever the kernel holds for them. On a busy
	// machine a request may have been there for a while.
	for tries := lastReads / lookAgain; tries > 0 && ctx.Err() == nil && d.unread(); tries-- {
		time.Sleep(lookAgain)
	}
	// The server looks only every half second whether its connections have ended, and
	// knows nothing of those that were upgraded. The door sees each of them close.
	ended, enough := context.WithCancel(ctx)
	closing := make(chan struct{})
	go func() { // ends with ended
		defer close(closing)
		_ = s.Shutdown(ended)
	}()
	err := d.await(ctx, nobody)
	enough()
	<-closing
	return err
}

// unread reports whether a visitor that the server takes for idle has sent something.
func (d *door) unread() bool {
	d.mu.Lock()
	conns := make([]*conn, 0, len(d.open))
	for c := range d.open {
		if !c.agent && c.idle.Load() {
			conns = append(conns, c)
		}
	}
	d.mu.Unlock()
	return slices.ContainsFunc(conns, func(c *conn) bool { return hasUnread(c.Conn) })
}

// closeTCP ends the TCP side at once.
func (in *Ingress) closeTCP() {
	_ = in.https.Close()
	_ = in.visitor.Close()
	_ = in.handed.Close()
	in.tcp.closeConns(true)
	if in.http != nil {
		_ = in.http.Close()
		_ = in.clear.Close()
		_ = in.opened.Close()
		in.plain.closeConns(true)
	}
}
