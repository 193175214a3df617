package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"wormhole/deploy/rig"
)

// tunnel is this project as a target: an edge with everything on, as `edge dev`
// has it with an access log in a file, and an agent beside the app.
type tunnel struct {
	binaries rig.Binaries
	edge     *rig.Edge
	agent    *rig.Process
	token    string
	idleKiB  int // resident memory of the agent before any request
}

func (s *site) startTunnel(ctx context.Context) (*target, error) {
	binaries, err := rig.FindBinaries(ctx, s.root, s.dir)
	if err != nil {
		return nil, err
	}
	edge, err := rig.StartEdge(ctx, binaries, s.dir)
	if err != nil {
		return nil, err
	}
	s.tunnel = &tunnel{binaries: binaries, edge: edge}
	if s.tunnel.token, err = edge.Token(ctx, host); err != nil {
		return nil, err
	}
	log := filepath.Join(s.dir, "agent.log")
	s.tunnel.agent, err = edge.StartAgent("agent", s.tunnel.token, host, log, []string{"WORMHOLE_ENDPOINT=" + s.appAddr})
	if err != nil {
		return nil, err
	}
	return &target{
		name: "wormhole", addr: edge.Addr, roots: edge.Roots(),
		processes: []*rig.Process{s.tunnel.agent, edge.Process()},
	}, nil
}

// footprint measures memory and sizes.
func (t *tunnel) footprint(ctx context.Context, tunnels int) ([]string, error) {
	var lines []string
	for _, binary := range []string{t.binaries.Edge, t.binaries.Agent} {
		info, err := os.Stat(binary)
		if err != nil {
			return nil, err
		}
		lines = append(lines, fmt.Sprintf("binary %s: %.1f MB", filepath.Base(binary), float64(info.Size())/1e6))
	}
	after, err := residentKiB(t.agent.PID())
	if err != nil {
		return nil, err
	}
	lines = append(lines, fmt.Sprintf("agent after the load: %.1f MiB resident", float64(after)/1024))
	return lines, nil
}
