package lint_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
)

// Labels and metrics that Prometheus itself adds to what it scrapes.
var (
	addedLabels  = []string{"instance", "job"}
	addedMetrics = []string{"up"}
)

// TestAlertsAndDashboardUseWhatExists starts an edge and agents, makes everything
// happen to them that has a metric, and compares.
func TestAlertsAndDashboardUseWhatExists(t *testing.T) {
	exist := scrapeAll(t)
	used := map[string]bool{}
	for where, expr := range expressions(t) {
		for _, fault := range faults(t, expr, exist, used) {
			t.Errorf("%s: %s\n\t%s", where, fault, expr)
		}
	}
	for name := range exist {
		if strings.HasPrefix(name, "wormhole_") && !used[name] {
			t.Logf("%s is used by no alert and no panel", name)
		}
	}
}

func TestExpressionsThatUseWhatDoesNotExistAreSeen(t *testing.T) {
	exist := series{"m_total": {{"code": "a"}}}
	for _, expr := range []string{`rate(n_total[5m])`, `m_total{kode="a"}`, `m_total{code="b"}`, `sum by (kode) (m_total)`, `m_total{code=~"b|c"}`} {
		if len(faults(t, expr, exist, map[string]bool{})) == 0 {
			t.Errorf("%s passes", expr)
		}
	}
	if found := faults(t, `sum by (code, instance) (rate(m_total{code=~"a|b"}[5m])) > on (instance) up`, exist, map[string]bool{}); len(found) > 0 {
		t.Error(found)
	}
}

// series are the label sets that exist of each metric.
type series map[string][]map[string]string

// faults says what an expression uses that does not exist, and notes what it uses.
func faults(t *testing.T, expr string, exist series, used map[string]bool) []string {
	t.Helper()
	parsed, err := parser.NewParser(parser.Options{}).ParseExpr(expr)
	if err != nil {
		return []string{err.Error()}
	}
	var out []string
	known := slices.Clone(addedLabels)
	var grouped []string
	parser.Inspect(parsed, func(node parser.Node, _ []parser.Node) error {
		switch n := node.(type) {
		case *parser.VectorSelector:
			if slices.Contains(addedMetrics, n.Name) {
				return nil
			}
			used[n.Name] = true
			sets := exist[n.Name]
			if len(sets) == 0 {
				out = append(out, "there is no metric "+n.Name)
			}
			for _, s := range sets {
				known = slices.AppendSeq(known, maps.Keys(s))
			}
			for _, m := range n.LabelMatchers {
				if m.Name == labels.MetricName || slices.Contains(addedLabels, m.Name) {
					continue
				}
				if !slices.ContainsFunc(sets, func(s map[string]string) bool { v, has := s[m.Name]; return has && m.Matches(v) }) {
					out = append(out, fmt.Sprintf("no series of %s has %s", n.Name, m))
				}
			}
		case *parser.AggregateExpr:
			grouped = append(grouped, n.Grouping...)
		case *parser.BinaryExpr:
			if n.VectorMatching != nil {
				grouped = append(grouped, n.VectorMatching.MatchingLabels...)
			}
		}
		return nil
	})
	for _, label := range grouped {
		if !slices.Contains(known, label) {
			out = append(out, "no metric in it has the label "+label)
		}
	}
	return out
}

// expressions are those of the alerts and of the dashboard, by where they stand.
func expressions(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	var alerts struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert       string
				Expr        string
				For         string
				Labels      map[string]string
				Annotations map[string]string
			}
		}
	}
	decode(t, "../prometheus/alerts.yaml", &alerts)
	for _, g := range alerts.Groups {
		for _, r := range g.Rules {
			if out[r.Alert] != "" {
				t.Errorf("alert %s is there twice", r.Alert)
			}
			out[r.Alert] = r.Expr
			if r.Labels["severity"] == "" || r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
				t.Errorf("alert %s lacks a severity, a summary or a description", r.Alert)
			}
			if r.For != "" {
				if _, err := model.ParseDuration(r.For); err != nil {
					t.Errorf("alert %s: %v", r.Alert, err)
				}
			}
			templated(t, r.Alert, r.Expr, r.Annotations)
		}
	}
	if len(out) == 0 {
		t.Fatal("no alert found")
	}

	// Grafana's variables stand for something that is no PromQL by itself.
	variables := strings.NewReplacer("$__rate_interval", "1m", "$edge", ".*", "$agent", ".*")
	var dashboard any
	if err := json.Unmarshal([]byte(read(t, "../grafana/wormhole.json")), &dashboard); err != nil {
		t.Fatal(err)
	}
	title, ids := "", map[float64]bool{}
	var visit func(v any)
	visit = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if text, ok := v["title"].(string); ok {
				title = text
			}
			if id, ok := v["id"].(float64); ok {
				if ids[id] {
					t.Errorf("two panels have the id %v", id)
				}
				ids[id] = true
			}
			if text, ok := v["expr"].(string); ok {
				out[fmt.Sprintf("panel %q, query %v", title, v["refId"])] = variables.Replace(text)
			}
			if text, ok := v["definition"].(string); ok {
				inner := regexp.MustCompile(`^label_values\((\w+), (\w+)\)$`).FindStringSubmatch(text)
				if inner == nil {
					t.Errorf("variable %v: %s", v["name"], text)
					return
				}
				out[fmt.Sprintf("variable %v", v["name"])] = fmt.Sprintf("sum by (%s) (%s)", inner[2], inner[1])
			}
			for _, k := range slices.Sorted(maps.Keys(v)) {
				if k != "fieldConfig" {
					visit(v[k])
				}
			}
		case []any:
			for _, e := range v {
				visit(e)
			}
		}
	}
	visit(dashboard)
	if strings.Contains(strings.Join(slices.Collect(maps.Values(out)), ""), "$") {
		t.Error("a variable of the dashboard is not known to this test")
	}
	return out
}

// templated checks that annotations name only labels that the alert's expression
// keeps.
func templated(t *testing.T, alert, expr string, annotations map[string]string) {
	t.Helper()
	parsed, err := parser.NewParser(parser.Options{}).ParseExpr(expr)
	if err != nil {
		t.Errorf("alert %s: %v", alert, err)
		return
	}
	aggregated := false
	kept := []string{}
	parser.Inspect(parsed, func(node parser.Node, _ []parser.Node) error {
		if a, ok := node.(*parser.AggregateExpr); ok {
			aggregated = true
			kept = append(kept, a.Grouping...)
		}
		return nil
	})
	for _, text := range annotations {
		for _, m := range regexp.MustCompile(`\$labels\.(\w+)`).FindAllStringSubmatch(text, -1) {
			if aggregated && !slices.Contains(kept, m[1]) || !aggregated && !slices.Contains(addedLabels, m[1]) {
				t.Errorf("alert %s: its annotation names the label %s, which its expression does not keep", alert, m[1])
			}
		}
	}
}

// scrapeAll returns what a busy edge and its agent expose.
func scrapeAll(t *testing.T) series {
	t.Helper()
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", dir, "./edge", "./wormhole")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	data := filepath.Join(dir, "data")
	admin := freeAddress(t)
	edge := start(t, nil, filepath.Join(dir, "edge"), "serve", "--data-dir", data, "--hostname", "edge.localhost", "--https", "127.0.0.1:0",
		"--http", "", "--admin", admin, "--drain-delay", "0s", "--drain-timeout", "1s", "--park-timeout", "10ms", "--log-format", "json")
	public := edge.said(t, `"https":"([^"]+)"`)
	issue := func(dataDir, host string) string {
		out, err := exec.Command(filepath.Join(dir, "edge"), "token", "issue", "--data-dir", dataDir, "--host", host).Output()
		if err != nil {
			t.Fatalf("edge token issue: %v", err)
		}
		return strings.TrimSpace(string(out))
	}
	_, port, _ := net.SplitHostPort(public)
	env := func(token, endpoint string) []string {
		return []string{
			"WORMHOLE_TOKEN=" + token, "WORMHOLE_EDGE=localhost:" + port, "WORMHOLE_CA_FILE=" + filepath.Join(data, "ca", "ca.pem"),
			"WORMHOLE_ENDPOINT=" + endpoint, "WORMHOLE_METRICS=127.0.0.1:0", "WORMHOLE_LOG_FORMAT=json",
		}
	}
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if r.URL.Path == "/broken" {
			panic(http.ErrAbortHandler)
		}
		_, _ = io.WriteString(w, "hello")
	}))
	t.Cleanup(app.Close)
	token := issue(data, "app.localhost")
	agent := start(t, env(token, app.Listener.Addr().String()), filepath.Join(dir, "wormhole"))
	second := start(t, env(token, app.Listener.Addr().String()), filepath.Join(dir, "wormhole"))
	stranger := start(t, env(issue(filepath.Join(dir, "elsewhere"), "app.localhost"), "127.0.0.1:1"), filepath.Join(dir, "wormhole"))
	agentMetrics := agent.said(t, `"addr":"([^"]+)"`)
	await(t, "two ready backends", func() bool {
		return strings.Contains(get(t, "http://"+admin+"/metrics"), `wormhole_edge_backends{state="ready"} 2`)
	})
	stranger.said(t, "(refuse)")

	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // this test is not about certificates
	}}
	ask := func(host, path string, want int) {
		t.Helper()
		request, err := http.NewRequest(http.MethodGet, "https://127.0.0.1:"+port+path, bytes.NewReader(nil))
		if err != nil {
			t.Fatal(err)
		}
		request.Host = host
		client.Transport.(*http.Transport).TLSClientConfig.ServerName = host
		client.CloseIdleConnections()
		response, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		if response.StatusCode != want {
			t.Errorf("%s%s: %s, want %d", host, path, response.Status, want)
		}
	}
	ask("app.localhost", "/", http.StatusOK)
	ask("app.localhost", "/broken", http.StatusBadGateway) // and tried again elsewhere
	app.Close()
	ask("app.localhost", "/", http.StatusBadGateway)
	agent.said(t, "(app is not ready)")
	await(t, "an agent has had a round trip", func() bool {
		return strings.Contains(get(t, "http://"+agentMetrics+"/metrics"), "tunnel_rtt_seconds{")
	})
	// An edge that orders certificates has further metrics; its CA is not there.
	ordering := freeAddress(t)
	start(t, nil, filepath.Join(dir, "edge"), "serve", "--data-dir", filepath.Join(dir, "ordering"), "--hostname", "edge1.example.com",
		"--https", "127.0.0.1:0", "--http", "127.0.0.1:0", "--admin", ordering, "--drain-delay", "0s", "--drain-timeout", "1s",
		"--tls", "acme", "--acme-directory", "https://127.0.0.1:1/directory")
	await(t, "the edge that orders certificates is up", func() bool { return get(t, "http://"+ordering+"/livez") != "" })
	texts := []string{get(t, "http://"+agentMetrics+"/metrics"), get(t, "http://"+ordering+"/metrics")}
	agent.stop()
	second.stop()
	await(t, "no tunnel is open", func() bool {
		return strings.Contains(get(t, "http://"+admin+"/metrics"), `wormhole_edge_tunnels{carrier="tls"} 0`)
	})
	ask("app.localhost", "/", http.StatusServiceUnavailable)
	texts = append(texts, get(t, "http://"+admin+"/metrics"))

	exist := series{}
	for _, text := range texts {
		p := expfmt.NewTextParser(model.LegacyValidation)
		families, err := p.TextToMetricFamilies(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		for name, family := range families {
			for _, m := range family.GetMetric() {
				set := map[string]string{}
				for _, l := range m.GetLabel() {
					set[l.GetName()] = l.GetValue()
				}
				if m.GetHistogram() == nil {
					exist[name] = append(exist[name], set)
					continue
				}
				for _, suffix := range []string{"_sum", "_count", "_bucket"} {
					exist[name+suffix] = append(exist[name+suffix], set)
				}
				bucket := maps.Clone(set)
				bucket["le"] = "+Inf"
				exist[name+"_bucket"] = append(exist[name+"_bucket"], bucket)
			}
		}
	}
	addDeclared(t, exist)
	return exist
}

// addDeclared adds metrics that appear only once a CA has taken an order, which no
// CA here does: for them the declaration in the source has to do.
func addDeclared(t *testing.T, exist series) {
	t.Helper()
	files, err := filepath.Glob("../../edge/node/*.go")
	if err != nil {
		t.Fatal(err)
	}
	source := ""
	for _, f := range files {
		source += read(t, f)
	}
	for _, name := range []string{"wormhole_edge_certificate_budget_used", "wormhole_edge_certificate_budget_limit"} {
		m := regexp.MustCompile(`NewDesc\("` + name + `", "[^"]+", \[\]string\{"(\w+)"\}, nil\)`).FindStringSubmatch(source)
		if m == nil {
			t.Errorf("%s is not declared", name)
			continue
		}
		exist[name] = append(exist[name], map[string]string{m[1]: ""})
	}
}

// process is a program under test and what it has said on standard error.
type process struct {
	stop func() // asks it to end and waits; idempotent

	mu  sync.Mutex // guards log
	log bytes.Buffer
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(b)
}

func (p *process) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// said waits until the program has said what matches, and returns the first group.
func (p *process) said(t *testing.T, pattern string) (group string) {
	t.Helper()
	expr := regexp.MustCompile(pattern)
	await(t, pattern, func() bool {
		m := expr.FindStringSubmatch(p.text())
		if m != nil {
			group = m[1]
		}
		return m != nil
	})
	return group
}

func start(t *testing.T, env []string, name string, args ...string) *process {
	t.Helper()
	p := &process{}
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = p
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.stop = sync.OnceFunc(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		kill.Stop()
	})
	t.Cleanup(func() {
		p.stop()
		if t.Failed() {
			t.Logf("%s:\n%s", filepath.Base(name), p.text())
		}
	})
	return p
}

func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("did not happen: %s", what)
		}
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		return ""
	}
	defer func() { _ = response.Body.Close() }()
	body, _ := io.ReadAll(response.Body)
	return string(body)
}
