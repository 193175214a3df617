package hostname

import (
	"errors"
	"strings"
	"testing"
)

func TestCanonicalForms(t *testing.T) {
	long := strings.Repeat("a.", 126) + "a" // 253 bytes
	for name, c := range map[string]struct{ in, want string }{
		"already canonical":        {"app.example.com", "app.example.com"},
		"mixed case":               {"App.EXAMPLE.com", "app.example.com"},
		"trailing dot":             {"app.example.com.", "app.example.com"},
		"one label":                {"localhost", "localhost"},
		"digits first":             {"1and1.example", "1and1.example"},
		"two hyphens, not xn":      {"pr--12.example.com", "pr--12.example.com"},
		"unicode to a-label":       {"bücher.example", "xn--bcher-kva.example"},
		"upper unicode":            {"BÜCHER.example", "xn--bcher-kva.example"},
		"a-label kept":             {"xn--bcher-kva.example", "xn--bcher-kva.example"},
		"a-label upper":            {"XN--BCHER-KVA.example", "xn--bcher-kva.example"},
		"sharp s stays itself":     {"straße.example", "xn--strae-oqa.example"},
		"ideographic full stop":    {"app。example。com", "app.example.com"},
		"fullwidth full stop last": {"app.example．", "app.example"},
		"long s folds to s":        {"ſite.example", "site.example"},
		"kelvin sign folds to k":   {"\u212aube.example", "kube.example"},
		"fullwidth letters":        {"ａｐｐ.example", "app.example"},
		"longest":                  {long, long},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Canonical(c.in)
			if err != nil || got != c.want {
				t.Fatalf("Canonical(%q) = %q, %v, want %q", c.in, got, err, c.want)
			}
		})
	}
}

func TestCanonicalRefuses(t *testing.T) {
	for name, in := range map[string]string{
		"empty":                  "",
		"dot":                    ".",
		"two trailing dots":      "a.b..",
		"leading dot":            ".a.b",
		"empty label":            "a..b",
		"port":                   "a.b:443",
		"percent encoding":       "%65xample.com",
		"underscore":             "my_app.example.com",
		"space":                  "a b.com",
		"nul":                    "a\x00.com",
		"newline":                "a.com\n",
		"slash":                  "a.com/x",
		"userinfo":               "a@b.com",
		"asterisk":               "*.b.com",
		"leading hyphen":         "-a.com",
		"trailing hyphen":        "a-.com",
		"label of 64":            strings.Repeat("a", 64) + ".com",
		"254 bytes":              strings.Repeat("a.", 126) + "aa",
		"ipv4":                   "127.0.0.1",
		"ipv4 trailing dot":      "127.0.0.1.",
		"short ipv4":             "127.1",
		"decimal ipv4":           "2130706433",
		"hex ipv4":               "0x7f.1",
		"hex last":               "a.0x7f",
		"fullwidth ipv4":         "１２７.0.0.1",
		"ipv6":                   "::1",
		"bracketed ipv6":         "[::1]",
		"bad punycode":           "xn--a.example",
		"punycode of ascii":      "xn--abc-.example",
		"bare prefix":            "xn--.example",
		"a-label of upper case":  "xn--BCHER-k-a.example",
		"a-label of mapped rune": "xn--site-q0a.example",
		"invalid utf-8":          "a\xff.com",
		"zero width joiner":      "a\u200db.com",
		"right to left mix":      "aא.com",
		"fullwidth solidus":      "a／b.com",
		"huge":                   strings.Repeat("ü", 5000),
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Canonical(in)
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("Canonical(%q) = %q, %v, want ErrInvalid", in, got, err)
			}
			if len(err.Error()) > 500 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
		})
	}
}

func TestCanonicalPatternAllowsOnlyWildcardsWithOneOwner(t *testing.T) {
	for in, want := range map[string]string{
		"*.example.com":       "*.example.com",
		"*.Example.COM.":      "*.example.com",
		"*.localhost":         "*.localhost",
		"*.test":              "*.test",
		"*.internal":          "*.internal",
		"*.apps.example.com":  "*.apps.example.com",
		"*.github.io":         "*.github.io",
		"*.bücher.example":    "*.xn--bcher-kva.example",
		"app.example.com":     "app.example.com",
		"*.com":               "",
		"*.co.uk":             "",
		"*.CO.uk.":            "",
		"*.foo.ck":            "",
		"*":                   "",
		"*.":                  "",
		"*.*.example.com":     "",
		"a.*.example.com":     "",
		"a*.example.com":      "",
		"*a.example.com":      "",
		"*.127.0.0.1":         "",
		"**.example.com":      "",
		"*。example.com":       "",
		"*.example.com:443":   "",
		"*.under_score.local": "",
	} {
		got, err := CanonicalPattern(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("CanonicalPattern(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
}

func TestFromHostHeader(t *testing.T) {
	for in, want := range map[string]string{
		"app.example.com":        "app.example.com",
		"app.example.com:443":    "app.example.com",
		"App.Example.com.:8443":  "app.example.com",
		"xn--bcher-kva.example":  "xn--bcher-kva.example",
		"":                       "",
		":443":                   "",
		"app.example.com:":       "",
		"app.example.com:0":      "",
		"app.example.com:99999":  "",
		"app.example.com:+1":     "",
		"app.example.com:443:1":  "",
		"app.example.com:000443": "",
		"app.example.com: 443":   "",
		"user@app.example.com":   "",
		"bücher.example":         "",
		"app。example.com":        "",
		"\u212aube.example":      "",
		"%65xample.com":          "",
		"127.0.0.1:443":          "",
		"[::1]:443":              "",
		"[::1]":                  "",
		"a.com, b.com":           "",
	} {
		got, err := FromHostHeader(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("FromHostHeader(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
}

func TestMatchAndCovers(t *testing.T) {
	for _, c := range []struct {
		granted, asked string
		match, covers  bool
	}{
		{"a.example.com", "a.example.com", true, true},
		{"a.example.com", "b.example.com", false, false},
		{"*.example.com", "a.example.com", true, true},
		{"*.example.com", "example.com", false, false},
		{"*.example.com", "b.a.example.com", false, false},
		{"*.example.com", "aexample.com", false, false},
		{"*.example.com", "*.example.com", false, true},
		{"*.example.com", "*.a.example.com", false, false},
		{"*.com", "*.example.com", false, false},
		{"a.example.com", "*.example.com", false, false},
		{"*.localhost", "hello.localhost", true, true},
		{"localhost", "localhost", true, true},
		{"*.", "a", false, false},
	} {
		if got := Match(c.granted, c.asked); got != c.match {
			t.Errorf("Match(%q, %q) = %v, want %v", c.granted, c.asked, got, c.match)
		}
		if got := Covers(c.granted, c.asked); got != c.covers {
			t.Errorf("Covers(%q, %q) = %v, want %v", c.granted, c.asked, got, c.covers)
		}
	}
}

func FuzzCanonical(f *testing.F) {
	for _, s := range []string{
		"", ".", "a", "App.Example.com.", "*.example.com", "bücher.example", "xn--bcher-kva.example",
		"%65.com", "app。example", "ſ.example", "\u212a.com", "127.0.0.1", "[::1]:443", "a:99999", "xn--a", "xn--", "0x7f.1", "a\x00b",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		host, err := Canonical(s)
		if err == nil {
			checkCanonical(t, s, host)
			again, err := Canonical(host)
			if err != nil || again != host {
				t.Fatalf("Canonical(%q) = %q, but Canonical of that = %q, %v", s, host, again, err)
			}
			wild := "*." + Parent(host)
			if !Match(host, host) || !Covers(host, host) {
				t.Fatalf("%q does not match itself", host)
			}
			if Parent(host) != "" && (!Match(wild, host) || !Covers(wild, host)) {
				t.Fatalf("%q does not match %q", wild, host)
			}
			if Match(wild, Parent(host)) || Match(wild, "x."+host) {
				t.Fatalf("%q matches more than one label below it", wild)
			}
			if up, err := Canonical(strings.ToUpper(host) + "."); err != nil || up != host {
				t.Fatalf("upper case of %q is %q, %v", host, up, err)
			}
		}
		if pattern, err := CanonicalPattern(s); err == nil {
			checkCanonical(t, s, strings.TrimPrefix(pattern, "*."))
			if again, err := CanonicalPattern(pattern); err != nil || again != pattern {
				t.Fatalf("pattern %q is not stable: %q, %v", pattern, again, err)
			}
		}
		if fromHeader, err := FromHostHeader(s); err == nil {
			checkCanonical(t, s, fromHeader)
			if host != "" && host != fromHeader {
				t.Fatalf("%q is %q as a name and %q as a Host header", s, host, fromHeader)
			}
		}
	})
}

func checkCanonical(t *testing.T, in, host string) {
	t.Helper()
	if host == "" || len(host) > MaxLength {
		t.Fatalf("%q has the canonical form %q of %d bytes", in, host, len(host))
	}
	for i := range len(host) {
		if c := host[i]; c != '.' && c != '-' && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			t.Fatalf("%q has the canonical form %q with the byte %q", in, host, c)
		}
	}
	if host[0] == '.' || host[len(host)-1] == '.' {
		t.Fatalf("%q has the canonical form %q with a dot at an end", in, host)
	}
}

func BenchmarkCanonical(b *testing.B) {
	for name, in := range map[string]string{"canonical": "app.example.com", "upper": "App.example.com", "alabel": "xn--bcher-kva.example"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := FromHostHeader(in); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
