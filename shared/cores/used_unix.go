//go:build unix

package cores

import (
	"syscall"
	"time"
)

// used is the processor time of this process since its start.
func used() (d time.Duration, known bool) {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0, false
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), true
}
