package store

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

// TestMain also serves as the other process of tests that need one.
func TestMain(m *testing.M) {
	if role := os.Getenv("STORE_TEST_ROLE"); role != "" {
		os.Exit(otherProcess(role, os.Getenv("STORE_TEST_DIR")))
	}
	goleak.VerifyTestMain(m)
}
