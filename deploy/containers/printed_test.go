//go:build containers

package containers

import (
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// printedCommand finds the lines of a compose file that a person is told to type.
var printedCommand = regexp.MustCompile(`(?m)^#   (\S.*)$`)

// TestCommandsPrintedInComposeFilesWork types them one after the other.
func TestCommandsPrintedInComposeFilesWork(t *testing.T) {
	dir := filepath.Join(projectRoot(t), "deploy", "compose")
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(files) != 2 {
		t.Fatalf("found %v, %v", files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) { typeCommands(t, dir, filepath.Base(file)) })
	}
}

func typeCommands(t *testing.T, dir, file string) {
	text, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		t.Fatal(err)
	}
	matches := printedCommand.FindAllStringSubmatch(string(text), -1)
	if len(matches) < 3 {
		t.Fatalf("found %d commands in %s", len(matches), file)
	}
	for _, port := range []string{"8080", "8443", "8444", "8445"} {
		listener, err := net.Listen("tcp", "127.0.0.1:"+port)
		if err != nil {
			t.Fatalf("the commands need port %s of this machine: %v", port, err)
		}
		_ = listener.Close()
	}
	p := newProject(t, file)
	t.Cleanup(func() { _ = os.Remove(filepath.Join(dir, "ca.pem")) })
	for _, match := range matches {
		said := p.shell(match[1])
		t.Logf("%s\n%s", match[1], lastBytes([]byte(said), 300))
		if !strings.HasPrefix(match[1], "curl") {
			continue
		}
		if !strings.Contains(said, "You have reached") || !slices.ContainsFunc(strings.Split(said, "\n"), func(line string) bool {
			return strings.HasPrefix(strings.ToLower(line), "x-internal-service: ")
		}) {
			t.Errorf("%s printed %q", match[1], said)
		}
	}
}
