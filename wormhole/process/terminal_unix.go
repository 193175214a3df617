//go:build linux || darwin

package process

import (
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// terminal is the one that controls this program's session. Its foreground is
// handed to the app when the app asks for it, by reading or by changing modes,
// which stops a background group with SIGTTIN or SIGTTOU. Until then ^C and ^Z
// come to the agent, so that an ordinary server is drained before it ends, and
// a pager behind a pipe keeps the keyboard.
//
// The methods do nothing on a nil terminal; the Supervisor's mu guards calls.
type terminal struct {
	file *os.File
	// shell says that a shell above can stop and continue this program. Without
	// one, as in a container, nobody could wake an app that ^Z has stopped.
	shell bool
}

// openTerminal returns nil if the session has no terminal.
func openTerminal() *terminal {
	file, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	session, err := unix.Getsid(0)
	pid := os.Getpid()
	return &terminal{file: file, shell: err == nil && session != pid && pid != 1}
}

func (t *terminal) close() {
	if t == nil {
		return
	}
	t.file.Close()
}

// ignoreOutputStops makes this program ignore SIGTTOU, so that neither writing
// its log nor taking the terminal back stops it.
func (t *terminal) ignoreOutputStops() {
	if t != nil {
		signal.Ignore(syscall.SIGTTOU)
	}
}

// aroundFork runs fork, whose child must not inherit SIGTTOU as ignored. A
// signal that is caught instead is at its default in the child; signal.Reset
// would leave it ignored, as the runtime has no handler for it to go back to.
func (t *terminal) aroundFork(fork func()) {
	if t != nil {
		signal.Notify(make(chan os.Signal, 1), syscall.SIGTTOU)
		defer t.ignoreOutputStops()
	}
	fork()
}

// foreground returns the group that has the terminal, or -1.
func (t *terminal) foreground() int {
	group, err := unix.IoctlGetInt(int(t.file.Fd()), unix.TIOCGPGRP)
	if err != nil {
		return -1
	}
	return group
}

func (t *terminal) setForeground(group int) {
	// If it fails, the terminal is gone, and so is what it was wanted for.
	_ = unix.IoctlSetPointerInt(int(t.file.Fd()), unix.TIOCSPGRP, group)
}

// appStopped answers a stop of the app.
func (t *terminal) appStopped(app int, sig syscall.Signal) {
	if t == nil {
		return
	}
	front, own := t.foreground(), unix.Getpgrp()
	asks := sig == syscall.SIGTTIN || sig == syscall.SIGTTOU
	switch {
	case asks && (front == own || front == app):
		t.setForeground(app)
		_ = signalGroup(app, syscall.SIGCONT)
	case asks && !t.shell, sig == syscall.SIGSTOP:
		// Whoever has the terminal or has sent the signal knows why.
	case !t.shell:
		_ = signalGroup(app, syscall.SIGCONT)
	default:
		// Stop as a whole job, so that the shell above notices. Its fg sends
		// SIGCONT, which is passed on to the app like any other signal.
		if front == app {
			t.setForeground(own)
		}
		_ = unix.Kill(0, unix.SIGSTOP)
	}
}

// appEnded puts this program's group into the foreground after the app's, or
// after a job of the app that is no more.
func (t *terminal) appEnded(app int) {
	if t == nil {
		return
	}
	front := t.foreground()
	if front == app || front > 0 && unix.Kill(-front, 0) == unix.ESRCH {
		t.setForeground(unix.Getpgrp())
	}
}
