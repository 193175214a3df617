package token

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"wormhole/shared/hostname"
	"wormhole/shared/protocol"
)

// Faults H2 and H15: a host that is not in the one canonical spelling makes the
// whole token worthless, even with a proper signature.
func TestTokensWithHostsNotCanonicalAreRefused(t *testing.T) {
	for name, host := range map[string]string{
		"upper case":            "App.example.com",
		"trailing dot":          "app.example.com.",
		"port":                  "app.example.com:443",
		"unicode":               "bücher.example",
		"upper punycode":        "XN--bcher-kva.example",
		"punycode of ascii":     "xn--app-.example",
		"broken punycode":       "xn--zzzzzzzzzz99999.example",
		"kelvin sign":           "\u212aey.example",
		"long s":                "\u017fite.example",
		"ideographic stop":      "app\u3002example.com",
		"percent":               "%61pp.example.com",
		"all":                   "*",
		"public suffix":         "*.com",
		"public suffix of two":  "*.co.uk",
		"wildcard inside":       "a.*.example.com",
		"wildcard part":         "a*.example.com",
		"two wildcards":         "*.*.example.com",
		"wildcard upper":        "*.Example.com",
		"ipv4":                  "192.0.2.1",
		"ipv6":                  "::1",
		"url":                   "https://app.example.com",
		"path":                  "app.example.com/x",
		"user":                  "a@app.example.com",
		"space":                 "app.example.com ",
		"nul":                   "app.example.com\u0000",
		"leading dot":           ".example.com",
		"empty label":           "app..example.com",
		"empty":                 "",
		"label of 64":           strings.Repeat("a", 64) + ".example.com",
		"name of 254":           strings.Repeat("a.", 125) + "abcd",
		"named twice, via case": "app.example.com\",\"app.example.com",
	} {
		t.Run(name, func(t *testing.T) {
			raw := edit(t, `"app.example.com"`, `"`+strings.ReplaceAll(host, "\x00", `\u0000`)+`"`)
			var refused *Error
			if _, err := Verify(raw, testKeys(), testNetwork, epoch()); !errors.As(err, &refused) || refused.Code != protocol.CodeTokenMalformed {
				t.Fatalf("got %v", err)
			}
		})
	}
}

func TestATokenAllowsWhatItNamesAndNoMore(t *testing.T) {
	c := Claims{Hosts: []string{"app.example.com", "*.team.example.com"}}
	for asked, want := range map[string]bool{
		"app.example.com":          true,
		"www.example.com":          false,
		"example.com":              false,
		"com":                      false,
		"a.team.example.com":       true,
		"a.b.team.example.com":     false,
		"team.example.com":         false,
		"*.team.example.com":       true,
		"*.example.com":            false,
		"*.a.team.example.com":     false,
		"xapp.example.com":         false,
		"app.example.com.evil.com": false,
		"a.xteam.example.com":      false,
	} {
		if got := c.AllowsHost(asked); got != want {
			t.Errorf("AllowsHost(%q) is %v, want %v", asked, got, want)
		}
	}
}

// The law of H2 over random names: a token gives exactly the names that its
// patterns match, whatever spelling was granted and asked.
func TestPropertyAllowedHostsAreThoseThatThePatternsMatch(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2)) // seeded, so that failures repeat
	labels := []string{"a", "b", "Aa", "ü", "xn--tda", "\u212a", "k", "ſ", "s", "example", "EXAMPLE", "test"}
	spell := func(n int) string {
		var parts []string
		for range n {
			parts = append(parts, labels[r.IntN(len(labels))])
		}
		s := strings.Join(parts, []string{".", ".", "\u3002"}[r.IntN(3)])
		if r.IntN(4) == 0 {
			s += "."
		}
		return s
	}
	for range 1500 {
		granted, asked := spell(1+r.IntN(3)), spell(1+r.IntN(4))
		if r.IntN(2) == 0 {
			granted = "*." + granted
		}
		c := testClaims()
		c.Hosts = []string{granted}
		raw, err := Mint(testKey(1), testKid, testNetwork, c)
		if err != nil {
			continue // no such host
		}
		verified, err := Verify(raw, testKeys(), testNetwork, epoch())
		if err != nil {
			t.Fatalf("minted for %q, then refused: %v", granted, err)
		}
		host, err := hostname.Canonical(asked)
		if err != nil {
			continue
		}
		want := reference(granted, asked)
		if got := verified.AllowsHost(host); got != want {
			t.Fatalf("granted %q (%v), asked %q (%s): allowed is %v, want %v", granted, verified.Hosts, asked, host, got, want)
		}
	}
}

// reference decides independently, on labels folded by a table of this test.
func reference(granted, asked string) bool {
	fold := func(s string) []string {
		s = strings.NewReplacer("\u3002", ".", "\u212a", "k", "ſ", "s", "ü", "xn--tda").Replace(s)
		return strings.Split(strings.TrimSuffix(strings.ToLower(s), "."), ".")
	}
	g, a := fold(granted), fold(asked)
	if g[0] == "*" {
		return len(g) == len(a) && fmt.Sprint(g[1:]) == fmt.Sprint(a[1:])
	}
	return fmt.Sprint(g) == fmt.Sprint(a)
}
