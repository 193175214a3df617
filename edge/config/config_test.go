package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

func load(t testing.TB, env map[string]string, file string, args ...string) (Config, error) {
	t.Helper()
	cfg := Default()
	cfg.DataDir = "/data"
	fs := pflag.NewFlagSet("edge", pflag.ContinueOnError)
	cfg.Register(fs)
	DeferFaults(fs)
	if file != "" {
		path := filepath.Join(t.TempDir(), "edge.yaml")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--config", path)
	}
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	err := cfg.Load(fs, func(name string) (string, bool) { v, ok := env[name]; return v, ok })
	return cfg, err
}

func TestAFlagWinsOverTheVariableAndThatOverTheFile(t *testing.T) {
	file := "region: file\nhttp: ':81'\ndrain_timeout: 7s\ntrusted_proxies: [10.0.0.0/8, 192.0.2.1]\nquic: false\n"
	cfg, err := load(t, map[string]string{"EDGE_REGION": "env", "EDGE_HTTP": ":82"}, file, "--region", "flag")
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Region != "flag" || cfg.HTTP != ":82" || cfg.DrainTimeout != 7*time.Second || cfg.QUIC || cfg.HTTPS != ":443" {
		t.Errorf("got region %q, http %q, drain %s, quic %t, https %q", cfg.Region, cfg.HTTP, cfg.DrainTimeout, cfg.QUIC, cfg.HTTPS)
	}
	if got := cfg.Prefixes(); len(got) != 2 || got[0].String() != "10.0.0.0/8" || got[1].String() != "192.0.2.1/32" {
		t.Errorf("trusted proxies are %v", got)
	}
}

func TestAListGivenTwiceIsOneList(t *testing.T) {
	cfg, err := load(t, nil, "", "--trusted-proxies", "10.0.0.1", "--trusted-proxies", "10.0.0.2,10.0.0.3")
	if err != nil || len(cfg.TrustedProxies) != 3 {
		t.Errorf("got %v, err %v", cfg.TrustedProxies, err)
	}
}

func TestAnEmptyVariableIsAValue(t *testing.T) {
	cfg, err := load(t, map[string]string{"EDGE_HTTP": ""}, "")
	if err != nil || cfg.HTTP != "" {
		t.Errorf("http is %q, err %v; want it switched off", cfg.HTTP, err)
	}
}

func TestSitesOfTheFileAreParsed(t *testing.T) {
	cfg, err := load(t, nil, "sites:\n- host: App.Example.com\n  backend_header: X-Internal-Service\n")
	if err != nil || len(cfg.Sites) != 1 || cfg.Sites[0].Host != "app.example.com" {
		t.Errorf("sites are %+v, err %v", cfg.Sites, err)
	}
}

func TestEveryFaultIsListedWithItsPlace(t *testing.T) {
	_, err := load(t,
		map[string]string{"EDGE_DRAIN_DELAY": "soon", "EDGE_TLS": "magic"},
		"htps: ':1'\nadmin: {a: 1}\npark_timeout: -3s\nsites:\n- host: app.example.com\n- host: '*'\n  wat: 1\n",
		"--quic=perhaps", "--http", "nonsense", "--trusted-proxies", "example.com", "--log-level", "loud", "--hostname", "-")
	if err == nil {
		t.Fatal("no fault found")
	}
	for _, want := range []string{"htps", "EDGE_DRAIN_DELAY", "tls", "admin", "park_timeout", "sites[1]", "wat", "--quic", "http:", "trusted_proxies", "log_level", "hostname"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not named in:\n%v", want, err)
		}
	}
}

func TestAMissingOrHugeFileIsAFault(t *testing.T) {
	if _, err := load(t, map[string]string{"EDGE_CONFIG": "/does/not/exist.yaml"}, ""); err == nil || !strings.Contains(err.Error(), "/does/not/exist.yaml") {
		t.Errorf("missing file: %v", err)
	}
	path := filepath.Join(t.TempDir(), "huge")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Truncate(MaxFile + 1)
	_ = f.Close()
	if _, err := load(t, map[string]string{"EDGE_CONFIG": path}, ""); err == nil || !strings.Contains(err.Error(), "larger") {
		t.Errorf("huge file: %v", err)
	}
}

func FuzzConfig(f *testing.F) {
	f.Add("region: fra\nsites:\n- host: app.example.com\n")
	f.Add("http: ':80'\ntrusted_proxies: [10.0.0.0/8]\nquic: true\ndrain_timeout: 5s\n")
	f.Add("sites: [{host: '*.example.com', parking: {wait: 1s, max: 3}}]")
	f.Add("a: &a [*a]")
	f.Add("cert: [a, b]\nkey: [c]\ntls: files\n")
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 1<<16 {
			return
		}
		cfg := Default()
		fs := pflag.NewFlagSet("edge", pflag.ContinueOnError)
		cfg.Register(fs)
		keys, specs, err := parseFile([]byte(text), fs)
		if err != nil {
			return
		}
		// What was accepted names known keys only and only canonical sites.
		for key := range keys {
			if fs.Lookup(strings.ReplaceAll(key, "_", "-")) == nil {
				t.Errorf("unknown key %q was accepted", key)
			}
		}
		for _, s := range specs {
			if s.Host == "" || s.Host != strings.ToLower(s.Host) {
				t.Errorf("site %q was accepted", s.Host)
			}
		}
	})
}
