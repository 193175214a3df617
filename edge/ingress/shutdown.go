package ingress

import (
	"context"
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

// lastAnswers is how long kept connections have to hear that they end.
const lastAnswers = 500 * time.Millisecond

// server is the part of http.Server that ends it.
type server interface {
	Shutdown(context.Context) error
	Close() error
}

func (in *Ingress) shutdownTCP(ctx context.Context, d *door, s server) error {
	d.stopAccepting()
	err := func() error {
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
		// A kept HTTP/1.1 connection cannot be told to go but in an answer. One that is
		// closed while idle may have a request on its way, and its client cannot know
		// whether it was processed (RFC 9112, section 9.5). So those in use get an answer
		// more, which says that it is the last.
		linger, cancel := context.WithTimeout(ctx, lastAnswers)
		defer cancel()
		_ = d.await(linger, func() bool { return d.visitors == 0 })
		if err := s.Shutdown(ctx); err != nil {
			return err
		}
		// Upgraded connections are no longer the server's.
		return d.await(ctx, func() bool { return d.visitors == 0 })
	}()
	if err != nil {
		_ = s.Close()
		d.closeConns(false)
	}
	return err
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
