package process

import (
	"errors"
	"os"
	"strings"
)

// Errors of Start, of the calls on an app that has ended, and of those that the
// platform cannot serve.
var (
	// ErrNotFound says that no file is the command: exit code 127.
	ErrNotFound = errors.New("command not found")
	// ErrNotExecutable says that the file exists and cannot be run: exit code 126.
	ErrNotExecutable = errors.New("command not executable")
	// ErrExited says that the app has already ended.
	ErrExited = errors.New("app has exited")
	// ErrClosed says that the Supervisor is closed.
	ErrClosed = errors.New("supervisor is closed")
	// ErrUnsupported says that this operating system does not offer the call.
	ErrUnsupported = errors.New("not supported on this operating system")
)

// Command is the app to start. No shell is involved.
type Command struct {
	// Path is a file (if it has a slash) or a name looked up in the PATH of Env,
	// with the rules of execvp: the first executable file wins, and an empty
	// element of PATH is the app's working directory.
	Path string
	// Args are the arguments after the command's own name.
	Args []string
	// Env is the app's whole environment; nil means this program's, without
	// the agent's token (see WithoutToken).
	Env []string
	// Dir is the app's working directory; empty means this program's.
	Dir string
	// Stdin, Stdout and Stderr are handed over as they are, so that the app reads
	// and writes the very same descriptors; nil means those of this program.
	Stdin, Stdout, Stderr *os.File
}

func (c Command) withDefaults() Command {
	if c.Env == nil {
		c.Env = WithoutToken(os.Environ())
	}
	if c.Stdin == nil {
		c.Stdin = os.Stdin
	}
	if c.Stdout == nil {
		c.Stdout = os.Stdout
	}
	if c.Stderr == nil {
		c.Stderr = os.Stderr
	}
	return c
}

// WithoutToken returns env without the variables that carry the agent's token,
// WORMHOLE_TOKEN and FLY_TOKEN, and with every other entry as it was and in its
// order. The app has no use for the token and may print its environment.
func WithoutToken(env []string) []string {
	kept := make([]string, 0, len(env))
	for _, entry := range env {
		switch name, _, _ := strings.Cut(entry, "="); name {
		case "WORMHOLE_TOKEN", "FLY_TOKEN":
		default:
			kept = append(kept, entry)
		}
	}
	return kept
}

// ExitCode returns what to exit with when Start has failed with err: 127 if the
// command was not found, 126 if it could not be run, as shells do.
func ExitCode(err error) int {
	if errors.Is(err, ErrNotFound) {
		return 127
	}
	return 126
}

// lookupEnv returns the value that env gives a variable. Of several entries the
// first counts, as in libc's getenv.
func lookupEnv(env []string, name string) (string, bool) {
	for _, entry := range env {
		if n, value, ok := strings.Cut(entry, "="); ok && n == name {
			return value, true
		}
	}
	return "", false
}
