package lint_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/yannh/kubeconform/pkg/validator"
	"sigs.k8s.io/yaml"
)

// Where the schemas come from: modules that hold them as files. The registries
// that kubeconform itself would ask are no Go modules.
const (
	kubernetesModule = "k8s.io/kubernetes@v1.34.1"
	operatorModule   = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
)

// conforms returns a check of manifests against Kubernetes's own description of
// its API and the Prometheus operator's CRDs: no unknown field, none missing, none
// of a wrong type.
func conforms(t *testing.T) func(t *testing.T, name, manifests string) {
	t.Helper()
	dir := t.TempDir()
	writeKubernetesSchemas(t, dir)
	writeOperatorSchemas(t, dir)
	v, err := validator.New([]string{dir + "/{{ .ResourceKind }}{{ .KindSuffix }}.json"}, validator.Opts{Strict: true})
	if err != nil {
		t.Fatal(err)
	}
	return func(t *testing.T, name, manifests string) {
		t.Helper()
		found := 0
		for _, r := range v.Validate(name, io.NopCloser(strings.NewReader(manifests))) {
			switch r.Status {
			case validator.Valid:
				found++
			case validator.Empty:
			default:
				sig, _ := r.Resource.Signature()
				t.Errorf("%s: %+v: %v %v", name, sig, r.Err, r.ValidationErrors)
			}
		}
		if found == 0 {
			t.Errorf("%s: no object in it", name)
		}
	}
}

func TestExamplesConform(t *testing.T) {
	check := conforms(t)
	files, err := filepath.Glob("../kubernetes/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples found: %v", err)
	}
	for _, f := range files {
		check(t, f, read(t, f))
	}
}

func TestWhatDoesNotConformIsSeen(t *testing.T) {
	// Without this, a schema that allows everything would pass for agreement.
	v, err := validator.New([]string{schemasIn(t) + "/{{ .ResourceKind }}{{ .KindSuffix }}.json"}, validator.Opts{Strict: true})
	if err != nil {
		t.Fatal(err)
	}
	good := read(t, "../kubernetes/wrapped.yaml")
	for name, change := range map[string][2]string{
		"unknown field":  {"automountServiceAccountToken", "automountServiceAccountTokens"},
		"missing field":  {"  selector:\n    matchLabels: {app: shop}\n", ""},
		"wrong type":     {"replicas: 2", "replicas: two"},
		"unknown kind":   {"kind: Deployment", "kind: Deplyment"},
		"unknown deeply": {"drop: [ALL]", "dorp: [ALL]"},
	} {
		bad := strings.Replace(good, change[0], change[1], 1)
		if bad == good {
			t.Fatalf("%s: nothing to change", name)
		}
		for _, r := range v.Validate(name, io.NopCloser(strings.NewReader(bad))) {
			if r.Status == validator.Valid {
				t.Errorf("%s passes", name)
			}
		}
	}
}

func schemasIn(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	writeKubernetesSchemas(t, dir)
	return dir
}

// object is a JSON object.
type object = map[string]any

// writeKubernetesSchemas writes one schema for every kind of the API.
func writeKubernetesSchemas(t *testing.T, dir string) {
	t.Helper()
	var swagger struct {
		Definitions map[string]object `json:"definitions"`
	}
	decode(t, filepath.Join(module(t, kubernetesModule), "api/openapi-spec/swagger.json"), &swagger)
	// These two are written as "string" and take more.
	swagger.Definitions["io.k8s.apimachinery.pkg.util.intstr.IntOrString"] = object{"type": []string{"string", "integer"}}
	swagger.Definitions["io.k8s.apimachinery.pkg.api.resource.Quantity"] = object{"type": []string{"string", "number"}}
	for _, d := range swagger.Definitions {
		closeObjects(d)
	}
	for name, d := range swagger.Definitions {
		kinds, _ := d["x-kubernetes-group-version-kind"].([]any)
		if len(kinds) != 1 {
			continue
		}
		k := kinds[0].(object)
		// kubeconform's names have only the first label of the group.
		group, _, _ := strings.Cut(fmt.Sprint(k["group"]), ".")
		file := fmt.Sprintf("%v-%s-%v.json", k["kind"], group, k["version"])
		writeJSON(t, filepath.Join(dir, strings.ToLower(strings.Replace(file, "--", "-", 1))),
			object{"$ref": "#/definitions/" + name, "definitions": reachable(swagger.Definitions, name)})
	}
}

// writeOperatorSchemas writes the schemas of the Prometheus operator's kinds.
func writeOperatorSchemas(t *testing.T, dir string) {
	t.Helper()
	for _, plural := range []string{"servicemonitors", "podmonitors"} {
		var crd struct {
			Spec struct {
				Names    struct{ Kind string }
				Versions []struct {
					Name   string
					Schema struct {
						OpenAPIV3Schema object `json:"openAPIV3Schema"`
					}
				}
			}
		}
		decode(t, filepath.Join(module(t, operatorModule), "example/prometheus-operator-crd/monitoring.coreos.com_"+plural+".yaml"), &crd)
		for _, v := range crd.Spec.Versions {
			schema := v.Schema.OpenAPIV3Schema
			closeObjects(schema)
			schema["properties"].(object)["metadata"] = object{"type": "object"}
			writeJSON(t, filepath.Join(dir, strings.ToLower(crd.Spec.Names.Kind)+"-monitoring-"+v.Name+".json"), schema)
		}
	}
}

// closeObjects refuses fields that a schema does not name.
func closeObjects(schema object) {
	if properties, ok := schema["properties"].(object); ok {
		if _, says := schema["additionalProperties"]; !says && schema["x-kubernetes-preserve-unknown-fields"] != true {
			schema["additionalProperties"] = false
		}
		for _, p := range properties {
			closeObjects(p.(object))
		}
	}
	for _, below := range []string{"items", "additionalProperties"} {
		if s, ok := schema[below].(object); ok {
			closeObjects(s)
		}
	}
	if schema["x-kubernetes-int-or-string"] == true {
		delete(schema, "anyOf")
		schema["type"] = []string{"string", "integer"}
	}
}

// reachable are the definitions that name needs.
func reachable(all map[string]object, name string) object {
	out := object{}
	var visit func(v any)
	add := func(name string) {
		if _, seen := out[name]; !seen {
			out[name] = all[name]
			visit(all[name])
		}
	}
	visit = func(v any) {
		switch v := v.(type) {
		case object:
			if ref, ok := v["$ref"].(string); ok {
				add(strings.TrimPrefix(ref, "#/definitions/"))
			}
			for e := range maps.Values(v) {
				visit(e)
			}
		case []any:
			for _, e := range v {
				visit(e)
			}
		}
	}
	add(name)
	return out
}

// module is the directory of a module, fetched through the Go proxy and verified
// like every other.
func module(t *testing.T, version string) string {
	t.Helper()
	out, err := exec.Command("go", "mod", "download", "-json", version).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			out = append(out, exit.Stderr...)
		}
		t.Fatalf("cannot get %s: %v\n%s", version, err, out)
	}
	var m struct{ Dir string }
	if err := json.Unmarshal(out, &m); err != nil {
		t.Fatal(err)
	}
	return m.Dir
}

func decode(t *testing.T, path string, v any) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(read(t, path)), v); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func writeJSON(t *testing.T, path string, v any) {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}
