package lint_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/strvals"
	"sigs.k8s.io/yaml"
)

// TestPrintedHelmCommandsRender takes the commands of docs/kubernetes.md as far as they
// go without a cluster: the files that they name are there, and the chart renders with
// the values that they set, an upgrade's on top of those before it.
func TestPrintedHelmCommandsRender(t *testing.T) {
	text, err := os.ReadFile("../../docs/kubernetes.md")
	if err != nil {
		t.Fatal(err)
	}
	check, set, rendered := conforms(t), map[string]any{}, 0
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "helm" && words[0] != "kubectl" {
			continue
		}
		if words[0] == "kubectl" {
			if words[1] == "apply" {
				if _, err := os.Stat(filepath.Join("../..", words[3])); err != nil {
					t.Errorf("%s%v", line, err)
				}
			}
			continue
		}
		if words[1] == "install" {
			set = map[string]any{}
		}
		if _, err := os.Stat(filepath.Join("../..", words[3], "Chart.yaml")); err != nil {
			t.Errorf("%s%v", line, err)
		}
		for i, word := range words {
			if word == "--set" {
				if err := strvals.ParseInto(strings.ReplaceAll(words[i+1], "'", ""), set); err != nil {
					t.Fatalf("%s%v", line, err)
				}
			}
		}
		all, err := yaml.Marshal(set)
		if err != nil {
			t.Fatal(err)
		}
		for file, manifest := range render(t, string(all)) {
			if !strings.HasSuffix(file, ".txt") && strings.TrimSpace(manifest) != "" {
				check(t, line+file, manifest)
			}
		}
		rendered++
	}
	if rendered != 3 {
		t.Errorf("%d commands of helm, want 3", rendered)
	}
}
