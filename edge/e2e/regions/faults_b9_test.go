package regions

import (
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"wormhole/edge/edgetest"
	"wormhole/edge/edgetest/oracle"
)

// B9: rules with a fault are sent to an edge's API, past the checks of the command
// line. Each comes behind rules without a fault that would refuse everybody, so that
// whoever applies a part is seen. What was applied last outlives a kill.
func TestB9PoisonedRulesAreRefusedAsAWhole(t *testing.T) {
	edges := binaries.StartCluster(t, 3)
	ca := edges[0].Status.CA
	app := edgetest.App(t, edgetest.Named("app"))
	token := issue(t, edges[0], "app.localhost")
	for _, e := range edges[:2] { // so that the third may be killed
		work(t, ca, token, "app", app, 1, e.Door).awaitTunnels(t, 1)
	}
	api := operator(t, edges[2])
	send := func(text string) error {
		return api.Send(t.Context(), http.MethodPost, "/v1/sites", "application/yaml", strings.NewReader(text), nil)
	}
	const fine = "host: app.localhost\ndeny: [203.0.113.0/24]\n"
	if err := send(fine); err != nil {
		t.Fatal(err)
	}
	show := func(e *edge) string {
		out, _ := e.TryCLI("site", "show", "app.localhost")
		return out
	}
	good := show(edges[2])
	if !strings.Contains(good, "203.0.113.0/24") {
		t.Fatalf("the rules are %s", good)
	}
	probes := []*edgetest.Probe{}
	for _, e := range edges[:2] {
		edgetest.Eventually(t, "the rules are everywhere", func() bool { return show(e) == good })
		c := client(t, e, edges[0])
		awaitOK(t, c, "app.localhost")
		probes = append(probes, edgetest.StartProbe(c, "https://app.localhost/", 10*time.Millisecond))
	}

	const shut = "host: app.localhost\ndeny: [127.0.0.0/8]\n---\n"
	poison := map[string]string{
		"no host":            shut + "deny: [10.0.0.0/8]\n",
		"an invalid host":    shut + "host: a..b\n",
		"a host in disguise": shut + "host: \"x.localhost\\n\"\n",
		"a label of 1 MiB":   shut + "host: " + strings.Repeat("a", 1<<20) + ".localhost\n",
		"a label of 64":      shut + "host: " + strings.Repeat("a", 64) + ".localhost\n",
		"an unknown key":     shut + "host: x.localhost\ndenied: [10.0.0.0/8]\n",
		"an unknown value":   shut + "host: x.localhost\napp_protocol: h9\n",
		"another type":       shut + "host: x.localhost\ndeny: {a: 1}\n",
		"no network":         shut + "host: x.localhost\ndeny: [10.0.0.0/33]\n",
		"a negative time":    shut + "host: x.localhost\nidle_timeout: -1s\n",
		"no YAML":            shut + "host: [x.localhost\n",
		"NUL":                shut + "host: x.localhost\x00\n",
		"no UTF-8":           shut + "host: \xff.localhost\n",
		"a million rows":     shut + "host: x.localhost\ndeny:\n" + strings.Repeat("- 10.0.0.0/8\n", 1_000_000),
		"a million sites":    shut + strings.Repeat("host: x.localhost\n---\n", 1_000_000),
		"aliases of aliases": shut + "a: &a [x,x,x,x,x,x,x,x,x]\n" + laughs() + "host: x.localhost\n",
	}
	whole := shut + "host: x.localhost\nparking: {wait: 1s, max: 10}\ndeny: [10.0.0.0/8, 192.0.2.1]\n"
	taken := 0
	for what, text := range poison {
		if err := send(text); err == nil {
			taken++
			t.Logf("%s: it was taken", what)
		}
	}
	// Cut off in the middle of a word of the second document, a file is no YAML or has
	// no such key; after its end it would be another good file.
	start := len(shut)
	for _, end := range []int{start + 2, start + 4, strings.Index(whole, "parking") + 3, strings.Index(whole, "{wait") + 3, strings.Index(whole, "192") + 2} {
		if err := send(whole[:end]); err == nil {
			taken++
			t.Logf("cut off after %q: it was taken", whole[start:end])
		}
	}
	sent := len(poison) + 5
	if err := send(fine); err != nil {
		t.Errorf("rules without a fault are refused after them: %v", err)
	}
	time.Sleep(500 * time.Millisecond) // anything that was taken would be everywhere
	changed, ended := 0, 0
	for _, e := range edges {
		if show(e) != good {
			changed++
		}
		if e.Exited() {
			ended++
		}
	}
	edges[2].Signal(syscall.SIGKILL)
	edges[2].Exit(t, 5*time.Second)
	edges[2].Restart(t)
	kept := show(edges[2]) == good
	failed, asked := 0, 0
	for _, p := range probes {
		answers := p.Stop()
		failed, asked = failed+answers.Failed(), asked+len(answers)
		t.Logf("%d of %d failed:%s", answers.Failed(), len(answers), answers.Faults())
	}
	oracle.Row{
		ID: "B9", Done: fmt.Sprintf("%d files of rules that are invalid, too large or cut off, each behind a rule that shuts a site, sent to an edge; the others asked 200/s; kill -9 and restart", sent),
		Figure: fmt.Sprintf("%d taken, the rules of %d edges changed, %d edges ended, %d of %d requests failed, the last good rules hold after the restart: %v", taken, changed, ended, failed, asked, kept),
		Limit:  "0, 0, 0, 0 failed, they hold", OK: taken == 0 && changed == 0 && ended == 0 && failed == 0 && asked > 0 && kept,
	}.Verdict(t)
}

// laughs are lists of nine lists of nine lists.
func laughs() string {
	var b strings.Builder
	for c := 'b'; c <= 'i'; c++ {
		fmt.Fprintf(&b, "%c: &%c [%s]\n", c, c, strings.TrimSuffix(strings.Repeat("*"+string(c-1)+",", 9), ","))
	}
	return b.String()
}
