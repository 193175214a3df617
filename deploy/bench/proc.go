package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// clockTick is the kernel's USER_HZ, which is 100 on every Linux of today.
const clockTick = 10 * time.Millisecond

// stat is what /proc/PID/stat says of one process.
type stat struct {
	parent int
	cpu    time.Duration // its own and that of its children that have ended
}

// cpuOf is the CPU time, user and system, that the processes and all their
// descendants have used. A root process that is gone is an error: its figures
// would be too.
func cpuOf(roots []int) (time.Duration, error) {
	all, err := readStats()
	if err != nil {
		return 0, err
	}
	var total time.Duration
	for _, root := range roots {
		if _, alive := all[root]; !alive {
			return 0, fmt.Errorf("process %d is gone", root)
		}
	}
	for pid, s := range all {
		if descends(all, pid, roots) {
			total += s.cpu
		}
	}
	return total, nil
}

func descends(all map[int]stat, pid int, roots []int) bool {
	for range len(all) { // bounds the walk, should the table change under it
		for _, root := range roots {
			if pid == root {
				return true
			}
		}
		s, ok := all[pid]
		if !ok || s.parent <= 1 {
			return false
		}
		pid = s.parent
	}
	return false
}

func readStats() (map[int]stat, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	all := map[int]stat{}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		text, err := os.ReadFile("/proc/" + entry.Name() + "/stat")
		if err != nil {
			continue // it ended meanwhile
		}
		s, err := parseStat(text)
		if err != nil {
			return nil, fmt.Errorf("process %d: %w", pid, err)
		}
		all[pid] = s
	}
	return all, nil
}

// parseStat reads a line as proc(5) describes it. The program's name stands in
// parentheses and may itself hold any character.
func parseStat(text []byte) (stat, error) {
	end := bytes.LastIndexByte(text, ')')
	if end < 0 {
		return stat{}, errors.New("no name in stat")
	}
	fields := strings.Fields(string(text[end+1:]))
	// fields[0] is the state, field 3 of the manual page.
	if len(fields) < 15 {
		return stat{}, errors.New("stat is too short")
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return stat{}, fmt.Errorf("parent: %w", err)
	}
	var ticks int64
	for _, field := range fields[11:15] { // utime, stime, cutime, cstime
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return stat{}, fmt.Errorf("times: %w", err)
		}
		ticks += n
	}
	return stat{parent: parent, cpu: time.Duration(ticks) * clockTick}, nil
}

// residentKiB is the resident memory of one process.
func residentKiB(pid int) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			return strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")))
		}
	}
	return 0, errors.New("no VmRSS in status")
}
