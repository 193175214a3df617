package printed_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"wormhole/deploy/printed"
	"wormhole/deploy/rig"
	"wormhole/edge/edgetest"
)

// blocks are those of every document that people read.
func blocks(t *testing.T) (root string, out []printed.Block) {
	t.Helper()
	root, err := rig.Root()
	if err != nil {
		t.Fatal(err)
	}
	files := []string{"README.md", "CONTRIBUTING.md"}
	more, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil || len(more) == 0 {
		t.Fatalf("no docs: %v", err)
	}
	for _, f := range more {
		files = append(files, filepath.Join("docs", filepath.Base(f)))
	}
	for _, f := range files {
		text, err := os.ReadFile(filepath.Join(root, f))
		if err != nil {
			t.Fatal(err)
		}
		found, err := printed.Blocks(f, string(text))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, found...)
	}
	return root, out
}

func TestEveryPrintedCommandIsRun(t *testing.T) {
	root, all := blocks(t)
	counts := map[string]int{}
	for _, b := range all {
		counts[b.Key]++
		switch {
		case b.Language == "sh" && b.Key == "run" && b.Value != "", b.Language == "dockerfile" && b.Key == "build" && b.Value != "":
		case b.Language == "dockerfile" && b.Key == "fragment":
			whole := false
			for _, other := range all {
				whole = whole || other.Key == "build" && strings.Contains(other.Text, strings.TrimSpace(b.Text))
			}
			if !whole {
				t.Errorf("%s: no Dockerfile that is built has this in it:\n%s", b, b.Text)
			}
		case b.Language == "sh" && b.Key == "untested" && b.File == "docs/kubernetes.md":
			text, err := os.ReadFile(filepath.Join(root, b.File))
			if err != nil || !strings.Contains(string(text), "**No test runs the commands on this page**") {
				t.Errorf("%s: the page does not say that it is untested: %v", b, err)
			}
		case b.Language == "text" && b.Key == "output" && b.Value != "":
		case b.Language == "sh" || b.Language == "dockerfile":
			t.Errorf("%s: say run= or build= behind the language", b)
		}
	}
	if counts["run"] == 0 || counts["build"] == 0 {
		t.Errorf("nothing is run: %v", counts)
	}
	t.Log(counts)
}

// TestServerCommandsWorkAsPrinted is the scene "server": a machine of its own
// (namespaces of network, mounts and users) on which edge1.example.com is this
// machine, with the two programs, an app on port 8000, and the certificate that
// the commands name. The commands themselves run unchanged, in the order in which
// README.md and docs/ print them.
func TestServerCommandsWorkAsPrinted(t *testing.T) {
	root, all := blocks(t)
	dir := t.TempDir()
	if _, err := edgetest.Build(dir); err != nil {
		t.Fatal(err)
	}
	ca := edgetest.NewCA(t)
	cert, key := ca.Issue(t, "edge1.example.com", "app.example.com")
	copyFile(t, cert, filepath.Join(dir, "fullchain.pem"))
	copyFile(t, key, filepath.Join(dir, "key.pem"))
	copyFile(t, filepath.Join(root, "deploy/demo/index.js"), filepath.Join(dir, "index.js"))
	write(t, filepath.Join(dir, "hosts"), "127.0.0.1 localhost edge1.example.com app.example.com\n::1 localhost\n")

	var script strings.Builder
	script.WriteString(`set -euo pipefail
ip link set lo up
mount --bind hosts /etc/hosts
mount -t tmpfs tmpfs /var/lib
export SERVER_NAME=statler PORT=8000
trap 'kill $(jobs -p) 2>/dev/null || :' EXIT
# await COMMAND...: until it succeeds
await() { for _ in $(seq 300); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done; echo "in vain: $*" >&2; return 1; }
answers() { curl -fsS --cacert ca.pem https://app.example.com/ | grep -q 'You have reached'; }
# A mail server on port 25, which keeps what it gets.
printf '#!/bin/sh\ncat >delivered.part && mv delivered.part delivered\n' >deliver && chmod 755 deliver
msmtpd --interface=127.0.0.1 --port=25 --command="$PWD/deliver" &
printf 'Subject: reached\r\n\r\nYou have reached mail\r\n' >letter
delivers() { curl -fsS smtp://edge1.example.com:2525 --mail-from a@example.com --mail-rcpt b@example.com -T letter && grep 'You have reached mail' delivered; }
`)
	// What stays in the foreground for a person is put into the background here; its
	// text is not changed.
	ready := map[string]string{"edge serve": "edge status", "wormhole node": "answers", "--endpoint 127.0.0.1:25": "delivers"}
	ran := 0
	for _, b := range all {
		if b.Key != "run" || b.Value != "server" {
			continue
		}
		ran++
		for line := range strings.Lines(b.Text) {
			line = strings.TrimSuffix(line, "\n")
			script.WriteString("echo '== " + b.String() + "'; set -x\n")
			background := false
			for what, condition := range ready {
				if strings.Contains(line, what) && !strings.HasSuffix(line, "&") {
					script.WriteString(line + " &\n{ set +x; } 2>/dev/null\nawait " + condition + "\n")
					background = true
				}
			}
			if !background {
				script.WriteString(line + "\n{ set +x; } 2>/dev/null\n")
			}
		}
	}
	if ran < 3 {
		t.Fatalf("only %d blocks found", ran)
	}
	script.WriteString("answers; wormhole --health; echo 'all of it ran'\n")
	copyFile(t, ca.File, filepath.Join(dir, "ca.pem"))
	play(t, dir, script.String(), "-rmn", "--pid", "--fork", "--kill-child")
}

// TestDevelopmentCommandsWorkAsPrinted is the scene "dev": a checkout, and the line
// that `edge dev` itself prints.
func TestDevelopmentCommandsWorkAsPrinted(t *testing.T) {
	root, all := blocks(t)
	dir := checkout(t, root)
	copyFile(t, filepath.Join(root, "deploy/demo/index.js"), filepath.Join(dir, "index.js"))
	script := `set -euo pipefail
ip link set lo up
export SERVER_NAME=statler PORT=8000
trap 'kill $(jobs -p) 2>/dev/null || :' EXIT
await() { for _ in $(seq 300); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done; echo "in vain: $*" >&2; return 1; }
printed() { grep -q 'Backends live' said; }
answers() { ca=$(grep -o 'WORMHOLE_CA_FILE=[^ ]*' said | head -1 | cut -d= -f2); curl -fsS --cacert "$ca" --resolve app.localhost:8443:127.0.0.1 https://app.localhost:8443/ | grep -q 'You have reached'; }
`
	for _, b := range all {
		if b.Key != "run" || b.Value != "dev" {
			continue
		}
		for line := range strings.Lines(b.Text) {
			line = strings.TrimSuffix(line, "\n")
			if strings.Contains(line, "edge dev") {
				line += " >said & \nawait printed"
			}
			script += line + "\n"
		}
	}
	script += `sed -n 's/^ *\(WORMHOLE_TOKEN_FILE=.*\)$/\1/p' said | head -1 >line
cat line; test -s line
bash line &
await answers
ca=$(grep -o 'WORMHOLE_CA_FILE=[^ ]*/ca.pem' said | head -1 | cut -d= -f2)
` + strings.Replace(commandInProse(t, "curl --cacert …/ca.pem https://app.localhost:8443/"), "…", "${ca%/ca.pem}", 1) + ` | grep 'You have reached'
echo 'all of it ran'
`
	play(t, dir, script, "-rmn", "--pid", "--fork", "--kill-child")
	real, err := os.ReadFile(filepath.Join(dir, "line"))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range all {
		if b.Key != "output" || b.Value != "dev" {
			continue
		}
		shape := strings.ReplaceAll(regexp.QuoteMeta(strings.TrimSpace(b.Text)), "…", `\S*`)
		if !regexp.MustCompile("^" + shape + "$").MatchString(strings.TrimSpace(string(real))) {
			t.Errorf("%s: printed is\n%sand edge dev prints\n%s", b, b.Text, real)
		}
	}
}

// prose says of every command in the sentences of README.md which test types it.
var prose = map[string]string{
	"make demo ARGS=--stay": "TestDemoStaysAsPrinted",
	"edge dev":              "TestDevelopmentCommandsWorkAsPrinted",
	"curl --cacert …/ca.pem https://app.localhost:8443/": "TestDevelopmentCommandsWorkAsPrinted",
	"edge status":                     "TestPublicEdgeCommandsWorkAsPrinted",
	"edge cert retry app.example.com": "TestPublicEdgeCommandsWorkAsPrinted",
	"edge usage":                      "TestServerCommandsWorkAsPrinted",
	"edge drain":                      "TestPublicEdgeCommandsWorkAsPrinted",
	"wormhole --help":                 "TestPublicEdgeCommandsWorkAsPrinted",
	"wormhole --show-config":          "TestPublicEdgeCommandsWorkAsPrinted",
	"edge token revoke":               "", // these want arguments: they are names
	"edge cluster promote":            "",
	"edge cluster replace":            "",
	"docker stop":                     "",
}

// inProse is the line of README.md on which the command stands in a sentence.
func inProse(t *testing.T, command string) int {
	t.Helper()
	for i, line := range readmeProse(t) {
		if strings.Contains(line, "`"+command+"`") {
			return i + 1
		}
	}
	t.Fatalf("README.md does not print %q", command)
	return 0
}

// commandInProse is the command, which stands in a sentence of README.md.
func commandInProse(t *testing.T, command string) string {
	t.Helper()
	inProse(t, command)
	return command
}

// readmeProse are the lines of README.md, those of blocks empty.
func readmeProse(t *testing.T) []string {
	t.Helper()
	root, all := blocks(t)
	text, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	for _, b := range all {
		if b.File == "README.md" {
			clear(lines[b.Line-1 : b.Line+1+strings.Count(b.Text, "\n")])
		}
	}
	return lines
}

func TestEveryCommandInProseIsRun(t *testing.T) {
	found := map[string]bool{}
	for i, line := range readmeProse(t) {
		for _, m := range regexp.MustCompile("`((?:edge|wormhole|make|curl|docker|go|sudo) [^`]+)`").FindAllStringSubmatch(line, -1) {
			found[m[1]] = true
			if _, ok := prose[m[1]]; !ok {
				t.Errorf("README.md:%d: what types %q?", i+1, m[1])
			}
		}
	}
	for command := range prose {
		if !found[command] {
			t.Errorf("README.md does not print %q", command)
		}
	}
}

// TestDemoStaysAsPrinted types `make demo ARGS=--stay`, asks one of the URLs that it
// prints, and ends it as a person does.
func TestDemoStaysAsPrinted(t *testing.T) {
	root, _ := blocks(t)
	const command = "make demo ARGS=--stay"
	inProse(t, command)
	play(t, checkout(t, root), `set -euo pipefail
ip link set lo up
`+command+` >said 2>&1 &
for _ in $(seq 900); do grep -q '^ *curl ' said && break; sleep 0.1; done
cat said
eval "$(grep -m1 '^ *curl ' said)" | grep 'You have reached'
kill -INT $(pgrep -x demo)
wait %1
echo 'all of it ran'
`, "-rmn", "--pid", "--fork", "--kill-child", "--mount-proc")
}

// TestCIRunsWhatIsPrinted is the scene "ci": words that continuous integration types,
// since no test can run the whole suite that it belongs to.
func TestCIRunsWhatIsPrinted(t *testing.T) {
	root, _ := blocks(t)
	text, err := os.ReadFile(filepath.Join(root, ".ci/run"))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range linesOf(t, "ci") {
		command, _, _ := strings.Cut(l.line, "#")
		step := regexp.MustCompile(`(?m)^step \S+ \d+ ` + regexp.QuoteMeta(strings.TrimSpace(command)) + "$")
		if !step.Match(text) {
			t.Errorf("%s: no step of .ci/run types %q", l, command)
		}
	}
}

// TestBuildCommandsWorkAsPrinted is the scene "build": a checkout on a machine on
// which nothing of the project is installed.
func TestBuildCommandsWorkAsPrinted(t *testing.T) {
	root, all := blocks(t)
	script := "set -euo pipefail\nmount -t tmpfs tmpfs /usr/local/bin\nexport PATH=/usr/local/bin:$PATH\n"
	for _, b := range all {
		if b.Key == "run" && b.Value == "build" {
			script += b.Text
		}
	}
	script += "test \"$(type -P wormhole)\" = /usr/local/bin/wormhole\necho 'all of it ran'\n"
	play(t, checkout(t, root), script, "-rm")
}

// checkout copies the tree at root, without what git ignores.
func checkout(t *testing.T, root string) string {
	t.Helper()
	dir := t.TempDir()
	copying := exec.Command("bash", "-c", `set -o pipefail; git ls-files -coz --exclude-standard | tar --null --ignore-failed-read -T - -c | tar -x -C "$0"`, dir)
	copying.Dir = root
	if out, err := copying.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return dir
}

// play runs a script in dir and in namespaces of its own.
func play(t *testing.T, dir, script string, namespaces ...string) {
	t.Helper()
	if text, err := exec.Command("unshare", "-rmn", "true").CombinedOutput(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("no namespaces: %v: %s", err, text)
		}
		t.Skipf("no namespaces: %v: %s", err, text)
	}
	write(t, filepath.Join(dir, "script"), script)
	cmd := exec.CommandContext(t.Context(), "unshare", append(namespaces, "bash", "script")...)
	cmd.Dir, cmd.WaitDelay = dir, 5*time.Second
	// dir is where the programs are, and the CA that the machine trusts, in scenes
	// that have them.
	cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if ca := filepath.Join(dir, "ca.pem"); exists(ca) {
		cmd.Env = append(cmd.Env, "SSL_CERT_FILE="+ca, "HTTPS_PROXY=", "https_proxy=", "HTTP_PROXY=", "http_proxy=")
	}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "all of it ran") {
		t.Errorf("%v\n%s", err, out)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	write(t, to, string(text))
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
