package packages_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// checkRPMs looks at what rpm itself says of the packages, and lets it install them
// into a root of their own. Their scripts are run by the test of the deb: they are
// the same files.
func checkRPMs(t *testing.T, out string) {
	if _, err := exec.LookPath("rpm"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	agent, edge := filepath.Join(out, "wormhole-1.2.3-1.x86_64.rpm"), filepath.Join(out, "wormhole-edge-1.2.3-1.x86_64.rpm")
	db := "--dbpath=" + t.TempDir()
	run(t, "", "rpm", db, "--initdb")
	query := func(file, format string) string { return run(t, "", "rpm", db, "-qp", "--qf", format, file) }
	for file, c := range map[string]struct {
		name    string
		files   []string
		scripts map[string]string // tag, and a file whose text it is
	}{
		agent: {"wormhole", []string{
			"-rwxr-xr-x root root /usr/bin/wormhole", "-rw-r--r-- root root /usr/lib/systemd/system/wormhole@.service",
			"drwxr-xr-x root root /etc/wormhole", "-rw-r--r-- root root /usr/share/doc/wormhole/copyright",
		}, map[string]string{"POSTIN": "reload.sh", "POSTUN": "reload.sh"}},
		edge: {"wormhole-edge", []string{
			"-rwxr-xr-x root root /usr/bin/edge", "-rw-r--r-- root root /usr/lib/systemd/system/wormhole-edge.service",
			"-rw-r--r-- root root /usr/lib/sysusers.d/wormhole.conf", "-rw-r--r-- root root /etc/wormhole/edge.yaml",
			"drwxr-xr-x root root /etc/wormhole", "-rw-r--r-- root root /usr/share/doc/wormhole-edge/copyright",
		}, map[string]string{"POSTIN": "edge-postinstall.sh", "PREUN": "edge-preremove.sh", "POSTUN": "reload.sh"}},
	} {
		if got, want := query(file, "%{NAME} %{VERSION} %{ARCH} %{LICENSE}"), c.name+" 1.2.3 x86_64 Apache-2.0"; got != want {
			t.Errorf("it is %q, want %q", got, want)
		}
		files := query(file, "[%{FILEMODES:perms} %{FILEUSERNAME} %{FILEGROUPNAME} %{FILENAMES}\n]")
		for _, want := range c.files {
			if !strings.Contains("\n"+files, "\n"+want+"\n") {
				t.Errorf("%s lacks %q", c.name, want)
			}
		}
		if got := strings.Count(files, "\n"); got != len(c.files) {
			t.Errorf("%s has %d files, want %d:\n%s", c.name, got, len(c.files), files)
		}
		for tag, name := range c.scripts {
			if got, want := query(file, "%{"+tag+"}"), read(t, filepath.Join("scripts", name)); strings.TrimSpace(got) != strings.TrimSpace(want) {
				t.Errorf("%s: %s is %q, want what is in %s", c.name, tag, got, name)
			}
		}
	}
	// Whom the unit runs as is whom the package makes.
	if text := read(t, "../systemd/wormhole-edge.service"); !strings.Contains(text, "\nUser=wormhole\n") {
		t.Error("the edge's unit runs as somebody that no sysusers file makes")
	}
	if flags := query(edge, "[%{FILEFLAGS:fflags} %{FILENAMES}\n]"); !strings.Contains(flags, "cn /etc/wormhole/edge.yaml\n") {
		t.Errorf("an upgrade would replace the operator's configuration:\n%s", flags)
	}

	root := t.TempDir()
	install := exec.Command("unshare", "-r", "rpm", "--root", root, "--nodeps", "--noscripts", "-i", agent, edge)
	if text, err := install.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if text := run(t, "", filepath.Join(root, "usr/bin/wormhole"), "--version"); !strings.HasPrefix(text, "wormhole "+version+" ") {
		t.Errorf("wormhole --version says %q", text)
	}
	if text := run(t, "", filepath.Join(root, "usr/bin/edge"), "version"); strings.TrimSpace(text) != version {
		t.Errorf("edge version says %q", text)
	}
}
