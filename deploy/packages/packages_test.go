// Package packages_test builds what a release hands out and tries it.
package packages_test

import (
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const version = "v1.2.3"

func TestReleaseIsCompleteAndItsPackagesWork(t *testing.T) {
	out := t.TempDir()
	run(t, "", "bash", "build.sh", version, out, "linux/amd64")

	for _, name := range []string{
		"wormhole-linux-amd64", "edge-linux-amd64", "wormhole-linux-amd64.cdx.json", "edge-linux-amd64.cdx.json",
		"wormhole_1.2.3_amd64.deb", "wormhole-edge_1.2.3_amd64.deb", "wormhole-1.2.3-1.x86_64.rpm", "wormhole-edge-1.2.3-1.x86_64.rpm",
	} {
		if info, err := os.Stat(filepath.Join(out, name)); err != nil || info.Size() == 0 {
			t.Errorf("%s is missing: %v", name, err)
		}
	}
	t.Run("checksums hold", func(t *testing.T) {
		run(t, out, "sha256sum", "--check", "--strict", "SHA256SUMS")
		files, _ := os.ReadDir(out)
		if lines := strings.Count(read(t, filepath.Join(out, "SHA256SUMS")), "\n"); lines != len(files)-1 {
			t.Errorf("%d files and %d sums", len(files)-1, lines)
		}
	})
	t.Run("bill of materials names every module", func(t *testing.T) {
		for _, name := range []string{"wormhole-linux-amd64", "edge-linux-amd64"} {
			checkBill(t, filepath.Join(out, name))
		}
	})
	t.Run("deb installs and runs", func(t *testing.T) { installDeb(t, out) })
	t.Run("rpm has what it should and installs", func(t *testing.T) { checkRPMs(t, out) })
}

// installDeb lets dpkg install both packages into a root of their own.
func installDeb(t *testing.T, out string) {
	if _, err := exec.LookPath("dpkg"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	root := t.TempDir()
	for _, dir := range []string{"var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/dpkg/triggers", "var/log"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "var/lib/dpkg/status"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dpkg := []string{"--root=" + root, "--force-not-root", "--force-script-chrootless", "--force-bad-path", "--log=/dev/null"}
	run(t, out, "dpkg", append(dpkg, "--force-architecture", "-i", "wormhole_1.2.3_amd64.deb", "wormhole-edge_1.2.3_amd64.deb")...)

	if text := run(t, "", filepath.Join(root, "usr/bin/wormhole"), "--version"); !strings.HasPrefix(text, "wormhole "+version+" ") {
		t.Errorf("wormhole --version says %q", text)
	}
	if text := run(t, "", filepath.Join(root, "usr/bin/edge"), "version"); strings.TrimSpace(text) != version {
		t.Errorf("edge version says %q", text)
	}
	for _, unit := range []string{"wormhole-edge.service", "wormhole@.service"} {
		text := read(t, filepath.Join(root, "usr/lib/systemd/system", unit))
		if !strings.Contains(text, "\nExecStart=/usr/bin/") || strings.Contains(text, "=/usr/local/") {
			t.Errorf("%s starts no program of the package", unit)
		}
	}
	config := filepath.Join(root, "etc/wormhole/edge.yaml")
	if err := os.WriteFile(config, []byte("hostname: mine.example.com\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// The same again is an upgrade: what the operator wrote stays.
	run(t, out, "dpkg", append(dpkg, "--force-architecture", "--force-confold", "-i", "wormhole-edge_1.2.3_amd64.deb")...)
	if text := read(t, config); !strings.Contains(text, "mine.example.com") {
		t.Errorf("the operator's configuration is now %q", text)
	}
	run(t, "", "dpkg", append(dpkg, "--purge", "wormhole", "wormhole-edge")...)
	if _, err := os.Stat(filepath.Join(root, "usr/bin/edge")); !os.IsNotExist(err) {
		t.Errorf("the edge is still there after its package was removed: %v", err)
	}
}

// The configuration that the package brings names nothing that the edge refuses.
func TestPackagedConfigurationIsAccepted(t *testing.T) {
	dir := t.TempDir()
	text := read(t, "edge.yaml")
	// As an operator would: every example switched on.
	var lines []string
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "# ") {
			line = line[1:]
		}
		lines = append(lines, line)
	}
	for name, text := range map[string]string{"as it comes": text, "all switched on": strings.Join(lines, "")} {
		config := filepath.Join(dir, "edge.yaml")
		// A fault of its own, so that nothing is served: it must be the only one.
		if err := os.WriteFile(config, []byte(text+"\nno_such_key: 1\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("go", "run", "../../edge", "serve", "--config", config, "--data-dir", filepath.Join(dir, "data"))
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "no_such_key") || strings.Contains(string(out), "faults") {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

func TestAgentBuildsForEverySystem(t *testing.T) {
	for _, system := range []string{"linux/amd64", "linux/arm64", "darwin/amd64", "darwin/arm64", "windows/amd64", "windows/arm64"} {
		goos, arch, _ := strings.Cut(system, "/")
		cmd := exec.Command("go", "build", "-o", os.DevNull, "wormhole/wormhole")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+goos, "GOARCH="+arch)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", system, err, out)
		}
	}
}

func checkBill(t *testing.T, binary string) {
	t.Helper()
	var bill struct {
		BOMFormat  string
		Components []struct {
			Name, Version string
			Hashes        []struct{ Content string }
		}
	}
	if err := json.Unmarshal([]byte(read(t, binary+".cdx.json")), &bill); err != nil || bill.BOMFormat != "CycloneDX" {
		t.Fatalf("%s: %v", binary, err)
	}
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range info.Deps {
		found := slices.ContainsFunc(bill.Components, func(c struct {
			Name, Version string
			Hashes        []struct{ Content string }
		},
		) bool {
			return c.Name == m.Path && c.Version == m.Version && len(c.Hashes) == 1 && len(c.Hashes[0].Content) == 64
		})
		if !found {
			t.Errorf("%s: %s %s is not in the bill", filepath.Base(binary), m.Path, m.Version)
		}
	}
	if len(bill.Components) != len(info.Deps)+1 {
		t.Errorf("%d components, %d modules and the standard library", len(bill.Components), len(info.Deps))
	}
}

func run(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	var stderr bytes.Buffer
	cmd.Dir, cmd.Stderr = dir, &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s%s", name, args, err, out, stderr.String())
	}
	return string(out)
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
