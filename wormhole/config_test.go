package main

import (
	"bytes"
	"crypto/ed25519"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"wormhole/shared/token"
)

// lookup makes an environment of pairs.
func lookup(vars map[string]string) environment {
	return func(name string) (string, bool) {
		v, ok := vars[name]
		return v, ok
	}
}

// mint makes a token that expires after ttl.
func mint(t testing.TB, ttl time.Duration) string {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	issued := now.Add(min(0, ttl) - time.Hour)
	raw, err := token.Mint(key, "k1", "test-network", token.Claims{
		ID: "t1", Name: "test", Hosts: []string{"app.test"}, Kinds: []string{"http"},
		IssuedAt: issued, NotBefore: issued, ExpiresAt: now.Add(ttl),
	})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func loadAll(t testing.TB, args []string, vars map[string]string) (*config, []error) {
	t.Helper()
	inv, faults := parseArgs(args)
	env := lookup(vars)
	cfg, more := load(resolve(inv.flags, env), env, inv.command)
	return cfg, append(faults, more...)
}

func mustLoad(t testing.TB, args []string, vars map[string]string) *config {
	t.Helper()
	all := map[string]string{"WORMHOLE_TOKEN": "x", "WORMHOLE_EDGE": "edge.test"}
	for k, v := range vars {
		all[k] = v
	}
	cfg, faults := loadAll(t, args, all)
	if len(faults) > 0 {
		t.Fatalf("faults: %v", faults)
	}
	return cfg
}

func TestEveryFaultIsListed(t *testing.T) {
	var out, errs bytes.Buffer
	status := run([]string{
		"--token=secret", "--bogus", "--edge", "a b,c:99999", "--transport=pigeon", "--drain-timeout", "soon",
		"--ready-path=healthz", "--health-threshold=0", "--tags=nonsense", "--name", "a\x01b", "--log-level=loud", "--port=x",
		"--ca-file=/does/not/exist",
	}, lookup(map[string]string{
		"WORMHOLE_HOST": "bad_host,*.com", "WORMHOLE_LOG_FORMAT": "xml", "WORMHOLE_MAX_STREAMS": "many",
		"HTTPS_PROXY": "ftp://user:hunter2@proxy",
	}), &out, &errs)
	if status != 78 {
		t.Errorf("exit status %d, want 78", status)
	}
	for _, want := range []string{
		"--token: a token is never accepted on the command line", "--bogus", `"a b"`, "c:99999", "--transport", "--drain-timeout", "--ready-path",
		"--health-threshold", "--tags", "--name", "--log-level", "--port", "--ca-file", "bad_host", "*.com",
		"WORMHOLE_LOG_FORMAT", "WORMHOLE_MAX_STREAMS", "HTTPS_PROXY", "WORMHOLE_TOKEN: is required",
	} {
		if !strings.Contains(errs.String(), want) {
			t.Errorf("the list of faults does not mention %q:\n%s", want, errs.String())
		}
	}
	if strings.Contains(errs.String(), "secret") || strings.Contains(errs.String(), "hunter2") {
		t.Errorf("a secret is in\n%s", errs.String())
	}
}

func TestFlagBeforeEnvironmentBeforeDefault(t *testing.T) {
	if c := mustLoad(t, nil, nil); c.drainTimeout != 8*time.Second || c.transport != "auto" || !c.endpoint.IsZero() {
		t.Errorf("defaults: %+v", c)
	}
	env := map[string]string{"WORMHOLE_DRAIN_TIMEOUT": "5s", "WORMHOLE_TRANSPORT": "quic"}
	c := mustLoad(t, []string{"--drain-timeout=3s"}, env)
	if c.drainTimeout != 3*time.Second || c.transport != "quic" {
		t.Errorf("drain %s, transport %s", c.drainTimeout, c.transport)
	}
	// What is empty is not set.
	if c := mustLoad(t, nil, map[string]string{"WORMHOLE_DRAIN_TIMEOUT": ""}); c.drainTimeout != 8*time.Second {
		t.Errorf("drain %s", c.drainTimeout)
	}
}

func TestAliasesWorkAndTheirOwnNamesWin(t *testing.T) {
	c, faults := loadAll(t, nil, map[string]string{
		"FLY_TOKEN": "tok", "FLY_REMOTE_ENDPOINT": "edge.test:8443", "FLY_LOCAL_ENDPOINT": "127.0.0.1:4000",
		"FLY_LOG_LEVEL": "debug", "VIRTUAL_HOST": "a.test, b.test",
		"FLY_RELEASE_ID_VAR": "MY_ID", "FLY_RELEASE_DESC_VAR": "MY_DESC", "FLY_RELEASE_BRANCH_VAR": "MY_BRANCH",
		"MY_ID": "v42", "MY_DESC": "fix the bug", "MY_BRANCH": "trunk",
	})
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	if c.token != "tok" || c.edges[0] != "edge.test:8443" || c.endpoint.String() != "127.0.0.1:4000" || c.logLevel != slog.LevelDebug ||
		!slices.Equal(c.hosts, []string{"a.test", "b.test"}) {
		t.Errorf("config %+v", c)
	}
	if c.release.id != "v42" || c.release.description != "fix the bug" || c.release.branch != "trunk" {
		t.Errorf("release %+v", c.release)
	}
	c, _ = loadAll(t, nil, map[string]string{"FLY_TOKEN": "old", "WORMHOLE_TOKEN": "new", "FLY_PORT": "1", "WORMHOLE_PORT": "2", "WORMHOLE_EDGE": "e.test"})
	if c.token != "new" || c.endpoint.String() != "2" {
		t.Errorf("token %s, endpoint %s", c.token, c.endpoint)
	}
}

func TestWhereTheAppIs(t *testing.T) {
	for _, c := range []struct {
		name     string
		args     []string
		env      map[string]string
		endpoint string
		fallback int
		fault    bool
	}{
		{"nothing said", nil, nil, "", 0, false},
		{"PORT", nil, map[string]string{"PORT": "3000"}, "", 3000, false},
		{"port before PORT", nil, map[string]string{"PORT": "3000", "WORMHOLE_PORT": "4000"}, "4000", 0, false},
		{"flag before other variable", []string{"--port=1"}, map[string]string{"WORMHOLE_ENDPOINT": "unix:/x"}, "1", 0, false},
		{"endpoint flag before port variable", []string{"--endpoint=unix:/x"}, map[string]string{"WORMHOLE_PORT": "1"}, "unix:/x", 0, false},
		{"both at once", nil, map[string]string{"WORMHOLE_ENDPOINT": "unix:/x", "WORMHOLE_PORT": "1"}, "", 0, true},
		{"bad PORT", nil, map[string]string{"PORT": "http"}, "", 0, true},
		{"Kubernetes service link", nil, map[string]string{"WORMHOLE_PORT": "tcp://10.0.0.1:80"}, "", 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			env := map[string]string{"WORMHOLE_TOKEN": "x", "WORMHOLE_EDGE": "edge.test"}
			for k, v := range c.env {
				env[k] = v
			}
			cfg, faults := loadAll(t, c.args, env)
			if (len(faults) > 0) != c.fault {
				t.Fatalf("faults %v", faults)
			}
			if !c.fault && (cfg.endpoint.String() != c.endpoint || cfg.fallback != c.fallback) {
				t.Errorf("endpoint %q, fallback %d", cfg.endpoint, cfg.fallback)
			}
		})
	}
}

func TestEdgesGetPort443AndAreCanonical(t *testing.T) {
	c := mustLoad(t, []string{"--edge", "Edge.Example.COM, 10.0.0.1 ,[::1]:8443,::2,https://e2.test/,bücher.test:1,edge.example.com."}, nil)
	want := []string{"edge.example.com:443", "10.0.0.1:443", "[::1]:8443", "[::2]:443", "e2.test:443", "xn--bcher-kva.test:1"}
	if !slices.Equal(c.edges, want) {
		t.Errorf("edges %q\nwant  %q", c.edges, want)
	}
}

func TestFlagsEndAtTheCommand(t *testing.T) {
	for _, c := range []struct{ args, command []string }{
		{[]string{"--port", "1", "node", "--port", "2", "--help"}, []string{"node", "--port", "2", "--help"}},
		{[]string{"--port=1", "--", "--odd-name", "-v"}, []string{"--odd-name", "-v"}},
		{[]string{"--port=1"}, nil},
	} {
		inv, faults := parseArgs(c.args)
		if len(faults) > 0 || !slices.Equal(inv.command, c.command) || inv.flags["port"] != "1" || inv.help {
			t.Errorf("%q: %+v, %v", c.args, inv, faults)
		}
	}
}

func TestTokenComesFromOnePlace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte("from-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	edge := map[string]string{"WORMHOLE_EDGE": "e.test"}
	with := func(more ...string) map[string]string {
		m := map[string]string{}
		for k, v := range edge {
			m[k] = v
		}
		for i := 0; i < len(more); i += 2 {
			m[more[i]] = more[i+1]
		}
		return m
	}
	if c, faults := loadAll(t, nil, with("WORMHOLE_TOKEN_FILE", path)); len(faults) > 0 || c.token != "from-file" {
		t.Errorf("token %q, %v", c.token, faults)
	}
	if c, faults := loadAll(t, []string{"--token-file", path}, with("WORMHOLE_TOKEN", "env")); len(faults) > 0 || c.token != "from-file" {
		t.Errorf("token %q, %v", c.token, faults)
	}
	if _, faults := loadAll(t, nil, with("WORMHOLE_TOKEN_FILE", path, "WORMHOLE_TOKEN", "env")); len(faults) != 1 {
		t.Errorf("both set: %v", faults)
	}
	if _, faults := loadAll(t, nil, with("WORMHOLE_TOKEN_FILE", path+"x")); len(faults) != 1 {
		t.Errorf("missing file: %v", faults)
	}
}

func TestShowConfigMasksSecretsAndNamesSources(t *testing.T) {
	raw := mint(t, time.Hour)
	var out, errs bytes.Buffer
	status := run([]string{"--show-config", "--name=statler"}, lookup(map[string]string{
		"WORMHOLE_TOKEN": raw, "WORMHOLE_EDGE": "edge.test", "VIRTUAL_HOST": "app.test",
	}), &out, &errs)
	if status != 0 || errs.Len() > 0 {
		t.Errorf("status %d, %s", status, errs.String())
	}
	text := strings.Join(strings.Fields(out.String()), " ")
	for _, want := range []string{
		"token ******** WORMHOLE_TOKEN", "edge edge.test WORMHOLE_EDGE", "name statler --name",
		"host app.test VIRTUAL_HOST", "drain-timeout 8s default",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), raw[:20]) {
		t.Error("the token is shown")
	}
}

func TestHelpNamesEverySetting(t *testing.T) {
	var out bytes.Buffer
	if status := run([]string{"--help"}, lookup(nil), &out, &out); status != 0 {
		t.Errorf("status %d", status)
	}
	for _, s := range settings() {
		for _, name := range append(s.env, s.flag) {
			if !strings.Contains(out.String(), name) {
				t.Errorf("--help does not mention %s", name)
			}
		}
	}
}

func TestTokensThatCannotWorkStopBeforeAnythingStarts(t *testing.T) {
	for name, c := range map[string]struct {
		token  string
		status int
		says   string
	}{
		"garbage": {"garbage", 78, "not a token"},
		"expired": {mint(t, -time.Hour), 77, "expired"},
	} {
		var out, errs bytes.Buffer
		status := run([]string{"touch", filepath.Join(t.TempDir(), "started")}, lookup(map[string]string{
			"WORMHOLE_TOKEN": c.token, "WORMHOLE_EDGE": "127.0.0.1:1",
		}), &out, &errs)
		if status != c.status || !strings.Contains(errs.String(), c.says) {
			t.Errorf("%s: status %d, %s", name, status, errs.String())
		}
	}
}

func TestReleaseIsReadFromGitFiles(t *testing.T) {
	const commit = "0123456789abcdef0123456789abcdef01234567"
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	loose, packed, detached, worktree := t.TempDir(), t.TempDir(), t.TempDir(), t.TempDir()
	write(loose+"/.git/HEAD", "ref: refs/heads/feature/x\n")
	write(loose+"/.git/refs/heads/feature/x", commit+"\n")
	write(loose+"/deep/down/file", "")
	write(packed+"/.git/HEAD", "ref: refs/heads/main\n")
	write(packed+"/.git/packed-refs", "# pack-refs with: peeled\n"+strings.Repeat("f", 40)+" refs/heads/other\n"+commit+" refs/heads/main\n")
	write(detached+"/.git/HEAD", commit+"\n")
	write(worktree+"/.git", "gitdir: "+loose+"/.git/worktrees/w\n")
	write(loose+"/.git/worktrees/w/HEAD", "ref: refs/heads/feature/x\n")
	write(loose+"/.git/worktrees/w/commondir", "../..\n")
	for _, c := range []struct{ dir, commit, branch string }{
		{loose, commit, "feature/x"},
		{loose + "/deep/down", commit, "feature/x"},
		{packed, commit, "main"},
		{detached, commit, ""},
		{worktree, commit, "feature/x"},
	} {
		if got, branch := readGit(c.dir); got != c.commit || branch != c.branch {
			t.Errorf("%s: %q, %q", c.dir, got, branch)
		}
	}
	hostile := t.TempDir()
	write(hostile+"/.git/HEAD", "ref: ../../../../etc/passwd\n")
	if got, branch := readGit(hostile); got != "" || branch != "" {
		t.Errorf("hostile HEAD: %q, %q", got, branch)
	}
}

func TestReleaseComesFromKnownVariables(t *testing.T) {
	c := mustLoad(t, nil, map[string]string{"GITHUB_SHA": "abc", "GITHUB_REF_NAME": "main"})
	if c.release.id != "abc" || c.release.branch != "main" {
		t.Errorf("release %+v", c.release)
	}
	c = mustLoad(t, nil, map[string]string{"WORMHOLE_RELEASE": "mine", "GITHUB_SHA": "abc"})
	if c.release.id != "mine" {
		t.Errorf("release %+v", c.release)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add("--port=1 node", "edge.test:1,[::1]", "http://app:1", "a=b,c=d", "*.a.test", "5s")
	f.Add("--x --y -z", "::1", "unix:/x", "=", ",,", "-1s")
	f.Fuzz(func(t *testing.T, args, edges, endpoint, tags, hosts, timeout string) {
		cfg, faults := loadAll(t, strings.Fields(args), map[string]string{
			"WORMHOLE_TOKEN": "x", "WORMHOLE_EDGE": edges, "WORMHOLE_ENDPOINT": endpoint,
			"WORMHOLE_TAGS": tags, "WORMHOLE_HOST": hosts, "WORMHOLE_DRAIN_TIMEOUT": timeout, "HTTPS_PROXY": endpoint,
		})
		if len(faults) == 0 && (len(cfg.edges) == 0 || cfg.drainTimeout < 0) {
			t.Errorf("accepted: %+v", cfg)
		}
	})
}
