//go:build containers

package containers

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const megabyte = 1_000_000

// inspected is what `docker image inspect` says.
type inspected struct {
	Size   int64
	Config struct {
		User        string
		Labels      map[string]string
		Entrypoint  []string
		Healthcheck struct{ Test []string }
	}
	RootFS struct{ Layers []string }
}

func inspect(t *testing.T, image string) inspected {
	t.Helper()
	var found []inspected
	if err := json.Unmarshal([]byte(docker(t, "image", "inspect", image)), &found); err != nil || len(found) != 1 {
		t.Fatalf("inspect %s: %v", image, err)
	}
	return found[0]
}

func TestImagesAreSmallBareAndUnprivileged(t *testing.T) {
	for _, c := range []struct {
		image, program string
		limit          int64
		health         []string
	}{
		{agentImage, "/wormhole", 10 * megabyte, []string{"CMD", "/wormhole", "--health"}},
		{edgeImage, "/edge", 40 * megabyte, []string{"CMD", "/edge", "status"}},
	} {
		t.Run(c.image, func(t *testing.T) {
			image := inspect(t, c.image)
			t.Logf("%s is %.1f MB", c.image, float64(image.Size)/megabyte)
			if image.Size > c.limit {
				t.Errorf("%d bytes, want at most %d", image.Size, c.limit)
			}
			if image.Config.User != "65532:65532" {
				t.Errorf("runs as %q", image.Config.User)
			}
			if got, want := strings.Join(image.Config.Healthcheck.Test, " "), strings.Join(c.health, " "); got != want {
				t.Errorf("health check %q, want %q", got, want)
			}
			for _, label := range []string{"title", "description", "licenses", "version"} {
				if image.Config.Labels["org.opencontainers.image."+label] == "" {
					t.Errorf("no label org.opencontainers.image.%s", label)
				}
			}
			if code, _ := exitOf(t, "--entrypoint", "/bin/sh", c.image, "-c", "true"); code != 127 {
				t.Errorf("a shell in the image ended with %d, want 127: there is none", code)
			}
			if code, text := exitOf(t, "--read-only", "--cap-drop", "ALL", "--network", "none", c.image, version(c.program)); code != 0 {
				t.Errorf("version without any right ended with %d: %s", code, text)
			}
		})
	}
}

func version(program string) string {
	if program == "/edge" {
		return "version"
	}
	return "--version"
}

// TestDockerfilesBuildForARM64 gives the Dockerfiles the arguments that BuildKit gives
// them with --platform linux/arm64, and looks at the programs. Running them needs
// such a machine, or an emulator.
func TestDockerfilesBuildForARM64(t *testing.T) {
	for _, c := range []struct{ file, program string }{{"Dockerfile.agent", "/wormhole"}, {"Dockerfile.edge", "/edge"}} {
		const image = "wormhole/test-arm64"
		docker(t, "build", "-q", "--build-arg", "TARGETOS=linux", "--build-arg", "TARGETARCH=arm64", "-f", c.file, "-t", image, ".")
		program, err := elf.NewFile(bytes.NewReader(fileOf(t, image, c.program)))
		if err != nil {
			t.Fatalf("%s: %v", c.file, err)
		}
		if program.Machine != elf.EM_AARCH64 {
			t.Errorf("%s gives a program for %v", c.file, program.Machine)
		}
		if libraries, err := program.ImportedLibraries(); err != nil || len(libraries) > 0 {
			t.Errorf("%s gives a program that loads %v, %v", c.file, libraries, err)
		}
		docker(t, "rmi", "-f", image)
	}
}

// TestTwoBuildsGiveTheSameBinary compares the image's agent with one built from the
// same sources in another folder: outside of any container where the compiler is
// the same one, else in a second image.
func TestTwoBuildsGiveTheSameBinary(t *testing.T) {
	var second []byte
	here, err := output(t.Context(), projectRoot(t), "go", "version")
	if err != nil {
		t.Fatal(err)
	}
	if _, there := exitOf(t, "--network", "none", golang, "go", "version"); strings.TrimSpace(there) == here {
		second = builtHere(t)
	} else {
		const again = "wormhole/test-rebuild"
		docker(t, "build", "-q", "--no-cache", "-f", "Dockerfile.agent", "-t", again, ".")
		second = fileOf(t, again, "/wormhole")
	}
	if first := fileOf(t, agentImage, "/wormhole"); sha256.Sum256(first) != sha256.Sum256(second) {
		t.Errorf("got %d bytes with digest %x and %d bytes with %x from the same sources",
			len(first), sha256.Sum256(first), len(second), sha256.Sum256(second))
	}
}

// builtHere is the agent built as Dockerfile.agent says.
func builtHere(t *testing.T) []byte {
	t.Helper()
	to := filepath.Join(t.TempDir(), "wormhole")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false",
		"-ldflags", "-s -w -X main.version=devel", "-o", to, "./wormhole")
	build.Dir = projectRoot(t)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	binary, err := os.ReadFile(to)
	if err != nil {
		t.Fatal(err)
	}
	return binary
}
