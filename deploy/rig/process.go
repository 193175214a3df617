package rig

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Process is a program that this one started and ends again. Its methods may be
// called concurrently.
type Process struct {
	name   string
	cmd    *exec.Cmd
	exited chan struct{} // closed after the program ended; err is set before
	err    error
	sweep  sync.Once // its group id may be another's later
}

// Start runs cmd in a process group of its own, so that Ctrl-C in a terminal
// reaches only the caller, who then ends it in order. The program's output goes
// to output. Callers must Stop it.
func Start(name string, cmd *exec.Cmd, output io.Writer) (*Process, error) {
	cmd.Stdout, cmd.Stderr = output, output
	cmd.SysProcAttr = processAttributes()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &Process{name: name, cmd: cmd, exited: make(chan struct{})}
	go func() { // ends with the program
		p.err = cmd.Wait()
		close(p.exited)
	}()
	return p, nil
}

// PID is the program's process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Exited is closed once the program has ended.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Signal sends s to the program alone.
func (p *Process) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// Stop asks the program to end, waits, and kills it when grace has passed; then it
// kills what the program left behind in its process group. It is idempotent and
// returns when the program is gone; the error says that it had to be killed.
func (p *Process) Stop(grace time.Duration) error {
	defer p.sweep.Do(func() { _ = syscall.Kill(-p.PID(), syscall.SIGKILL) })
	select {
	case <-p.exited:
		return nil
	default:
	}
	if err := p.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", p.name, err)
	}
	select {
	case <-p.exited:
		return nil
	case <-time.After(grace):
	}
	_ = p.cmd.Process.Kill()
	<-p.exited
	return fmt.Errorf("%s did not end within %s and was killed", p.name, grace)
}

// ExitCode is the program's exit status, or -1 while it runs or when a signal
// ended it.
func (p *Process) ExitCode() int {
	select {
	case <-p.exited:
		return p.cmd.ProcessState.ExitCode()
	default:
		return -1
	}
}

// lastLines returns the end of a log for an error message.
func lastLines(path string, n int) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
