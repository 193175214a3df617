//go:build containers

package containers

import (
	"crypto/sha256"
	"encoding/json"
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

func TestTwoBuildsGiveTheSameBinary(t *testing.T) {
	const again = "wormhole/test-rebuild"
	docker(t, "build", "-q", "--no-cache", "-f", "Dockerfile.agent", "-t", again, ".")
	first, second := sha256.Sum256(fileOf(t, agentImage, "/wormhole")), sha256.Sum256(fileOf(t, again, "/wormhole"))
	if first != second {
		t.Errorf("got %x and %x from the same sources", first, second)
	}
}
