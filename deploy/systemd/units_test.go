// Package systemd_test checks the units with systemd's own verifier.
package systemd_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

var program = regexp.MustCompile(`(?m)^ExecStart=\S+`)

func TestUnitsPassSystemdsVerifier(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("systemd-analyze is not installed")
	}
	units, err := filepath.Glob("*.service")
	if err != nil || len(units) != 2 {
		t.Fatalf("found %v, %v", units, err)
	}
	dir := t.TempDir()
	for _, unit := range units {
		text, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		// The verifier wants the program to exist, which here it does not.
		if err := os.WriteFile(filepath.Join(dir, unit), program.ReplaceAll(text, []byte("ExecStart=/bin/true")), 0o600); err != nil {
			t.Fatal(err)
		}
		if output, err := exec.CommandContext(t.Context(), analyze, "verify", filepath.Join(dir, unit)).CombinedOutput(); err != nil || len(output) > 0 {
			t.Errorf("%s: %v\n%s", unit, err, output)
		}
	}
}
