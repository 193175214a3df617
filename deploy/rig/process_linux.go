package rig

import "syscall"

// processAttributes also makes the kernel end the program when this one is
// killed without a chance to clean up.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
