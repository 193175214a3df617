package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"wormhole/deploy/rig"
	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
	"wormhole/wormhole/agent"
)

// settle is how long memory is left alone before it is read.
const settle = 8 * time.Second

// footprint measures memory and sizes: of a fresh edge, so that what the load left
// behind is not reused and forgotten.
func footprint(ctx context.Context, s *site, tunnels int) (lines []string, err error) {
	for _, binary := range []string{s.tunnel.binaries.Edge, s.tunnel.binaries.Agent} {
		info, err := os.Stat(binary)
		if err != nil {
			return nil, err
		}
		lines = append(lines, fmt.Sprintf("binary %s: %.1f MB", filepath.Base(binary), float64(info.Size())/1e6))
	}
	dir := filepath.Join(s.dir, "idle")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	edge, err := rig.StartEdge(ctx, s.tunnel.binaries, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, edge.Stop()) }()
	token, err := edge.Token(ctx, host)
	if err != nil {
		return nil, err
	}
	agentKiB, err := idleAgent(ctx, s, edge, token, filepath.Join(dir, "agent.log"))
	if err != nil {
		return nil, err
	}
	loadedKiB, err := residentKiB(s.tunnel.agent.PID())
	if err != nil {
		return nil, err
	}
	lines = append(lines, fmt.Sprintf("agent resident: %.1f MiB idle, %.1f MiB after the workloads above",
		float64(agentKiB)/1024, float64(loadedKiB)/1024))

	bare, err := residentKiB(edge.Process().PID())
	if err != nil {
		return nil, err
	}
	full, err := withIdleTunnels(ctx, edge, tunnels)
	if err != nil {
		return nil, err
	}
	return append(lines, fmt.Sprintf("edge resident: %.1f MiB idle; %.1f KiB for each of %d idle tunnels",
		float64(bare)/1024, float64(full-bare)/float64(tunnels), tunnels)), nil
}

// idleAgent is the memory of an agent that has connected and carried nothing.
func idleAgent(ctx context.Context, s *site, edge *rig.Edge, token, log string) (kib int, err error) {
	process, err := edge.StartAgent("idle agent", token, host, log, []string{"WORMHOLE_ENDPOINT=" + s.appAddr})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, process.Stop(15*time.Second)) }()
	t := &target{addr: edge.Addr, roots: edge.Roots(), processes: []*rig.Process{process}}
	if err := s.awaitTarget(ctx, t); err != nil {
		return 0, err
	}
	if err := pause(ctx, settle); err != nil {
		return 0, err
	}
	return residentKiB(process.PID())
}

// tunnelsPerToken stays below what an edge grants one token by itself.
const tunnelsPerToken = 500

// withIdleTunnels is the memory of the edge while n agents hold a tunnel each. The
// agents are real, but live in this process.
func withIdleTunnels(ctx context.Context, edge *rig.Edge, n int) (kib int, err error) {
	ctx, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	agents := make([]*agent.Agent, n)
	var token string
	for i := range agents {
		if i%tunnelsPerToken == 0 {
			if token, err = edge.Token(ctx, host); err != nil {
				return 0, err
			}
		}
		agents[i], err = agent.New(agent.Config{
			Edges: []string{net.JoinHostPort("localhost", edge.Port())}, Token: token, Hosts: []string{host},
			Name: fmt.Sprint("idle-", i), RootCAs: edge.Roots(), Transport: agent.OnlyTLS,
			Resolve: func(context.Context, string) ([]netip.Addr, error) {
				return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}, nil
			},
		}, refuser{}, slog.New(slog.DiscardHandler))
		if err != nil {
			return 0, err
		}
		running.Go(func() { _ = agents[i].Run(ctx) })
		agents[i].SetReady(true, "")
	}
	limit := time.After(60 * time.Second)
	for _, a := range agents {
		for len(a.Status().Tunnels) == 0 {
			select {
			case <-limit:
				return 0, errors.New("not all idle tunnels came up within a minute")
			case <-ctx.Done():
				return 0, ctx.Err()
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	if err := pause(ctx, settle); err != nil {
		return 0, err
	}
	return residentKiB(edge.Process().PID())
}

// refuser stands where an app would be; idle tunnels carry nothing.
type refuser struct{}

func (refuser) Serve(_ context.Context, stream tunnel.Stream, _ func() protocol.Answer, _ func(protocol.StreamEnd)) {
	stream.Abort()
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
