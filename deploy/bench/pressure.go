package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// memoryPressures is how often the TCP of this system was short of memory since it
// started. Meanwhile every connection has windows of a few packets, also one that is
// in another namespace and uses little: what is measured then is not the link.
func memoryPressures() (int64, error) {
	text, err := os.ReadFile("/proc/net/netstat")
	if err != nil {
		return 0, err
	}
	return parseNetstat(string(text), "TCPMemoryPressures")
}

// parseNetstat finds a counter of TcpExt in what /proc/net/netstat says: a line of
// names, and one of values below it.
func parseNetstat(text, name string) (int64, error) {
	var names []string
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) == 0 || words[0] != "TcpExt:" {
			continue
		}
		if names == nil {
			names = words
			continue
		}
		for i, n := range names {
			if n == name && i < len(words) {
				return strconv.ParseInt(words[i], 10, 64)
			}
		}
	}
	return 0, fmt.Errorf("no %s in /proc/net/netstat", name)
}
