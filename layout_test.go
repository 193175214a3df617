// Package wormhole_test holds the house in shape: who may import whom, that
// every package says what it answers for, and what the agent's binary carries.
// ARCHITECTURE.md gives the reasons; this file is the table itself.
package wormhole_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "wormhole"

// rule says what one part of the tree may import of this project. The first rule
// whose of matches a package is the one that holds for it.
type rule struct {
	of    []string // patterns of packages, relative to the module
	may   []string // patterns of what they may import
	never []string // exceptions to may
}

// A pattern is a package path; "dir/..." is dir and all below it, and "dir/*"
// only what is below it.
//
// Imports go main -> node -> parts -> shared.
var importTable = []rule{
	{of: []string{"shared/..."}, may: []string{"shared/..."}},
	{of: []string{"certs/..."}, may: []string{"certs/...", "shared/..."}},

	// The agent's world.
	{of: []string{"wormhole"}, may: []string{"wormhole/*", "shared/..."}},
	{of: []string{"wormhole/*"}, may: []string{"wormhole/*", "shared/..."}},

	// Where the two worlds meet: tests and what is for people to try.
	{of: []string{"edge/edgetest/...", "edge/e2e/...", "deploy/..."}, may: []string{"..."}},

	// The edge's world.
	{of: []string{"edge", "edge/node"}, may: []string{"edge/*", "certs/...", "shared/..."}, never: testOnly},
	{
		of:    []string{"edge/config"},
		may:   []string{"edge/*", "certs/...", "shared/..."},
		never: append([]string{"edge/node"}, testOnly...),
	},
	{
		of:    []string{"edge/*"},
		may:   []string{"edge/*", "certs/...", "shared/..."},
		never: append([]string{"edge/node", "edge/config"}, testOnly...),
	},
}

var testOnly = []string{"edge/edgetest/...", "edge/e2e/...", "shared/tunnel/tunneltest"}

// vagueNames are folders that say nothing about what is inside.
var vagueNames = []string{"internal", "pkg", "util", "utils", "common", "helpers", "misc", "types", "lib"}

// tooHeavyForAgent lists libraries, by path prefix, that only edges or tests need.
// The agent sits in every image of every user.
var tooHeavyForAgent = []string{
	"github.com/prometheus/", "github.com/nats-io/", "github.com/spf13/cobra", "github.com/letsencrypt/",
	"github.com/chromedp/", "github.com/goccy/go-yaml", "google.golang.org/", "golang.org/x/crypto/acme",
	"testing",
}

// listed is what `go list -json` says of one package.
type listed struct {
	ImportPath   string
	Dir          string
	Doc          string
	GoFiles      []string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

func TestImportsFollowTheTable(t *testing.T) {
	packages := list(t, "./...")
	if len(packages) < 10 {
		t.Fatalf("go list found %d packages; the check would prove nothing", len(packages))
	}
	for _, fault := range importFaults(importTable, packages) {
		t.Error(fault)
	}
}

func TestEveryPackageSaysWhatItAnswersFor(t *testing.T) {
	for _, fault := range docFaults(list(t, "./...")) {
		t.Error(fault)
	}
}

func TestNoPackageRunsCodeByBeingImported(t *testing.T) {
	for _, p := range list(t, "./...") {
		for _, name := range p.GoFiles {
			path := filepath.Join(p.Dir, name)
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Errorf("parse: %v", err)
				continue
			}
			if hasInit(file) {
				t.Errorf("%s has an init function: assemble in New instead", path)
			}
		}
	}
}

func TestAgentBinaryCarriesNoEdgeLibraries(t *testing.T) {
	if len(list(t, "./wormhole/...")) == 0 {
		t.Fatal("no package of the agent found")
	}
	dependencies := depsOf(t, "./wormhole")
	for _, fault := range carriedFaults(dependencies, append([]string{module + "/edge", module + "/certs"}, tooHeavyForAgent...)) {
		t.Errorf("the agent's binary: %s", fault)
	}
}

func TestEdgeBinaryCarriesNoTestCode(t *testing.T) {
	unwanted := []string{
		module + "/wormhole", module + "/edge/edgetest", module + "/edge/e2e", module + "/deploy",
		module + "/shared/tunnel/tunneltest", "testing", "github.com/letsencrypt/pebble", "github.com/chromedp/", "go.uber.org/goleak",
	}
	for _, fault := range carriedFaults(depsOf(t, "./edge"), unwanted) {
		t.Errorf("the edge's binary: %s", fault)
	}
}

// importFaults returns one line for every import of the project that no rule
// allows, and for every package that no rule knows or whose name says nothing.
// Tests obey the same rules, but those of the edge may also use edge/edgetest,
// and all may use the suites that exist for tests.
func importFaults(table []rule, packages []listed) []string {
	var faults []string
	for _, p := range packages {
		from, ours := relative(p.ImportPath)
		if !ours || from == "" { // the root holds only this test
			continue
		}
		for _, name := range strings.Split(from, "/") {
			if slices.Contains(vagueNames, name) {
				faults = append(faults, fmt.Sprintf("%s: a folder named %q says nothing", from, name))
			}
		}
		r, known := ruleFor(table, from)
		if !known {
			faults = append(faults, fmt.Sprintf("%s: no rule in the import table", from))
			continue
		}
		for _, path := range p.Imports {
			if to, ours := relative(path); ours && !r.allows(to) {
				faults = append(faults, fmt.Sprintf("%s may not import %s", from, to))
			}
		}
		for _, path := range slices.Concat(p.TestImports, p.XTestImports) {
			to, ours := relative(path)
			if !ours || to == from || r.allows(to) || matches("shared/tunnel/tunneltest", to) {
				continue
			}
			if strings.HasPrefix(from, "edge") && matches("edge/edgetest/...", to) {
				continue
			}
			faults = append(faults, fmt.Sprintf("the tests of %s may not import %s", from, to))
		}
	}
	return faults
}

// docFaults returns one line for every package without a doc comment. Packages
// of tests only are let off: go list reads no comment of theirs.
func docFaults(packages []listed) []string {
	var faults []string
	for _, p := range packages {
		if len(p.GoFiles) > 0 && strings.TrimSpace(p.Doc) == "" {
			faults = append(faults, p.ImportPath+": no doc comment")
		}
	}
	return faults
}

// carriedFaults returns one line for every dependency that has an unwanted prefix.
func carriedFaults(dependencies, unwanted []string) []string {
	var faults []string
	for _, dependency := range dependencies {
		for _, prefix := range unwanted {
			whole := strings.TrimSuffix(prefix, "/")
			if dependency == whole || strings.HasPrefix(dependency, whole+"/") {
				faults = append(faults, "carries "+dependency)
			}
		}
	}
	return faults
}

func hasInit(file *ast.File) bool {
	return slices.ContainsFunc(file.Decls, func(d ast.Decl) bool {
		f, ok := d.(*ast.FuncDecl)
		return ok && f.Recv == nil && f.Name.Name == "init"
	})
}

func ruleFor(table []rule, path string) (rule, bool) {
	i := slices.IndexFunc(table, func(r rule) bool { return matchesAny(r.of, path) })
	if i < 0 {
		return rule{}, false
	}
	return table[i], true
}

func (r rule) allows(path string) bool { return matchesAny(r.may, path) && !matchesAny(r.never, path) }

func matchesAny(patterns []string, path string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool { return matches(pattern, path) })
}

func matches(pattern, path string) bool {
	if pattern == "..." {
		return true
	}
	if dir, ok := strings.CutSuffix(pattern, "/..."); ok {
		return path == dir || strings.HasPrefix(path, dir+"/")
	}
	if dir, ok := strings.CutSuffix(pattern, "/*"); ok {
		return strings.HasPrefix(path, dir+"/")
	}
	return path == pattern
}

// relative cuts the module's name; ours is false for other modules' packages.
func relative(importPath string) (path string, ours bool) {
	if importPath == module {
		return "", true
	}
	return strings.CutPrefix(importPath, module+"/")
}

// list asks the go command about packages. Build tags of deploy are on, so that
// nothing hides behind them.
func list(t *testing.T, pattern string) []listed {
	t.Helper()
	out := goCommand(t, "list", "-e", "-tags", "containers",
		"-json=ImportPath,Dir,Doc,GoFiles,Imports,TestImports,XTestImports", pattern)
	var packages []listed
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		packages = append(packages, p)
	}
}

func depsOf(t *testing.T, pattern string) []string {
	t.Helper()
	return strings.Fields(string(goCommand(t, "list", "-deps", pattern)))
}

func goCommand(t *testing.T, args ...string) []byte {
	t.Helper()
	command := exec.CommandContext(t.Context(), "go", args...)
	var stderr bytes.Buffer
	command.Stderr = &stderr
	out, err := command.Output()
	if err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return out
}

// The checks above are worth what they can find, so they are tested themselves.

func TestImportCheckFindsForbiddenImports(t *testing.T) {
	for _, c := range []struct {
		name                 string
		from                 string
		imports, testImports []string
		want                 string // empty: no fault
	}{
		{name: "part on shared", from: "edge/proxy", imports: []string{"shared/protocol", "edge/balance", "certs"}},
		{name: "node on parts", from: "edge/node", imports: []string{"edge/config", "edge/proxy", "certs"}},
		{name: "main on node", from: "edge", imports: []string{"edge/node", "edge/config"}},
		{name: "agent main on its parts", from: "wormhole", imports: []string{"wormhole/agent", "shared/tunnel/tlsmux"}},
		{name: "both worlds in e2e", from: "edge/e2e", imports: []string{"edge/node", "wormhole/agent"}},
		{name: "both worlds in deploy", from: "deploy/bench", imports: []string{"edge/node", "wormhole/agent"}},
		{name: "edge's tests on edgetest", from: "edge/proxy", testImports: []string{"edge/edgetest", "shared/tunnel/tunneltest"}},
		{name: "other modules are free", from: "shared/token", imports: []string{"golang.org/x/net/idna"}},

		{name: "shared on certs", from: "shared/token", imports: []string{"certs"}, want: "shared/token may not import certs"},
		{name: "shared on edge", from: "shared/tunnel/tlsmux", imports: []string{"edge/agents"}, want: "shared/tunnel/tlsmux may not import edge/agents"},
		{name: "certs on edge", from: "certs", imports: []string{"edge/site"}, want: "certs may not import edge/site"},
		{name: "agent on edge", from: "wormhole/agent", imports: []string{"edge/site"}, want: "wormhole/agent may not import edge/site"},
		{name: "agent on certs", from: "wormhole/forward", imports: []string{"certs"}, want: "wormhole/forward may not import certs"},
		{name: "agent's tests on edge", from: "wormhole/agent", testImports: []string{"edge/edgetest"}, want: "the tests of wormhole/agent may not import edge/edgetest"},
		{name: "part on config", from: "edge/proxy", imports: []string{"edge/config"}, want: "edge/proxy may not import edge/config"},
		{name: "part on node", from: "edge/admin", imports: []string{"edge/node"}, want: "edge/admin may not import edge/node"},
		{name: "config on node", from: "edge/config", imports: []string{"edge/node"}, want: "edge/config may not import edge/node"},
		{name: "deep part on config", from: "edge/cluster/store", imports: []string{"edge/config"}, want: "edge/cluster/store may not import edge/config"},
		{name: "edge on agent", from: "edge/node", imports: []string{"wormhole/agent"}, want: "edge/node may not import wormhole/agent"},
		{name: "node on test code", from: "edge/node", imports: []string{"edge/edgetest"}, want: "edge/node may not import edge/edgetest"},
		{name: "unknown folder", from: "tools", want: "tools: no rule in the import table"},
		{name: "vague folder", from: "shared/util", want: `shared/util: a folder named "util" says nothing`},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := listed{ImportPath: module + "/" + c.from, Imports: full(c.imports), XTestImports: full(c.testImports)}
			got := strings.Join(importFaults(importTable, []listed{p}), "; ")
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestDocCheckFindsSilentPackages(t *testing.T) {
	packages := []listed{
		{ImportPath: "wormhole/a", GoFiles: []string{"a.go"}, Doc: "Package a answers."},
		{ImportPath: "wormhole/b", GoFiles: []string{"b.go"}},
		{ImportPath: "wormhole/c", GoFiles: nil},
	}
	got := strings.Join(docFaults(packages), "; ")
	if want := "wormhole/b: no doc comment"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestBinaryCheckFindsCarriedLibraries(t *testing.T) {
	dependencies := []string{"fmt", "testing/iotest", "github.com/prometheus/client_golang/prometheus", "github.com/prometheusx/other", "wormhole/edge/site"}
	got := strings.Join(carriedFaults(dependencies, []string{"github.com/prometheus/", "testing", "wormhole/edge"}), "; ")
	want := "carries testing/iotest; carries github.com/prometheus/client_golang/prometheus; carries wormhole/edge/site"
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestInitCheckTellsFunctionsFromMethods(t *testing.T) {
	for source, want := range map[string]bool{
		"package p\nfunc init() {}":                 true,
		"package p\ntype t int\nfunc (t) init() {}": false,
		"package p\nfunc initialise() {}":           false,
	} {
		file, err := parser.ParseFile(token.NewFileSet(), "p.go", source, 0)
		if err != nil {
			t.Fatal(err)
		}
		if got := hasInit(file); got != want {
			t.Errorf("hasInit(%q) = %v, want %v", source, got, want)
		}
	}
}

func full(paths []string) []string {
	var out []string
	for _, path := range paths {
		if !strings.Contains(path, ".") { // else another module's
			path = module + "/" + path
		}
		out = append(out, path)
	}
	return out
}
