//go:build linux || darwin

package process

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// defaultPath is searched when the app's environment has no PATH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// findCommand returns the file that execvp would run for cmd. A file that may
// not be executed does not end the search, but decides which error it ends in.
func findCommand(cmd Command) (string, error) {
	if cmd.Path == "" {
		return "", fmt.Errorf("start app: empty command: %w", ErrNotFound)
	}
	candidates := []string{cmd.Path}
	isFile := strings.Contains(cmd.Path, "/")
	if !isFile {
		search, ok := lookupEnv(cmd.Env, "PATH")
		if !ok {
			search = defaultPath
		}
		candidates = candidates[:0]
		for _, dir := range strings.Split(search, ":") {
			if dir == "" {
				dir = "."
			}
			candidates = append(candidates, dir+"/"+cmd.Path)
		}
	}
	refused := ""
	for _, path := range candidates {
		// The kernel resolves a relative path in the app's directory, not in ours.
		there := path
		if !filepath.IsAbs(path) && cmd.Dir != "" {
			there = filepath.Join(cmd.Dir, path)
		}
		info, err := os.Stat(there)
		switch {
		case err == nil && !info.IsDir() && unix.Access(there, unix.X_OK) == nil:
			return path, nil
		case err == nil, isFile && os.IsPermission(err): // a closed folder of PATH may hold nothing
			if refused == "" {
				refused = path
			}
		}
	}
	if refused != "" {
		return "", fmt.Errorf("start %s: %w: %s is a directory or lacks permission", cmd.Path, ErrNotExecutable, refused)
	}
	return "", fmt.Errorf("start %s: %w", cmd.Path, ErrNotFound)
}
