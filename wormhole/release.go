package main

import (
	"os"
	"path/filepath"
	"strings"
)

// release describes what the app was built from.
type release struct {
	id, description, branch string
	source                  string // where id came from, if it was found
}

// Variables that platforms and CI systems set, in the order of preference.
func releaseVariables() []string {
	return []string{
		"HEROKU_SLUG_COMMIT", "SOURCE_VERSION", "SOURCE_COMMIT", "GITHUB_SHA", "CI_COMMIT_SHA", "GIT_COMMIT",
		"GIT_SHA", "COMMIT_SHA", "CIRCLE_SHA1", "BUILDKITE_COMMIT", "RENDER_GIT_COMMIT", "RAILWAY_GIT_COMMIT_SHA",
		"VERCEL_GIT_COMMIT_SHA", "K_REVISION",
	}
}

func branchVariables() []string {
	return []string{
		"GITHUB_REF_NAME", "CI_COMMIT_REF_NAME", "GIT_BRANCH", "CIRCLE_BRANCH", "BUILDKITE_BRANCH",
		"RENDER_GIT_BRANCH", "RAILWAY_GIT_BRANCH", "VERCEL_GIT_COMMIT_REF",
	}
}

// complete fills in what was not set, from the variables that FLY_RELEASE_*_VAR
// name, those of well-known platforms, and the repository around the working
// directory. All of it is for people; nothing here is an error.
func (r *release) complete(env environment) {
	first := func(names []string) (value, name string) {
		for _, n := range names {
			if v := strings.TrimSpace(env.get(n)); v != "" && checkText(v, 256) == nil {
				return v, n
			}
		}
		return "", ""
	}
	named := func(pointer string) []string {
		if n := env.get(pointer); n != "" {
			return []string{n}
		}
		return nil
	}
	r.source = "WORMHOLE_RELEASE"
	if r.id == "" {
		r.id, r.source = first(append(named("FLY_RELEASE_ID_VAR"), releaseVariables()...))
	}
	if r.branch == "" {
		r.branch, _ = first(append(named("FLY_RELEASE_BRANCH_VAR"), branchVariables()...))
	}
	r.description, _ = first(named("FLY_RELEASE_DESC_VAR"))
	if r.id != "" {
		return
	}
	dir, err := os.Getwd()
	if err != nil {
		return
	}
	id, branch := readGit(dir)
	if id == "" {
		return
	}
	r.id, r.source = id, "git"
	if r.branch == "" {
		r.branch = branch
	}
}

// readGit finds the commit and branch of the repository around dir from its
// files; there is seldom a git binary in a container.
func readGit(dir string) (commit, branch string) {
	for {
		if git := gitDir(filepath.Join(dir, ".git")); git != "" {
			return readHead(git)
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", ""
		}
		dir = parent
	}
}

// gitDir follows a .git file, as worktrees and submodules have, to its directory.
func gitDir(path string) string {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return ""
	case info.IsDir():
		return path
	}
	target, ok := strings.CutPrefix(readShort(path), "gitdir: ")
	if !ok {
		return ""
	}
	if !filepath.IsAbs(target) {
		target = filepath.Join(filepath.Dir(path), target)
	}
	return target
}

func readHead(git string) (commit, branch string) {
	head := readShort(filepath.Join(git, "HEAD"))
	ref, isRef := strings.CutPrefix(head, "ref: ")
	if !isRef {
		return asCommit(head), ""
	}
	if !filepath.IsLocal(ref) {
		return "", ""
	}
	branch, _ = strings.CutPrefix(ref, "refs/heads/")
	dirs := []string{git}
	if common := readShort(filepath.Join(git, "commondir")); common != "" { // a worktree
		if !filepath.IsAbs(common) {
			common = filepath.Join(git, common)
		}
		dirs = append(dirs, common)
	}
	for _, d := range dirs {
		if c := asCommit(readShort(filepath.Join(d, ref))); c != "" {
			return c, branch
		}
		packed, _ := os.ReadFile(filepath.Join(d, "packed-refs"))
		for line := range strings.Lines(string(packed)) {
			if c, name, ok := strings.Cut(strings.TrimSpace(line), " "); ok && name == ref && asCommit(c) != "" {
				return c, branch
			}
		}
	}
	return "", branch
}

// asCommit is s if it looks like an object id, SHA-1 or SHA-256.
func asCommit(s string) string {
	if len(s) != 40 && len(s) != 64 || strings.Trim(s, "0123456789abcdef") != "" {
		return ""
	}
	return s
}

// readShort is the content of a small file, trimmed; empty if it cannot be read.
func readShort(path string) string {
	info, err := os.Stat(path)
	if err != nil || info.Size() > 4096 {
		return ""
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}
