package main

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// An agent listens on an abstract socket (unix(7)): it needs no writable folder
// and vanishes with the agent. Abstract names are shared by a network namespace,
// which several containers may have in common, hence the PID namespace in them.
func healthAddr(namespace uint64, pid int) string {
	return fmt.Sprintf("@wormhole/%d/%d", namespace, pid)
}

func pidNamespace() (uint64, error) {
	info, err := os.Stat("/proc/self/ns/pid")
	if err != nil {
		return 0, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, fmt.Errorf("stat of /proc/self/ns/pid is %T", info.Sys())
	}
	return st.Ino, nil
}

func listenHealth() (net.Listener, error) {
	ns, err := pidNamespace()
	if err != nil {
		return nil, err
	}
	return net.Listen("unix", healthAddr(ns, os.Getpid()))
}

// agentsHere are the processes of this PID namespace. If the first process is an
// agent, it is the one that is meant. Asking those that are no agents costs a
// failed connect each, and tells more surely than any look at their names.
func agentsHere() []candidate {
	ns, err := pidNamespace()
	if err != nil {
		return nil
	}
	at := func(pid int) candidate {
		return candidate{name: fmt.Sprintf("(pid %d)", pid), addr: healthAddr(ns, pid), pid: pid}
	}
	if conn, err := net.Dial("unix", healthAddr(ns, 1)); err == nil {
		_ = conn.Close()
		return []candidate{at(1)}
	}
	entries, _ := os.ReadDir("/proc")
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	var all []candidate
	for _, pid := range pids {
		all = append(all, at(pid))
	}
	return all
}

// peerPid is the process that listens at the other end.
func peerPid(conn net.Conn) int {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return 0
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid
}
