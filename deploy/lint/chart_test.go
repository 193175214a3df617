package lint_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"
	"sigs.k8s.io/yaml"
)

const chartDir = "../helm/wormhole-edge"

// variants are the values that a chart must render with.
var variants = map[string]string{
	"defaults": ``,
	"everything on": `
hostname: $(POD_NAME).example.com
region: fra
replicas: 3
cluster: {enabled: true, joinSecret: edge-join, join: "yyz.example.com:443", meshFrom: [{ipBlock: {cidr: 10.0.0.0/8}}]}
tls: {mode: files, secret: edge-tls}
config: {trusted_proxies: [10.0.0.0/8], backend_header: X-Backend, log_level: debug}
sites: [{host: app.example.com, redirect_http: false}]
service: {annotations: {a: b}, loadBalancerClass: example.com/lb}
hostPorts: true
persistence: {storageClass: fast}
serviceMonitor: {enabled: true, labels: {release: prometheus}}
networkPolicy: {egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8}}]}]}
image: {digest: "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", pullSecrets: [{name: registry}]}
env: [{name: GOMEMLIMIT, value: 900MiB}]
podAnnotations: {a: b}
podLabels: {c: d}
nodeSelector: {kubernetes.io/os: linux}
tolerations: [{key: edge, operator: Exists}]
affinity: {nodeAffinity: {}}
priorityClassName: high
`,
	"everything off": `
service: {type: ""}
persistence: {enabled: false}
podDisruptionBudget: {enabled: false}
networkPolicy: {enabled: false}
`,
	"acme": `
hostname: edge1.example.com
tls: {mode: acme, acme: {email: ops@example.com, directory: "https://127.0.0.1:1/directory"}}
`,
	"first of a cluster": clusterFirst,
	"cluster":            clusterMore,
	"no UDP":             `service: {type: ClusterIP, udp: false}`,
}

func TestChartPassesHelmLint(t *testing.T) {
	for name, text := range variants {
		for _, m := range lint.AllWithKubeVersion(chartDir, values(t, text), "default", kubeVersion(t)).Messages {
			if m.Severity > support.InfoSev {
				t.Errorf("%s: %v", name, m)
			}
		}
	}
}

func TestChartRendersWhatKubernetesAccepts(t *testing.T) {
	check := conforms(t)
	for name, text := range variants {
		for file, manifest := range render(t, text) {
			if strings.HasSuffix(file, ".txt") || strings.TrimSpace(manifest) == "" {
				continue
			}
			check(t, name+": "+file, manifest)
		}
	}
}

func TestValuesThatMakeNoSenseAreRefused(t *testing.T) {
	for name, text := range map[string]string{
		"unknown value":                 `replica: 3`,
		"unknown value below":           `service: {typ: NodePort}`,
		"files without a secret":        `tls: {mode: files}`,
		"config that the chart decides": `config: {https: ":8443"}`,
		"not a digest":                  `image: {digest: latest}`,
		"negative drain":                `drain: {delaySeconds: -1}`,
		"site without a host":           `sites: [{redirect_http: true}]`,
		"replicas without a cluster":    `replicas: 2`,
		"replicas that cannot join":     `{replicas: 2, cluster: {enabled: true}}`,
		"cluster without a volume":      `{cluster: {enabled: true}, persistence: {enabled: false}}`,
		"join without a token":          `cluster: {enabled: true, join: "yyz.example.com:443"}`,
		"join without a port":           `cluster: {enabled: true, join: yyz.example.com, joinSecret: s}`,
	} {
		if _, err := tryRender(t, text); err == nil {
			t.Errorf("%s: rendered", name)
		}
	}
}

func TestPodOutlivesTheDrain(t *testing.T) {
	for _, text := range []string{``, `drain: {delaySeconds: 20, timeoutSeconds: 600}`} {
		manifests := render(t, text)
		pod := dig(t, manifests["statefulset.yaml"], "spec", "template", "spec").(map[string]any)
		config := edgeConfig(t, manifests)
		var drain time.Duration
		for _, key := range []string{"drain_delay", "drain_timeout"} {
			d, err := time.ParseDuration(fmt.Sprint(config[key]))
			if err != nil {
				t.Fatal(err)
			}
			drain += d
		}
		grace := time.Duration(pod["terminationGracePeriodSeconds"].(float64)) * time.Second
		if grace < drain+10*time.Second {
			t.Errorf("grace period %v for a drain of %v", grace, drain)
		}
	}
}

func TestPodIsConfined(t *testing.T) {
	for name, text := range variants {
		pod := dig(t, render(t, text)["statefulset.yaml"], "spec", "template", "spec").(map[string]any)
		container := pod["containers"].([]any)[0].(map[string]any)
		security := container["securityContext"].(map[string]any)
		if security["readOnlyRootFilesystem"] != true || security["allowPrivilegeEscalation"] != false ||
			fmt.Sprint(security["capabilities"]) != "map[drop:[ALL]]" {
			t.Errorf("%s: container may do too much: %v", name, security)
		}
		if s := pod["securityContext"].(map[string]any); s["runAsNonRoot"] != true {
			t.Errorf("%s: pod may be root: %v", name, s)
		}
	}
}

// The configuration that the chart writes is tried on the real edge, which refuses
// unknown keys; only addresses and paths that exist in the pod are replaced.
func TestEdgeStartsWithTheChartsConfiguration(t *testing.T) {
	edge := filepath.Join(t.TempDir(), "edge")
	build := exec.Command("go", "build", "-o", edge, "./edge")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for name, text := range variants {
		t.Run(name, func(t *testing.T) {
			manifests := render(t, text)
			dir := t.TempDir()
			config := dig(t, manifests["configmap.yaml"], "data", "edge.yaml").(string)
			config = strings.ReplaceAll(config, "/etc/wormhole-tls/", dir+"/")
			writePair(t, dir)
			if err := os.WriteFile(filepath.Join(dir, "edge.yaml"), []byte(config), 0o600); err != nil {
				t.Fatal(err)
			}
			admin := freeAddress(t)
			cmd := exec.Command(edge, "serve", "--config", filepath.Join(dir, "edge.yaml"), "--data-dir", filepath.Join(dir, "data"),
				"--hostname", "edge.localhost", "--http", "127.0.0.1:0", "--https", "127.0.0.1:0", "--admin", admin, "--drain-delay", "0s")
			var log strings.Builder
			cmd.Stderr = &log
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			exited := make(chan error, 1)
			go func() { exited <- cmd.Wait() }()
			defer func() { _ = cmd.Process.Kill() }()

			// The same paths that the pod's probes ask.
			pod := dig(t, manifests["statefulset.yaml"], "spec", "template", "spec", "containers").([]any)[0].(map[string]any)
			for _, probe := range []string{"readinessProbe", "livenessProbe"} {
				path := pod[probe].(map[string]any)["httpGet"].(map[string]any)["path"].(string)
				deadline := time.Now().Add(20 * time.Second)
				for {
					response, err := http.Get("http://" + admin + path)
					if err == nil {
						_, _ = io.Copy(io.Discard, response.Body)
						_ = response.Body.Close()
						if response.StatusCode == http.StatusOK {
							break
						}
					}
					select {
					case err := <-exited:
						t.Fatalf("the edge ended: %v\n%s", err, log.String())
					case <-time.After(20 * time.Millisecond):
					}
					if time.Now().After(deadline) {
						t.Fatalf("%s does not answer: %v", path, err)
					}
				}
			}
			_ = cmd.Process.Signal(syscall.SIGTERM)
			if err := <-exited; err != nil {
				t.Errorf("the edge ended with %v\n%s", err, log.String())
			}
		})
	}
}

func render(t *testing.T, text string) map[string]string {
	t.Helper()
	out, err := tryRender(t, text)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// tryRender does what helm install does before it talks to a cluster. The result
// is by file name.
func tryRender(t *testing.T, text string) (map[string]string, error) {
	t.Helper()
	c := load(t)
	capabilities := chartutil.DefaultCapabilities.Copy()
	capabilities.KubeVersion = *kubeVersion(t)
	if ok := chartutil.IsCompatibleRange(c.Metadata.KubeVersion, capabilities.KubeVersion.String()); !ok {
		t.Fatalf("the chart is not for Kubernetes %s", capabilities.KubeVersion.String())
	}
	vals, err := chartutil.ToRenderValues(c, values(t, text), chartutil.ReleaseOptions{Name: "edge", Namespace: "edges", IsInstall: true}, capabilities)
	if err != nil {
		return nil, err
	}
	e := engine.Engine{Strict: true}
	files, err := e.Render(c, vals)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for name, manifest := range files {
		out[filepath.Base(name)] = manifest
	}
	return out, nil
}

func load(t *testing.T) *chart.Chart {
	t.Helper()
	c, err := loader.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func values(t *testing.T, text string) map[string]any {
	t.Helper()
	v := map[string]any{}
	if err := yaml.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	return maps.Clone(v)
}

func kubeVersion(t *testing.T) *chartutil.KubeVersion {
	t.Helper()
	_, version, _ := strings.Cut(kubernetesModule, "@")
	v, err := chartutil.ParseKubeVersion(version)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func edgeConfig(t *testing.T, manifests map[string]string) map[string]any {
	t.Helper()
	return values(t, dig(t, manifests["configmap.yaml"], "data", "edge.yaml").(string))
}

// dig returns what is below the keys of a manifest.
func dig(t *testing.T, manifest string, keys ...string) any {
	t.Helper()
	var v any = values(t, manifest)
	for _, k := range keys {
		m, ok := v.(map[string]any)
		if !ok || m[k] == nil {
			t.Fatalf("no %s of %v in\n%s", k, keys, manifest)
		}
		v = m[k]
	}
	return v
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// writePair writes tls.crt and tls.key for edge.example.com.
func writePair(t *testing.T, dir string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"edge.example.com"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		"tls.crt": {Type: "CERTIFICATE", Bytes: der}, "tls.key": {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
