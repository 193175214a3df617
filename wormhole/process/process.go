package process

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"time"
)

// killWait is how long Kill waits for killed processes to be gone. Only one that
// hangs inside the kernel outlives it, and no signal helps there.
const killWait = 2 * time.Second

// Process is one app that Start has started. Its methods may be called
// concurrently, and after the app has ended.
type Process struct {
	pid    int
	env    []string
	owner  *Supervisor
	logger *slog.Logger

	done   chan struct{}
	status Status // written before done is closed

	// known are the sockets that were listening before the app was started.
	known map[uint64]struct{}

	platform
}

// Pid returns the app's process id, which is also the id of its process group.
func (p *Process) Pid() int { return p.pid }

// Done returns a channel that is closed when the app has ended and was reaped.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait blocks until the app has ended and returns how.
func (p *Process) Wait() Status {
	<-p.done
	return p.status
}

func (p *Process) exited() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Signal sends sig once to the app's process group, or returns ErrExited. Where
// there are no groups it reaches the app alone, and only os.Kill may work.
func (p *Process) Signal(sig os.Signal) error {
	return p.owner.signal(p, sig)
}

// Stop ends the app and all it has started, and returns how the app ended. It
// sends sig (the lifecycle signal that asked for this, else SIGTERM) to the
// group, waits for the app and the rest of its group until ctx ends, and kills
// what is left by then, including processes that have moved to other groups or
// sessions. An app that had to be killed has exit code 137.
func (p *Process) Stop(ctx context.Context, sig os.Signal) Status {
	p.owner.terminate(p, sig)
	select {
	case <-p.done:
		p.waitGroup(ctx)
	case <-ctx.Done():
		p.logger.Warn("app is killed after the grace period", "pid", p.pid)
	}
	return p.Kill()
}

// Kill ends the app and everything it has started at once and returns how the
// app ended. A process that hangs inside the kernel is given up on after two
// seconds; the status is then what it will be: killed.
func (p *Process) Kill() Status {
	ctx, cancel := context.WithTimeout(context.Background(), killWait)
	defer cancel()
	p.owner.killTree(ctx, p)
	select {
	case <-p.done:
		return p.status
	case <-ctx.Done():
		p.logger.Error("app does not die", "pid", p.pid)
		return killed
	}
}

// waitGroup blocks until ctx ends or no process of the group of an app that has
// ended is left. Members may be reaped by parents of their own, of which nobody
// tells us, hence the polling.
func (p *Process) waitGroup(ctx context.Context) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for p.owner.groupAlive(p) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// ListeningPorts returns the TCP addresses on which the app or any process it
// has started listens, sorted and without repetition. It costs well under a
// millisecond for a few processes.
//
// If processes of the app run as another user and hide their descriptors, and
// none that can be read listens, the answer is every listener of the network
// namespace that was not there before the app was started and is not this
// program's own. Returns ErrUnsupported where there is no /proc.
func (p *Process) ListeningPorts() ([]netip.AddrPort, error) {
	ports, err := p.listeners()
	if err != nil {
		return nil, fmt.Errorf("listening ports of pid %d: %w", p.pid, err)
	}
	return ports, nil
}
