package process

import (
	"bytes"
	"os"
	"strconv"
)

// member is one process as /proc/PID/stat shows it.
type member struct {
	pid, parent, group int
	state              byte
}

// dead tells whether the process has ended and only waits to be reaped.
func (m member) dead() bool { return m.state == 'Z' || m.state == 'X' }

// procIsOurs tells whether there is a /proc and it numbers processes as this
// program's PID namespace does; one that was mounted outside does not.
func procIsOurs() bool {
	self, err := os.Readlink("/proc/self")
	return err == nil && self == strconv.Itoa(os.Getpid())
}

// descendants returns every process below root, zombies included, as one scan of
// /proc sees them; nil, not empty, if procIsOurs does not hold.
func descendants(root int) []member {
	if !procIsOurs() {
		return nil
	}
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	children := make(map[int][]member, len(names))
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			if m, ok := readMember(pid); ok {
				children[m.parent] = append(children[m.parent], m)
			}
		}
	}
	found := append([]member{}, children[root]...)
	for i := 0; i < len(found); i++ {
		found = append(found, children[found[i].pid]...)
	}
	return found
}

func readMember(pid int) (member, bool) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return member{}, false
	}
	// pid (name) state ppid pgrp ...: the name may hold spaces and parentheses.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 3 || len(fields[0]) != 1 {
		return member{}, false
	}
	parent, err1 := strconv.Atoi(string(fields[1]))
	group, err2 := strconv.Atoi(string(fields[2]))
	return member{pid: pid, parent: parent, group: group, state: fields[0][0]}, err1 == nil && err2 == nil
}

// below calls visit for every process below root that is not missed because the
// tree changes meanwhile. It follows the kernel's lists of children, whose cost
// does not grow with the other processes of the machine, and scans /proc where
// the kernel has none.
func below(root int, visit func(pid int)) {
	if !procIsOurs() {
		return
	}
	if _, err := os.Stat("/proc/self/task/" + strconv.Itoa(os.Getpid()) + "/children"); err != nil {
		for _, m := range descendants(root) {
			visit(m.pid)
		}
		return
	}
	queue := []int{root}
	for i := 0; i < len(queue); i++ {
		if i > 0 {
			visit(queue[i])
		}
		queue = appendChildren(queue, queue[i])
	}
}

// appendChildren adds the children of every thread of a process to pids.
func appendChildren(pids []int, pid int) []int {
	name := "/proc/" + strconv.Itoa(pid) + "/task"
	dir, err := os.Open(name)
	if err != nil {
		return pids
	}
	defer dir.Close()
	threads, _ := dir.Readdirnames(-1)
	for _, thread := range threads {
		list, err := os.ReadFile(name + "/" + thread + "/children")
		if err != nil {
			continue
		}
		for _, field := range bytes.Fields(list) {
			if child, err := strconv.Atoi(string(field)); err == nil {
				pids = append(pids, child)
			}
		}
	}
	return pids
}
