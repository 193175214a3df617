//go:build linux || darwin

package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"
)

// killed is the status of an app that has been killed and not been reaped yet.
var killed = Status{signal: syscall.SIGKILL}

// Supervisor owns all child processes of this program: it starts apps, passes
// signals on and reaps whatever ends. Its methods may be called concurrently.
// Only one may be open at a time in a program, and normally it runs one app at a
// time: stopping an app ends everything that descends from this program.
type Supervisor struct {
	logger    *slog.Logger
	lifecycle chan os.Signal
	forwarded chan os.Signal
	children  chan os.Signal // SIGCHLD
	quit      chan struct{}
	ended     chan struct{} // closed when the reaping goroutine has returned
	undo      func()        // gives up being a subreaper
	closing   sync.Once

	// mu is held while an app is started and while children are reaped, so that
	// no status is collected before its pid is in apps, and while an app is
	// signalled, so that the pid is not another's by then.
	mu       sync.Mutex // guards what follows
	apps     map[int]*Process
	terminal *terminal // nil if there is none
	closed   bool
}

// platform is what a Process needs on this kind of system.
type platform struct {
	stopped bool // by a signal; guarded by the Supervisor's mu
}

// Supervise takes over the children and signals of this program: it installs
// the signal handlers, becomes a subreaper if the system has such and starts
// the reaping goroutine, which Close stops. Call it before any app is started,
// also when none will be: process 1 has orphans to reap anyway.
func Supervise(logger *slog.Logger) *Supervisor {
	undo, err := becomeSubreaper()
	if err != nil {
		logger.Warn("orphans of the app are out of reach, as this system has no subreaper", "err", err)
	}
	s := &Supervisor{
		logger:    logger,
		lifecycle: make(chan os.Signal, 8),
		forwarded: make(chan os.Signal, 128),
		children:  make(chan os.Signal, 1),
		quit:      make(chan struct{}),
		ended:     make(chan struct{}),
		undo:      undo,
		apps:      make(map[int]*Process),
		terminal:  openTerminal(),
	}
	signal.Notify(s.children, syscall.SIGCHLD)
	for _, sig := range lifecycleSignals() {
		notifyUnlessIgnored(s.lifecycle, sig)
	}
	for _, sig := range forwardedSignals() {
		notifyUnlessIgnored(s.forwarded, sig)
	}
	s.terminal.ignoreOutputStops()
	go s.run()
	return s
}

// Lifecycle delivers SIGTERM and SIGINT. The first asks to drain and then Stop
// the app, the second to stop it without waiting any longer.
func (s *Supervisor) Lifecycle() <-chan os.Signal { return s.lifecycle }

// Close kills an app that still runs, ends the reaping and returns the signals
// to their defaults. It may be called more than once. Call it after Wait.
func (s *Supervisor) Close() error {
	s.closing.Do(func() {
		s.mu.Lock()
		s.closed = true
		running := s.running()
		s.mu.Unlock()
		for _, p := range running {
			p.Kill()
		}
		close(s.quit)
		<-s.ended
		signal.Stop(s.children)
		signal.Stop(s.lifecycle)
		signal.Stop(s.forwarded)
		s.terminal.close()
		s.undo()
	})
	<-s.ended
	return nil
}

// running returns the apps that have not ended. The caller holds mu.
func (s *Supervisor) running() []*Process {
	all := make([]*Process, 0, len(s.apps))
	for _, p := range s.apps {
		all = append(all, p)
	}
	return all
}

// Start starts the app in a process group of its own. Errors wrap ErrNotFound
// or ErrNotExecutable where they apply; see ExitCode. The app inherits every
// descriptor that a program started directly would, and this program's ignored
// signals, directory, limits and umask.
func (s *Supervisor) Start(cmd Command) (*Process, error) {
	cmd = cmd.withDefaults()
	if cmd.Dir != "" {
		if info, err := os.Stat(cmd.Dir); err != nil {
			return nil, fmt.Errorf("start %s: directory of the app: %w", cmd.Path, err)
		} else if !info.IsDir() {
			return nil, fmt.Errorf("start %s: directory of the app: %s: %w", cmd.Path, cmd.Dir, syscall.ENOTDIR)
		}
	}
	path, err := findCommand(cmd)
	if err != nil {
		return nil, err
	}
	p := &Process{
		env:    cmd.Env,
		owner:  s,
		logger: s.logger,
		done:   make(chan struct{}),
		known:  listeningSockets(),
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	s.terminal.aroundFork(func() {
		p.pid, err = syscall.ForkExec(path, append([]string{cmd.Path}, cmd.Args...), &syscall.ProcAttr{
			Dir:   cmd.Dir,
			Env:   cmd.Env,
			Files: []uintptr{cmd.Stdin.Fd(), cmd.Stdout.Fd(), cmd.Stderr.Fd()},
			Sys:   &syscall.SysProcAttr{Setpgid: true},
		})
	})
	if err != nil {
		return nil, startError(cmd.Path, path, err)
	}
	s.apps[p.pid] = p
	s.logger.Debug("app started", "pid", p.pid)
	return p, nil
}

// startError says why a file that was found could not be run.
func startError(name, path string, err error) error {
	switch {
	case errors.Is(err, syscall.ENOENT):
		return fmt.Errorf("start %s: %w: %s or its interpreter is missing", name, ErrNotFound, path)
	case errors.Is(err, syscall.ENOEXEC):
		return fmt.Errorf("start %s: %w: not a program of this system, and no #! line", name, ErrNotExecutable)
	default:
		return fmt.Errorf("start %s: %w: %w", name, ErrNotExecutable, err)
	}
}

// run is the only goroutine that reaps and that passes signals on.
func (s *Supervisor) run() {
	defer close(s.ended)
	for {
		select {
		case <-s.children:
			s.reap()
		case sig := <-s.forwarded:
			s.forward(sig.(syscall.Signal))
		case <-s.quit:
			s.reap()
			return
		}
	}
}

// reap collects every child that has ended. SIGCHLD does not queue, so one may
// stand for many.
func (s *Supervisor) reap() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG|syscall.WUNTRACED|wcontinued, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 { // ECHILD, or none has ended
			return
		}
		p := s.apps[pid]
		switch {
		case p == nil: // an orphan
		case status.Stopped():
			p.stopped = true
			s.terminal.appStopped(pid, status.StopSignal())
		case status.Continued():
			p.stopped = false
		default:
			delete(s.apps, pid)
			s.terminal.appEnded(pid)
			p.status = statusOf(status)
			close(p.done)
		}
	}
}

func statusOf(w syscall.WaitStatus) Status {
	if w.Signaled() {
		return Status{signal: w.Signal(), core: w.CoreDump()}
	}
	return Status{code: w.ExitStatus()}
}

// forward passes a signal that came to this program on to every app.
func (s *Supervisor) forward(sig syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.apps {
		if err := signalGroup(p.pid, sig); err != nil {
			s.logger.Warn("signal not passed on", "signal", sig.String(), "pid", p.pid, "err", err)
		}
	}
}

func (s *Supervisor) signal(p *Process, sig os.Signal) error {
	number, ok := sig.(syscall.Signal)
	if !ok {
		return fmt.Errorf("signal %v: %w", sig, ErrUnsupported)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.apps[p.pid] != p {
		return ErrExited
	}
	return signalGroup(p.pid, number)
}

// signalGroup sends sig to the group that the app with this pid leads.
func signalGroup(pid int, sig syscall.Signal) error {
	if err := syscall.Kill(-pid, sig); err != nil {
		return fmt.Errorf("signal group %d: %w", pid, err)
	}
	return nil
}

// terminate sends sig, and wakes a stopped app so that it can act on it.
func (s *Supervisor) terminate(p *Process, sig os.Signal) {
	if err := s.signal(p, sig); err != nil && !errors.Is(err, ErrExited) {
		s.logger.Warn("signal not passed on", "signal", sig.String(), "pid", p.pid, "err", err)
	}
	s.mu.Lock()
	stopped := p.stopped
	s.mu.Unlock()
	if stopped {
		_ = s.signal(p, syscall.SIGCONT)
	}
}

// killTree kills the app's group and whatever else descends from this program
// until nothing is left or ctx ends. What is killed hands its children to this
// program, so each round sees those that the round before has missed.
func (s *Supervisor) killTree(ctx context.Context, p *Process) {
	if s.groupAlive(p) {
		_ = signalGroup(p.pid, syscall.SIGKILL)
	}
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for s.killDescendants() > 0 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// killDescendants kills all that it finds and returns how many there are left,
// zombies included. It holds mu so that no pid of a child changes its owner
// between being found and being killed.
func (s *Supervisor) killDescendants() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := descendants(os.Getpid())
	for _, d := range found {
		if !d.dead() {
			_ = syscall.Kill(d.pid, syscall.SIGKILL)
		}
	}
	return len(found)
}

// groupAlive tells whether a process of the app's group is alive. Where there is
// no /proc, zombies count too.
func (s *Supervisor) groupAlive(p *Process) bool {
	if syscall.Kill(-p.pid, 0) == syscall.ESRCH {
		return false
	}
	found := descendants(os.Getpid())
	if found == nil {
		return true
	}
	return slices.ContainsFunc(found, func(d member) bool { return d.group == p.pid && !d.dead() })
}
