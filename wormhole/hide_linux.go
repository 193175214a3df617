package main

import (
	"bytes"
	"os"
	"strconv"
	"strings"
)

// hideToken wipes the token from the memory that /proc/PID/environ shows, for all
// processes of the same user to read. The Go runtime has its own copy. Where /proc
// does not allow it, nothing is lost but this.
func hideToken() {
	start, end, ok := environBounds()
	if !ok {
		return
	}
	mem, err := os.OpenFile("/proc/self/mem", os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer func() { _ = mem.Close() }()
	block := make([]byte, end-start)
	if _, err := mem.ReadAt(block, start); err != nil {
		return
	}
	offset := 0
	for entry := range bytes.SplitSeq(block, []byte{0}) {
		name, value, _ := bytes.Cut(entry, []byte("="))
		if n := string(name); n == "WORMHOLE_TOKEN" || n == "FLY_TOKEN" {
			at := start + int64(offset+len(name)+1)
			_, _ = mem.WriteAt(bytes.Repeat([]byte{'*'}, len(value)), at)
		}
		offset += len(entry) + 1
	}
}

// environBounds are the addresses of the initial environment: fields 50 and 51 of
// /proc/self/stat (proc(5)).
func environBounds() (start, end int64, ok bool) {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return 0, 0, false
	}
	// The second field is the program's name in parentheses, which may contain spaces.
	_, rest, ok := strings.Cut(string(stat[bytes.LastIndexByte(stat, ')')+1:]), " ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 49 {
		return 0, 0, false
	}
	start, err1 := strconv.ParseInt(fields[47], 10, 64)
	end, err2 := strconv.ParseInt(fields[48], 10, 64)
	ok = err1 == nil && err2 == nil && start > 0 && end > start && end-start < 4<<20
	return start, end, ok
}
