//go:build linux || darwin

package process

import (
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// terminal hands the foreground of a terminal to the app and back. Its methods
// do nothing on a nil terminal; the Supervisor's mu guards calls.
type terminal struct {
	fd int
	// shell says that a shell above can stop and continue this program. Without
	// one, as in a container, nobody could wake an app that ^Z has stopped.
	shell bool
	app   int // the app's group, once it has had the foreground
}

// openTerminal returns the terminal that file is, if this program may give its
// foreground away; else nil.
func openTerminal(file *os.File) *terminal {
	fd := int(file.Fd())
	front, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
	if err != nil || front != unix.Getpgrp() {
		return nil
	}
	session, err := unix.Getsid(0)
	return &terminal{fd: fd, shell: err == nil && session != os.Getpid()}
}

func (t *terminal) front() int {
	front, err := unix.IoctlGetInt(t.fd, unix.TIOCGPGRP)
	if err != nil {
		return 0
	}
	return front
}

// give puts the app's group into the foreground if this program's is there. From
// then on this program ignores SIGTTOU, so that neither its log nor taking the
// terminal back stops it; the app was started before and does not inherit that.
func (t *terminal) give(app int) {
	if t == nil || t.front() != unix.Getpgrp() {
		return
	}
	t.app = app
	signal.Ignore(syscall.SIGTTOU)
	_ = unix.IoctlSetPointerInt(t.fd, unix.TIOCSPGRP, app)
}

// takeBack puts this program's group into the foreground after the app's.
func (t *terminal) takeBack() {
	if t == nil || t.app == 0 {
		return
	}
	if t.front() == t.app {
		_ = unix.IoctlSetPointerInt(t.fd, unix.TIOCSPGRP, unix.Getpgrp())
	}
	signal.Reset(syscall.SIGTTOU) // the next app must not inherit it as ignored
}

// appStopped answers a stop of the app that had the terminal.
func (t *terminal) appStopped(sig syscall.Signal) {
	if t == nil || t.app == 0 {
		return
	}
	switch {
	case t.front() != t.app:
		// It was put into the background; a shell's fg wakes it.
	case !t.shell, sig == syscall.SIGTTIN, sig == syscall.SIGTTOU:
		// Nobody else would continue it, or it asked for the terminal in the
		// moment before it was given the foreground.
		_ = signalGroup(t.app, syscall.SIGCONT)
	case sig == syscall.SIGTSTP:
		// Stop as a whole job, so that the shell above notices; its fg sends
		// SIGCONT, which gives the app the terminal again and continues it.
		_ = unix.IoctlSetPointerInt(t.fd, unix.TIOCSPGRP, unix.Getpgrp())
		_ = unix.Kill(0, unix.SIGSTOP)
	}
}
