// Command faults runs the long forms of the fault catalogue and prints one table of
// all rows, sorted. Nothing that fails stops the others, and no test is left out: one
// that ended without a figure of its own, or never, has a line that says so.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"wormhole/edge/edgetest/oracle"
)

// waits is the row that does nothing for ten minutes. It runs beside the others,
// which run one after the other, so that none disturbs another's figures.
const waits = "TestG8AppOutlivesTheNetwork"

const head = "| row | what was done | figure | limit | verdict |\n|---|---|---|---|---|\n"

func main() {
	pattern := flag.String("run", "^Test[A-H][0-9]", "regular `expression` of the tests to run")
	timeout := flag.Duration("timeout", 90*time.Minute, "for all of them")
	dir := flag.String("dir", "dist", "`directory` for faults.md and faults.log")
	flag.Parse()
	if err := run(*pattern, *timeout, *dir, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "faults:", err)
		os.Exit(1)
	}
}

func run(pattern string, timeout time.Duration, dir string, packages []string) error {
	if len(packages) == 0 {
		packages = []string{"./edge/cluster/bus", "./edge/e2e/..."}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	file, err := os.Create(filepath.Join(dir, "faults.log"))
	if err != nil {
		return err
	}
	defer file.Close()
	rows, err := filepath.Abs(filepath.Join(dir, "faults.rows"))
	if err != nil {
		return err
	}
	_ = os.Remove(rows)
	names, err := list(pattern, packages)
	if err != nil {
		return err
	}
	if len(names) == 0 {
		return fmt.Errorf("no test has a name like %s", pattern)
	}
	began := time.Now()
	c := collector{log: file, ends: map[string]end{}}
	var beside sync.WaitGroup
	beside.Go(func() { c.test(rows, timeout, pattern, "-skip", allBut(names, waits), packages) })
	c.test(rows, timeout, pattern, "-skip", "^"+waits+"$", packages)
	beside.Wait()

	given, err := read(rows)
	if err != nil {
		return err
	}
	table, failed := tabulate(names, c.ends, given)
	text := head
	for _, r := range table {
		text += r.String() + "\n"
	}
	fmt.Printf("\n%s\n%d rows, %d failed, %s\n", text, len(table), failed, time.Since(began).Round(time.Second))
	if err := os.WriteFile(filepath.Join(dir, "faults.md"), []byte(text), 0o644); err != nil {
		return err
	}
	if failed > 0 {
		return fmt.Errorf("%d rows failed; %s has all output", failed, file.Name())
	}
	return nil
}

// list names the tests that match.
func list(pattern string, packages []string) ([]string, error) {
	cmd := exec.Command("go", append([]string{"test", "-list", pattern}, packages...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list the tests: %w", err)
	}
	var names []string
	for line := range strings.Lines(string(out)) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "Test") {
			names = append(names, line)
		}
	}
	return names, nil
}

// allBut is an expression for all names but one.
func allBut(names []string, one string) string {
	var others []string
	for _, n := range names {
		if n != one {
			others = append(others, n)
		}
	}
	if len(others) == 0 {
		return "^$"
	}
	return "^(" + strings.Join(others, "|") + ")$"
}

// end is how a test ended: "pass", "fail" or "skip".
type end struct {
	how  string
	took time.Duration
	last string // what it said last
}

// collector gathers the ends of tests of several runs.
type collector struct {
	mu   sync.Mutex // guards what follows
	log  io.Writer
	ends map[string]end
	said map[string]string // the last line of each test
}

// test runs `go test` once. What it says of itself goes to the log and, where it is
// short, to standard output.
func (c *collector) test(rows string, timeout time.Duration, pattern, option, value string, packages []string) {
	args := []string{"test", "-json", "-count=1", "-p=1", "-timeout", timeout.String(), "-run", pattern, option, value}
	cmd := exec.Command("go", append(args, packages...)...)
	cmd.Env = append(os.Environ(), "WORMHOLE_FAULTS=long", "WORMHOLE_FAULTS_ROWS="+rows)
	reader, writer := io.Pipe()
	cmd.Stdout, cmd.Stderr = writer, writer
	if err := cmd.Start(); err != nil {
		c.say("", err.Error()+"\n")
		return
	}
	go func() { // ends with the command, and with it the loop below
		_ = writer.CloseWithError(errors.Join(cmd.Wait(), io.EOF))
	}()
	lines := bufio.NewReader(reader)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			c.hear(line)
		}
		if err != nil {
			return
		}
	}
}

// event is what `go test -json` prints.
type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64
}

func (c *collector) hear(line []byte) {
	var e event
	if json.Unmarshal(line, &e) != nil {
		c.say("", string(line))
		return
	}
	switch e.Action {
	case "output", "build-output":
		c.say(e.Test, e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" || strings.Contains(e.Test, "/") {
			return
		}
		c.mu.Lock()
		c.ends[e.Test] = end{e.Action, time.Duration(e.Elapsed * float64(time.Second)), c.said[e.Test]}
		c.mu.Unlock()
		fmt.Printf("%s %s (%.1fs)\n", e.Action, e.Test, e.Elapsed)
	}
}

func (c *collector) say(test, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _ = io.WriteString(c.log, text)
	line := strings.TrimSpace(text)
	if top, _, _ := strings.Cut(test, "/"); top != "" && line != "" && !strings.HasPrefix(line, "===") && !strings.HasPrefix(line, "---") {
		if c.said == nil {
			c.said = map[string]string{}
		}
		c.said[top] = line
	}
}

// read returns the rows that tests have given, by the name of the test.
func read(path string) (map[string][]oracle.Row, error) {
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	given := map[string][]oracle.Row{}
	for line := range strings.Lines(string(text)) {
		var r oracle.Row
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		top, _, _ := strings.Cut(r.Test, "/")
		given[top] = append(given[top], r)
	}
	return given, nil
}

// tabulate sorts the rows, and adds one for each test that gave none, or none that
// shows that it failed. It returns how many failed.
func tabulate(names []string, ends map[string]end, given map[string][]oracle.Row) (table []oracle.Row, failed int) {
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	for _, name := range names {
		rows := given[name]
		table = append(table, rows...)
		e, ended := ends[name]
		r := oracle.Row{ID: rowID(name), Done: words(name), Limit: "what the test asserts", Test: name}
		switch {
		case !ended:
			r.Figure = "did not finish"
		case e.how == "fail":
			if slices.ContainsFunc(rows, func(r oracle.Row) bool { return !r.OK }) {
				continue
			}
			r.Figure = "failed: " + strings.ReplaceAll(clip(e.last), "|", "/")
		case len(rows) > 0:
			continue
		case e.how == "skip":
			r.Figure = "not run here: " + strings.ReplaceAll(clip(e.last), "|", "/")
		default:
			r.Figure, r.OK = "passed in "+e.took.Round(100*time.Millisecond).String(), true
		}
		table = append(table, r)
	}
	slices.SortStableFunc(table, func(a, b oracle.Row) int { return compareIDs(a.ID, b.ID) })
	for _, r := range table {
		if !r.OK {
			failed++
		}
	}
	return table, failed
}

var idForm = regexp.MustCompile(`^(?:Test)?([A-Z])([0-9]+)(.*)$`)

// rowID is A10 of TestA10SomethingHolds.
func rowID(test string) string {
	m := idForm.FindStringSubmatch(test)
	if m == nil {
		return test
	}
	return m[1] + m[2]
}

// words is "something holds" of TestA10SomethingHolds.
func words(test string) string {
	m := idForm.FindStringSubmatch(test)
	if m == nil {
		return test
	}
	return strings.ToLower(regexp.MustCompile(`([a-z])([A-Z])`).ReplaceAllString(m[3], "$1 $2"))
}

// compareIDs puts A2 before A10, and what is behind the number last.
func compareIDs(a, b string) int {
	x, y := idForm.FindStringSubmatch(a), idForm.FindStringSubmatch(b)
	if x == nil || y == nil {
		return strings.Compare(a, b)
	}
	m, _ := strconv.Atoi(x[2])
	n, _ := strconv.Atoi(y[2])
	return cmp.Or(strings.Compare(x[1], y[1]), cmp.Compare(m, n), strings.Compare(x[3], y[3]))
}

func clip(s string) string {
	const most = 200
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
