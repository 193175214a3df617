//go:build !linux

package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
)

func healthDir() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "wormhole"), nil
}

func listenHealth() (net.Listener, error) {
	dir, err := healthDir()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, fmt.Sprintf("%d.sock", os.Getpid()))
	_ = os.Remove(path) // left by a process that had our id
	return net.Listen("unix", path)
}

// agentsHere are the sockets in the user's cache folder.
func agentsHere() []candidate {
	dir, err := healthDir()
	if err != nil {
		return nil
	}
	paths, _ := filepath.Glob(filepath.Join(dir, "*.sock"))
	var all []candidate
	for _, p := range paths {
		pid := strings.TrimSuffix(filepath.Base(p), ".sock")
		all = append(all, candidate{name: fmt.Sprintf("(pid %s)", pid), addr: p})
	}
	return all
}

func peerPid(net.Conn) int { return 0 }
