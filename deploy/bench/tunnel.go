package main

import (
	"context"
	"path/filepath"

	"wormhole/deploy/rig"
)

// tunnelled is this project as a target: an edge with everything on, as `edge dev`
// has it with an access log in a file, and an agent beside the app.
type tunnelled struct {
	edge  *rig.Edge
	agent *rig.Process
	token string
}

func (s *site) startTunnel(ctx context.Context) (*target, error) {
	edge, err := rig.StartEdge(ctx, s.binaries, s.dir)
	if err != nil {
		return nil, err
	}
	s.tunnel = &tunnelled{edge: edge}
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
