//go:build linux

package process

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// mirror is an app that shows what it has been given, then echoes its input to
// both outputs. The signal masks tell what it inherits as ignored and blocked.
const mirror = `
	env; pwd; umask; ulimit -n; ulimit -c
	grep -E '^Sig(Blk|Ign)' /proc/self/status
	ls /proc/self/fd
	printf '%s\n' "$0" "$@"
	while IFS= read -r line; do printf '%s\n' "$line"; printf '%s\n' "$line" >&2; done
	printf 'no newline at the end'`

func TestG9TheAppSeesAndSaysWhatItWouldByItself(t *testing.T) {
	for _, ignore := range []string{"", "HUP INT"} {
		name := "nothing ignored"
		if ignore != "" {
			name = "under nohup"
		}
		t.Run(name, func(t *testing.T) {
			run := func(cmd *exec.Cmd, env ...string) (stdout, stderr string) {
				t.Helper()
				args := cmd.Args
				if ignore != "" {
					args = append([]string{"sh", "-c", `trap '' ` + ignore + `; exec "$0" "$@"`}, args...)
				}
				cmd = exec.Command(args[0], args[1:]...)
				cmd.Env = append(os.Environ(), "EMPTY=", "MULTI=a\nb", "TWICE=1", "WORMHOLE_TOKEN_FILE=/run/token", "WORMHOLE_PORT=80")
				cmd.Env = append(cmd.Env, env...)
				cmd.Stdin = strings.NewReader("one\n\x00two \xff\n\n")
				var out, errs bytes.Buffer
				cmd.Stdout, cmd.Stderr = &out, &errs
				if err := cmd.Run(); err != nil {
					t.Fatalf("%v: %s", err, errs.Bytes())
				}
				return out.String(), errs.String()
			}
			app := []string{"sh", "-c", mirror, "first", "", "a b", "*"}
			wantOut, wantErr := run(exec.Command(app[0], app[1:]...))
			inBothPlaces(t, func(t *testing.T, play func(string, ...string) *exec.Cmd) {
				gotOut, gotErr := run(play("agent", app...), "WORMHOLE_TOKEN=secret", "FLY_TOKEN=secret")
				if gotOut != wantOut {
					t.Errorf("stdout: got\n%s\nwant\n%s", gotOut, wantOut)
				}
				if gotErr != wantErr {
					t.Errorf("stderr: got %q, want %q", gotErr, wantErr)
				}
			})
		})
	}
}

func TestG9NothingOf100MiBOfOutputIsLost(t *testing.T) {
	digest := func(cmd *exec.Cmd) (sum [sha256.Size]byte, size int64) {
		t.Helper()
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		hash := sha256.New()
		size, err = io.Copy(hash, out)
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		return [sha256.Size]byte(hash.Sum(nil)), size
	}
	app := []string{"seq", "13200000"}
	want, size := digest(exec.Command(app[0], app[1:]...))
	if size < 100<<20 {
		t.Fatalf("the app writes %d bytes, want at least 100 MiB", size)
	}
	inBothPlaces(t, func(t *testing.T, play func(string, ...string) *exec.Cmd) {
		if got, n := digest(play("agent", app...)); got != want {
			t.Errorf("got %d other bytes, want the %d that the app writes by itself", n, size)
		}
	})
}

func TestG9TheVeryDescriptorsAreInherited(t *testing.T) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	s := supervise(t)
	app := start(t, s, Command{Path: "readlink", Args: []string{"/proc/self/fd/1"}, Stdout: write})
	write.Close()
	app.Wait()
	got, err := io.ReadAll(read)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", read.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if strings.TrimSpace(string(got)) != want {
		t.Errorf("the app writes to %q, want %q", got, want)
	}
}

func TestWithoutTokenDropsTheTokenAndNothingElse(t *testing.T) {
	env := []string{
		"A=1", "WORMHOLE_TOKEN=x", "WORMHOLE_TOKEN_FILE=/f", "FLY_TOKEN=", "fly_token=2", "WORMHOLE_TOKENS=3", "malformed", "WORMHOLE_TOKEN", "A=2", "=C:=d",
	}
	given := slices.Clone(env)
	got := WithoutToken(env)
	want := []string{"A=1", "WORMHOLE_TOKEN_FILE=/f", "fly_token=2", "WORMHOLE_TOKENS=3", "malformed", "A=2", "=C:=d"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if !slices.Equal(env, given) {
		t.Errorf("the argument was changed to %q", env)
	}
}
