//go:build !linux && !darwin

package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
)

// killed is the status of an app that has been killed and not been waited for.
var killed = Status{signal: syscall.SIGKILL}

// Supervisor starts apps and waits for them. Its methods may be called
// concurrently. Only one may be open at a time in a program.
type Supervisor struct {
	logger    *slog.Logger
	lifecycle chan os.Signal
	waits     sync.WaitGroup
	closing   sync.Once

	mu     sync.Mutex // guards apps, closed
	apps   map[*Process]struct{}
	closed bool
}

// platform is what a Process needs on this kind of system.
type platform struct {
	handle *os.Process
}

// Supervise takes over the children and signals of this program until Close.
func Supervise(logger *slog.Logger) *Supervisor {
	s := &Supervisor{
		logger:    logger,
		lifecycle: make(chan os.Signal, 8),
		apps:      make(map[*Process]struct{}),
	}
	signal.Notify(s.lifecycle, os.Interrupt, syscall.SIGTERM)
	return s
}

// Lifecycle delivers the interrupt and, on Windows, the closing of the console
// and the shutdown of the system as SIGTERM. The first asks to drain and then
// Stop the app, the second to stop it without waiting any longer.
func (s *Supervisor) Lifecycle() <-chan os.Signal { return s.lifecycle }

// Close kills an app that still runs and waits for it. It may be called more
// than once.
func (s *Supervisor) Close() error {
	s.closing.Do(func() {
		s.mu.Lock()
		s.closed = true
		for p := range s.apps {
			_ = p.handle.Kill()
		}
		s.mu.Unlock()
		signal.Stop(s.lifecycle)
	})
	s.waits.Wait()
	return nil
}

// Start starts the app. Errors wrap ErrNotFound or ErrNotExecutable where they
// apply; see ExitCode.
func (s *Supervisor) Start(cmd Command) (*Process, error) {
	cmd = cmd.withDefaults()
	path, err := exec.LookPath(cmd.Path)
	switch {
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("start %s: %w", cmd.Path, ErrNotFound)
	case err != nil:
		return nil, fmt.Errorf("start %s: %w: %w", cmd.Path, ErrNotExecutable, err)
	}
	p := &Process{env: cmd.Env, owner: s, logger: s.logger, done: make(chan struct{})}

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	p.handle, err = os.StartProcess(path, append([]string{cmd.Path}, cmd.Args...), &os.ProcAttr{
		Dir:   cmd.Dir,
		Env:   cmd.Env,
		Files: []*os.File{cmd.Stdin, cmd.Stdout, cmd.Stderr},
	})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w: %w", cmd.Path, ErrNotExecutable, err)
	}
	p.pid = p.handle.Pid
	s.apps[p] = struct{}{}
	s.waits.Go(func() { s.wait(p) })
	return p, nil
}

func (s *Supervisor) wait(p *Process) {
	state, err := p.handle.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.apps, p)
	if err != nil {
		s.logger.Error("app's exit status is lost", "pid", p.pid, "err", err)
		p.status = killed
	} else {
		p.status = Status{code: state.ExitCode()}
	}
	close(p.done)
}

func (s *Supervisor) signal(p *Process, sig os.Signal) error {
	if p.exited() {
		return ErrExited
	}
	if err := p.handle.Signal(sig); err != nil {
		return fmt.Errorf("signal pid %d: %w", p.pid, err)
	}
	return nil
}

// terminate does nothing: there is no signal that asks an app to end. What the
// console sends on ^C has reached the app already.
func (s *Supervisor) terminate(*Process, os.Signal) {}

func (s *Supervisor) killTree(_ context.Context, p *Process) { _ = p.handle.Kill() }

func (s *Supervisor) groupAlive(*Process) bool { return false }
