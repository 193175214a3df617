//go:build linux

package process

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestACommandIsFoundAsExecvpFindsIt(t *testing.T) {
	root := t.TempDir()
	for path, mode := range map[string]os.FileMode{
		"locked/tool": 0o644, "bin/tool": 0o755, "bin/locked": 0o644, "later/locked": 0o755, "work/here": 0o755, "first/dir/x": 0o755,
	} {
		full := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte("#!/bin/sh\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	in := func(name string) string { return filepath.Join(root, name) }
	for _, c := range []struct {
		name, path, search, want string
		err                      error
	}{
		{"the first that can be run", "tool", in("none") + ":" + in("locked") + ":" + in("bin"), in("bin/tool"), nil},
		{"one without permission is passed over", "locked", in("bin") + ":" + in("later"), in("later/locked"), nil},
		{"a directory is passed over", "dir", in("first") + ":" + in("bin"), "", ErrNotExecutable},
		{"only one without permission", "locked", in("bin") + ":" + in("none"), "", ErrNotExecutable},
		{"nothing", "tool", in("later"), "", ErrNotFound},
		{"an empty element is the working directory", "here", in("bin") + ":", "./here", nil},
		{"a slash forgoes the search", "./here", in("bin"), "./here", nil},
		{"an absolute file", in("bin/tool"), "", in("bin/tool"), nil},
		{"empty", "", in("bin"), "", ErrNotFound},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := findCommand(Command{Path: c.path, Dir: in("work"), Env: []string{"PATH=" + c.search, "PATH=/ignored"}})
			if got != c.want || !errors.Is(err, c.err) {
				t.Errorf("got %q, %v, want %q, %v", got, err, c.want, c.err)
			}
		})
	}
}

func TestWithoutPathTheUsualFoldersAreSearched(t *testing.T) {
	if _, err := findCommand(Command{Path: "sh"}); err != nil {
		t.Error(err)
	}
}

func TestTheAppRunsInItsDirectory(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "app"), []byte("#!/bin/sh\ntouch was-here\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	s := supervise(t)
	if got := start(t, s, Command{Path: "./app", Dir: dir}).Wait(); got != (Status{}) {
		t.Fatalf("got %v, want exit code 0", got)
	}
	if _, err := os.Stat(filepath.Join(dir, "was-here")); err != nil {
		t.Error(err)
	}
	if _, err := s.Start(Command{Path: "sh", Dir: filepath.Join(dir, "missing")}); err == nil {
		t.Error("an app was started in a directory that does not exist")
	}
}
