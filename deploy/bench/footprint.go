package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"wormhole/deploy/rig"
)

// settle is how long memory is left alone before it is read.
const settle = 8 * time.Second

// sizes are those of programs and their memory.
type sizes struct {
	edgeMB, agentMB float64 // binaries
	// idleMiB is an agent that has connected and carried nothing; loadedMiB is one
	// after the workloads.
	idleMiB, loadedMiB float64
	tunnels            *scaleCurve // nil if the scale section has it
}

// footprint measures memory and sizes: of a fresh edge, so that what the load left
// behind is not reused and forgotten.
func footprint(ctx context.Context, s *site, tunnels []int) (f *sizes, err error) {
	f = &sizes{}
	for _, binary := range []struct {
		path string
		mb   *float64
	}{{s.binaries.Edge, &f.edgeMB}, {s.binaries.Agent, &f.agentMB}} {
		info, err := os.Stat(binary.path)
		if err != nil {
			return nil, err
		}
		*binary.mb = float64(info.Size()) / 1e6
	}
	dir := filepath.Join(s.dir, "idle")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	edge, err := rig.StartEdge(ctx, s.binaries, dir)
	if err != nil {
		return nil, err
	}
	idleKiB, err := s.idleAgent(ctx, edge, filepath.Join(dir, "agent.log"))
	if err := errors.Join(err, edge.Stop()); err != nil {
		return nil, err
	}
	loadedKiB, err := residentKiB(s.tunnel.agent.PID())
	if err != nil {
		return nil, err
	}
	f.idleMiB, f.loadedMiB = float64(idleKiB)/1024, float64(loadedKiB)/1024
	if len(tunnels) > 0 {
		f.tunnels = &scaleCurve{name: "idle tunnels, agents in one process"}
		dir, err := os.MkdirTemp(s.dir, "tunnels-")
		if err != nil {
			return nil, err
		}
		if err := s.scaleTunnels(ctx, f.tunnels, dir, scalePlan{tunnels: tunnels, calm: fullScale.calm, idle: fullScale.idle}); err != nil {
			return nil, err
		}
	}
	return f, nil
}

func (f *sizes) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n- binary edge: %.1f MB\n- binary wormhole: %.1f MB\n", f.edgeMB, f.agentMB)
	fmt.Fprintf(&b, "- agent resident: %.1f MiB idle, %.1f MiB after the workloads above\n", f.idleMiB, f.loadedMiB)
	if f.tunnels != nil {
		fmt.Fprintf(&b, "- edge resident: %.1f MiB without tunnels\n", f.tunnels.bare.memory/1024)
		for _, p := range f.tunnels.points {
			fmt.Fprintf(&b, "- %s idle tunnels: %.1f KiB each, %.1f %% of a core\n", thousands(p.n), f.tunnels.each(p), 100*p.idle)
		}
	}
	return b.String()
}

// idleAgent is the memory of an agent that has connected and carried nothing.
func (s *site) idleAgent(ctx context.Context, edge *rig.Edge, log string) (kib int, err error) {
	token, err := edge.Token(ctx, host)
	if err != nil {
		return 0, err
	}
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

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
