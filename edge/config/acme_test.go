package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAPublicHostnameMeansACME(t *testing.T) {
	for name, want := range map[string]TLSMode{
		"": TLSInternal, "localhost": TLSInternal, "edge.localhost": TLSInternal, "edge.internal": TLSInternal, "edge.test": TLSInternal,
		"edge1.example.com": TLSACME, "example.co.uk": TLSACME, "co.uk": TLSInternal,
	} {
		c := Default()
		c.Hostname = name
		if err := c.Validate(); err != nil || c.TLS != want {
			t.Errorf("%q: %q, %v, want %q", name, c.TLS, err, want)
		}
	}
	c := Default()
	c.Hostname, c.TLS = "edge1.example.com", TLSInternal
	if err := c.Validate(); err != nil || c.TLS != TLSInternal {
		t.Errorf("what was asked for is changed to %q, %v", c.TLS, err)
	}
}

func TestACMESettingsAreChecked(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for key, change := range map[string]func(*Config){
		"acme_directory": func(c *Config) { c.ACMEDirectory = "http://ca.example.com/dir" },
		"acme_email":     func(c *Config) { c.ACMEEmail = "Ops <ops@example.com>" },
		"acme_ca_file":   func(c *Config) { c.ACMECAFile = empty },
		"acme_staging":   func(c *Config) { c.ACMEStaging, c.ACMEDirectory = true, "https://ca.example.com/dir" },
		"key":            func(c *Config) { c.Certs = []string{empty} },
	} {
		c := Default()
		c.TLS = TLSACME
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), key+": ") {
			t.Errorf("%s: %v", key, err)
		}
	}
}
