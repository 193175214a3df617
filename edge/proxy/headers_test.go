package proxy_test

import (
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"wormhole/edge/site"
)

// seen asks the edge with the given raw fields and returns what the app saw.
func seen(t *testing.T, rules func(*site.Rules), fields ...string) http.Header {
	t.Helper()
	e := newEdge(t, rules)
	got := make(chan http.Header, 1)
	e.app("a", func(_ http.ResponseWriter, r *http.Request) { got <- r.Header })
	c := e.dial()
	_, _ = fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s:8443\r\nConnection: close\r\n%s\r\n", host, strings.Join(append(fields, ""), "\r\n"))
	answer, _ := io.ReadAll(c)
	select {
	case h := <-got:
		return h
	default:
		t.Fatalf("the app saw nothing; the client got %q", answer)
		return nil
	}
}

// edgeSays are the identity fields of a request from this test.
func edgeSays(t *testing.T, h http.Header) {
	t.Helper()
	for name, want := range map[string]string{
		"X-Forwarded-For": "127.0.0.1", "X-Real-Ip": "127.0.0.1", "X-Forwarded-Proto": "https", "X-Forwarded-Host": host + ":8443",
	} {
		if got := h[name]; len(got) != 1 || got[0] != want {
			t.Errorf("%s: the app saw %q, want %q", name, got, want)
		}
	}
	if id := h["X-Request-Id"]; len(id) != 1 || len(id[0]) != 32 {
		t.Errorf("X-Request-Id: the app saw %q", id)
	}
}

func TestH7OnlyTheEdgeSaysWhoTheClientIs(t *testing.T) {
	for _, name := range []string{
		"X-Forwarded-For", "x-forwarded-for", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Server",
		"X-Forwarded-Ssl", "X-Forwarded", "X-Real-IP", "X-Request-ID", "Forwarded", "True-Client-IP", "X-Client-IP",
		"CF-Connecting-IP", "CF-Ray", "Fly-Client-IP", "Fly-Forwarded-Proto", "Proxy", "X-Wormhole-Backend", "Wormhole-Site",
		"X_Forwarded_For", "X.Forwarded.For", "X-Forwarded_For", "x_real_ip", "X_REQUEST_ID", "CF_Connecting.IP", "True_Client_IP",
		"Content_Length", "Transfer_Encoding", "Transfer.Encoding", "Host_", "Pro.xy",
	} {
		h := seen(t, nil, name+": 6.6.6.6")
		edgeSays(t, h)
		for got, values := range h {
			if slices.Contains(values, "6.6.6.6") && name != "Host_" && name != "Pro.xy" {
				t.Errorf("%s reached the app as %s", name, got)
			}
		}
	}
}

func TestConnectionCannotRemoveWhatTheEdgeSays(t *testing.T) {
	h := seen(t, nil, "Connection: X-Forwarded-For, X-Real-IP, X-Request-ID, X-Forwarded-Host, Host, X-Own", "X-Own: 1", "X-Other: 2")
	edgeSays(t, h)
	if h["X-Own"] != nil || h.Get("X-Other") != "2" {
		t.Errorf("the app saw %v; want X-Own removed by Connection and X-Other kept", h)
	}
}

func TestHopByHopFieldsStayOnTheirHop(t *testing.T) {
	h := seen(t, nil, "Keep-Alive: timeout=5", "Proxy-Connection: keep-alive", "Proxy-Authorization: Basic x", "Upgrade: h2c",
		"HTTP2-Settings: AAMAAABkAAQAAP__", "TE: gzip", "Authorization: Bearer y", "Cookie: a=b", "X_Own: 1")
	for _, name := range []string{"Keep-Alive", "Proxy-Connection", "Proxy-Authorization", "Upgrade", "Http2-Settings", "Te", "Connection"} {
		if h[name] != nil {
			t.Errorf("%s reached the app: %q", name, h[name])
		}
	}
	if h.Get("Authorization") != "Bearer y" || h.Get("Cookie") != "a=b" || h.Get("X_own") != "1" {
		t.Errorf("the app saw %v; want what is the app's to be kept", h)
	}
}

func TestTrustedProxyIsBelieved(t *testing.T) {
	trust := func(r *site.Rules) {
		r.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8")}
	}
	h := seen(t, trust, "X-Forwarded-For: 6.6.6.6, 203.0.113.9, 10.1.2.3", "X-Forwarded-Proto: http", "X-Forwarded-Host: public.test",
		"CF-Connecting-IP: 203.0.113.9", "X_Forwarded_For: 6.6.6.6")
	for name, want := range map[string]string{
		"X-Forwarded-For": "6.6.6.6, 203.0.113.9, 10.1.2.3, 127.0.0.1", "X-Real-Ip": "203.0.113.9",
		"X-Forwarded-Proto": "http", "X-Forwarded-Host": "public.test", "Cf-Connecting-Ip": "203.0.113.9",
	} {
		if got := h[name]; len(got) != 1 || got[0] != want {
			t.Errorf("%s: the app saw %q, want %q", name, got, want)
		}
	}
	for name := range h {
		if strings.Contains(name, "_") {
			t.Errorf("look-alike %s reached the app", name)
		}
	}
}

func TestSiteRulesChangeHeadersBothWays(t *testing.T) {
	e := newEdge(t, func(r *site.Rules) {
		r.RequestHeaders = site.HeaderChanges{Remove: []string{"X-Drop"}, Set: []site.Header{{Name: "X-Set", Value: "edge"}}}
		r.ResponseHeaders = site.HeaderChanges{Remove: []string{"Server"}, Set: []site.Header{{Name: "X-Frame-Options", Value: "DENY"}}}
	})
	e.app("a", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Server", "secret/1.0")
		_, _ = fmt.Fprintf(w, "%q %q", r.Header["X-Drop"], r.Header["X-Set"])
	})
	r := e.request("GET", "/", nil)
	r.Header = http.Header{"X-Drop": {"1"}, "X-Set": {"client"}, "Connection": {"X-Set"}}
	_, body, h := e.do(e.h1(), r)
	if body != `[] ["edge"]` || h["Server"] != nil || h.Get("X-Frame-Options") != "DENY" {
		t.Errorf("the app saw %s, the client %v", body, h)
	}
}
