//go:build linux || darwin

package process

import (
	"os"
	"os/signal"
	"syscall"
)

// lifecycleSignals are those that the agent answers itself.
func lifecycleSignals() []syscall.Signal {
	return []syscall.Signal{syscall.SIGTERM, syscall.SIGINT}
}

// forwardedSignals are all others that can be caught and mean the app. Signals
// for which the Go runtime has its own use never get here: SIGURG, SIGPROF, and
// the first three real-time signals, which belong to libc's threads.
func forwardedSignals() []syscall.Signal {
	var all []syscall.Signal
	for n := 1; n <= lastSignal; n++ {
		switch sig := syscall.Signal(n); sig {
		case syscall.SIGTERM, syscall.SIGINT, // the agent's
			syscall.SIGKILL, syscall.SIGSTOP, // the kernel's
			syscall.SIGCHLD, syscall.SIGPIPE, // about this program
			syscall.SIGURG, syscall.SIGPROF, 32, 33, 34: // the runtime's
		default:
			all = append(all, sig)
		}
	}
	return all
}

// notifyUnlessIgnored subscribes to sig. A signal that this program inherited as
// ignored stays so, because catching it would also give the app the default
// action instead: nohup would no longer work.
func notifyUnlessIgnored(c chan<- os.Signal, sig syscall.Signal) {
	if !signal.Ignored(sig) {
		signal.Notify(c, sig)
	}
}
