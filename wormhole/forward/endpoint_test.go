package forward

import (
	"strings"
	"testing"
)

func TestEndpointsAreRead(t *testing.T) {
	for text, want := range map[string]string{ // network, addresses, Host, flags
		"8080":                        "tcp 127.0.0.1:8080,[::1]:8080 localhost:8080",
		":8080":                       "tcp 127.0.0.1:8080,[::1]:8080 localhost:8080",
		"localhost:80":                "tcp 127.0.0.1:80,[::1]:80 localhost",
		"app:3000":                    "tcp app:3000 app:3000",
		"http://app":                  "tcp app:80 app",
		"http://app:3000/":            "tcp app:3000 app:3000",
		"[::1]:9":                     "tcp [::1]:9 [::1]:9",
		"10.0.0.7:8000":               "tcp 10.0.0.7:8000 10.0.0.7:8000",
		"unix:/run/app.sock":          "unix /run/app.sock localhost",
		"unix:///run/app.sock":        "unix /run/app.sock localhost",
		"unix:app.sock":               "unix app.sock localhost",
		"https://app":                 "tcp app:443 app tls",
		"https://app:8443":            "tcp app:8443 app:8443 tls",
		"https+insecure://10.0.0.7:1": "tcp 10.0.0.7:1 10.0.0.7:1 tls insecure",
		"h2c://localhost:50051":       "tcp 127.0.0.1:50051,[::1]:50051 localhost:50051 h2c",
	} {
		e, err := ParseEndpoint(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		got := e.network + " " + strings.Join(e.addrs, ",") + " " + e.hostHeader()
		if e.tls {
			got += " tls"
		}
		if e.insecure {
			got += " insecure"
		}
		if e.h2c {
			got += " h2c"
		}
		if got != want || e.String() != text || e.IsZero() {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
	}
}

func TestBadEndpointsAreRefused(t *testing.T) {
	for _, text := range []string{
		"", ":", "app", "app:", "app:0", "app:65536", "app:http", "::1:80", "unix:", "unix:/", "unix:" + strings.Repeat("a", 108),
		"ftp://app:21", "http://app/path", "http://user@app", "http://app?x", "a b:80", "app/x:80", "http://[::1", "a\x00b:80",
	} {
		if e, err := ParseEndpoint(text); err == nil {
			t.Errorf("%q was read as %+v", text, e)
		}
	}
}

func FuzzParseEndpoint(f *testing.F) {
	for _, s := range []string{"8080", "unix:/a", "https://a:1", "h2c://[::1]:2", "http://a%zz"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		e, err := ParseEndpoint(text)
		if err != nil {
			return
		}
		if e.IsZero() || e.hostHeader() == "" || strings.ContainsAny(e.hostHeader(), "\r\n \x00") {
			t.Errorf("%q gives %+v with Host %q", text, e, e.hostHeader())
		}
	})
}
