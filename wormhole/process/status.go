package process

import (
	"fmt"
	"syscall"
)

// Status says how an app ended. The zero value is a clean exit with code 0.
type Status struct {
	code   int
	signal syscall.Signal // 0 unless a signal ended the app
	core   bool
}

// ExitCode returns the code a shell would report: the app's own exit code, or
// 128+N if signal N ended it.
func (s Status) ExitCode() int {
	if s.signal != 0 {
		return 128 + int(s.signal)
	}
	return s.code
}

// Signal returns the signal that ended the app, or false if it exited by itself.
func (s Status) Signal() (syscall.Signal, bool) {
	return s.signal, s.signal != 0
}

// String describes the ending for the log, such as "exit code 1" or
// "killed by signal 11 (segmentation fault), core dumped".
func (s Status) String() string {
	if s.signal == 0 {
		return fmt.Sprintf("exit code %d", s.code)
	}
	text := fmt.Sprintf("killed by signal %d (%v)", int(s.signal), s.signal)
	if s.core {
		text += ", core dumped"
	}
	return text
}
