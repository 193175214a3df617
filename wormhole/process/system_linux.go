package process

import (
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	lastSignal = 64
	wcontinued = unix.WCONTINUED
)

// becomeSubreaper makes orphaned descendants children of this program, as they
// are of process 1 anyway, and returns how to give that up.
func becomeSubreaper() (undo func(), err error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return func() {}, fmt.Errorf("set child subreaper: %w", err)
	}
	return func() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) }, nil
}
