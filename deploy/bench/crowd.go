package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"wormhole/deploy/rig"
	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
	"wormhole/wormhole/agent"
)

// tunnelsPerToken stays below what an edge grants one token by itself.
const tunnelsPerToken = 500

// crowd is many idle tunnels to one edge. Its agents are the real ones, but live in
// this process. Close it.
type crowd struct {
	ctx     context.Context
	stop    context.CancelFunc
	edge    *rig.Edge
	token   string
	agents  []*agent.Agent
	running sync.WaitGroup
}

func newCrowd(ctx context.Context, edge *rig.Edge) *crowd {
	c := &crowd{edge: edge}
	c.ctx, c.stop = context.WithCancel(ctx)
	return c
}

// close ends all tunnels and waits for their agents.
func (c *crowd) close() {
	c.stop()
	c.running.Wait()
}

// grow adds agents until there are n, and returns when every one has its tunnel. So
// many at a time dial that none of them has to wait and dial again: a storm is not
// what is measured.
func (c *crowd) grow(n int) (err error) {
	const atOnce = 100
	limit := time.After(4 * time.Minute)
	settled := len(c.agents)
	for len(c.agents) < n {
		for i := len(c.agents); i < min(n, settled+atOnce); i++ {
			if err := c.add(i); err != nil {
				return err
			}
		}
		for ; settled < len(c.agents); settled++ {
			for len(c.agents[settled].Status().Tunnels) == 0 {
				select {
				case <-limit:
					return fmt.Errorf("%d of %d idle tunnels came up in four minutes", settled, n)
				case <-c.ctx.Done():
					return c.ctx.Err()
				case <-time.After(5 * time.Millisecond):
				}
			}
		}
	}
	return nil
}

// add starts the agent with number i.
func (c *crowd) add(i int) (err error) {
	if i%tunnelsPerToken == 0 {
		if c.token, err = c.edge.Token(c.ctx, host); err != nil {
			return err
		}
	}
	a, err := agent.New(agent.Config{
		Edges: []string{net.JoinHostPort("localhost", c.edge.Port())}, Token: c.token, Hosts: []string{host},
		Name: fmt.Sprint("idle-", i), RootCAs: c.edge.Roots(), Transport: agent.OnlyTLS,
		Resolve: func(context.Context, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}, nil
		},
	}, refuser{}, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	c.agents = append(c.agents, a)
	c.running.Go(func() { _ = a.Run(c.ctx) })
	a.SetReady(true, "")
	return nil
}

// refuser stands where an app would be; idle tunnels carry nothing.
type refuser struct{}

func (refuser) Serve(_ context.Context, stream tunnel.Stream, _ func() protocol.Answer, _ func(protocol.StreamEnd)) {
	stream.Abort()
}

// clients are many idle connections of visitors to one edge, each kept alive after
// a request. Close them.
type clients struct {
	target *target
	conns  []*visitor
}

func (c *clients) close() {
	for _, v := range c.conns {
		_ = v.close()
	}
}

// grow opens connections until there are n, and has every one of all carry a
// request, so that none is closed for being idle.
func (c *clients) grow(ctx context.Context, n int) error {
	before := len(c.conns)
	c.conns = append(c.conns, make([]*visitor, n-before)...)
	opened := c.conns[before:]
	const workers = 8
	return errors.Join(
		inParallel(workers, func(worker int) (err error) {
			for i := worker; i < len(opened) && err == nil && ctx.Err() == nil; i += workers {
				opened[i], err = c.target.visit(ctx)
			}
			return err
		}),
		inParallel(workers, func(worker int) (err error) {
			for i := worker; i < before && err == nil && ctx.Err() == nil; i += workers {
				err = c.conns[i].ask()
			}
			return err
		}),
		ctx.Err(),
	)
}
