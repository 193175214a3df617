package e2e

import (
	"fmt"
	"os"
	"testing"

	"wormhole/edge/edgetest"
)

// binaries are the real programs, built once before the tests.
var binaries edgetest.Binaries

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "wormhole-e2e-")
	if err == nil {
		binaries, err = edgetest.Build(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	status := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(status)
}
