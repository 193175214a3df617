package site

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
)

const everything = `
host: App.Example.com
redirect_http: false
hsts: {max_age: 8760h, include_subdomains: true, preload: true}
backend_header: x-internal-service
app_protocol: h2c
max_body: 10MiB
max_header: 16KiB
response_timeout: 2m
idle_timeout: 90s
parking: {wait: 3s, max: 7}
strict_sni: false
allow_upgrade: false
tcp: {listen: "[::1]:5432", max_connections: 5, idle_timeout: 3m}
request_headers:
  set: {X-Env: production}
  remove: [Cookie2]
response_headers:
  set: {X-Frame-Options: DENY}
  remove: [Server, X-Powered-By]
rate_limit: {requests_per_second: 2.5, per: site}
allow: [10.0.0.0/8, "2001:db8::1"]
deny: [10.1.2.3]
trusted_proxies: [192.0.2.0/24]
`

func TestParseReadsEveryKey(t *testing.T) {
	spec, err := Parse([]byte(everything))
	if err != nil {
		t.Fatal(err)
	}
	r, err := Compile(spec, DefaultRules())
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ got, want any }{
		"host":             {spec.Host, "app.example.com"},
		"redirect":         {r.RedirectHTTP, false},
		"hsts":             {r.HSTS, "max-age=31536000; includeSubDomains; preload"},
		"backend header":   {r.BackendHeader, "X-Internal-Service"},
		"app protocol":     {r.AppProtocol, "h2c"},
		"max body":         {r.MaxBody, int64(10 << 20)},
		"max header":       {r.MaxHeader, 16 << 10},
		"response timeout": {r.ResponseTimeout, 2 * time.Minute},
		"idle timeout":     {r.IdleTimeout, 90 * time.Second},
		"parking wait":     {r.ParkingWait, 3 * time.Second},
		"parking max":      {r.ParkingMax, 7},
		"strict sni":       {r.StrictSNI, false},
		"allow upgrade":    {r.AllowUpgrade, false},
		"tcp":              {r.TCP, TCPRules{Listen: "[::1]:5432", MaxConnections: 5, IdleTimeout: 3 * time.Minute}},
		"request headers":  {r.RequestHeaders, HeaderChanges{[]string{"Cookie2"}, []Header{{"X-Env", "production"}}}},
		"response headers": {r.ResponseHeaders, HeaderChanges{[]string{"Server", "X-Powered-By"}, []Header{{"X-Frame-Options", "DENY"}}}},
		"rate":             {r.RateLimit, Rate{PerSecond: 2.5, Burst: 3}},
		"allow":            {len(r.Allow), 2},
		"deny":             {r.Deny[0].String(), "10.1.2.3/32"},
		"trusted":          {r.TrustedProxies[0].String(), "192.0.2.0/24"},
	} {
		if !reflect.DeepEqual(c.got, c.want) {
			t.Errorf("%s is %v, want %v", name, c.got, c.want)
		}
	}
}

func TestWhatIsLeftOutHasTheDefaults(t *testing.T) {
	spec, err := Parse([]byte("host: a.example.com"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := Compile(spec, DefaultRules())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(r, DefaultRules()) {
		t.Fatalf("got %+v, want %+v", r, DefaultRules())
	}
}

func TestEveryFaultIsListedWithItsPath(t *testing.T) {
	_, err := Parse([]byte(`
host: a_b.example.com
redirect_http: "yes"
hsts: {preload: 1, max-age: 5}
max_body: 10 potatoes
response_timeout: 10
parking: [1]
request_headers: {set: {X-A: 1}, remove: X-B}
rate_limit: {requests_per_second: fast}
allow: [10.0.0.0/8, 7]
no_such_key: 1
`))
	want := []string{
		`redirect_http: want true or false, got "yes"`,
		`hsts.preload: want true or false, got 1`,
		`hsts.max-age: is not a known key`,
		`max_body: want a size such as "10MiB", got "10 potatoes"`,
		`response_timeout: want a duration such as "30s", got 10`,
		`parking: want a mapping, got a list`,
		`request_headers.remove: want a list, got "X-B"`,
		`request_headers.set.X-A: want a text, got 1`,
		`rate_limit.requests_per_second: want a number, got "fast"`,
		`allow[1]: want a text, got 7`,
		`no_such_key: is not a known key`,
	}
	checkFaults(t, err, want)

	_, err = Parse([]byte(`
host: "*.co.uk"
hsts: {preload: true}
backend_header: "bad header"
app_protocol: spdy
max_header: 1MiB
response_timeout: 1ms
parking: {wait: 1h, max: -1}
request_headers: {set: {Host: x, X-A: "a\nb", x-b: "1", X-B: "2"}, remove: [Connection]}
rate_limit: {requests_per_second: 0, burst: -1, per: planet}
deny: [localhost]
`))
	want = []string{
		`host: "*.co.uk" is not a host name`, `hsts.preload: `, `backend_header: `, `app_protocol: `, `max_header: `, `response_timeout: `,
		`parking.wait: `, `parking.max: `, `request_headers.remove[0]: Connection belongs to the edge`, `request_headers.set.Host: Host belongs`,
		`request_headers.set.X-A: `, `request_headers.set.X-B: is set twice`, `rate_limit.requests_per_second: `, `rate_limit.burst: `, `rate_limit.per: `, `deny[0]: `,
	}
	checkFaults(t, err, want)
}

func TestFaultsOfARawPort(t *testing.T) {
	for tcp, want := range map[string]string{
		"443": "tcp.listen: port 443 is not for sites", "65536": "tcp.listen: ", "-1": "tcp.listen: ", "1.5": "tcp: want a port",
		"[5432]": "tcp: want a port", `""`: "tcp: want a port", "null": "tcp: want a port", "{}": "tcp.listen: is missing",
		"{listen: true}": "tcp.listen: want a port", `"db:5432"`: `tcp.listen: "db" is not an address`, `"1:2:3"`: "tcp.listen: want a port",
		"{listen: 5432, idle_timeout: 1ms}": "tcp.idle_timeout: ", "{listen: 5432, max_connections: -1}": "tcp.max_connections: ",
		"{listen: 5432, port: 1}": "tcp.port: is not a known key",
	} {
		_, err := Parse([]byte("host: db.example.com\ntcp: " + tcp))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("tcp: %s: %v, want %q", tcp, err, want)
		}
	}
	if _, err := Parse([]byte("host: '*.example.com'\ntcp: 5432")); err == nil {
		t.Error("a wildcard got a port")
	}
	for tcp, want := range map[string]TCPRules{
		"5432": {":5432", 1000, 2 * time.Hour}, `"5432"`: {":5432", 1000, 2 * time.Hour}, "0": {":0", 1000, 2 * time.Hour},
		"{listen: '10.0.0.1:5432', max_connections: 3}": {"10.0.0.1:5432", 3, 2 * time.Hour},
	} {
		spec, err := Parse([]byte("host: db.example.com\ntcp: " + tcp))
		if err != nil {
			t.Errorf("tcp: %s: %v", tcp, err)
			continue
		}
		if r, err := Compile(spec, DefaultRules()); err != nil || r.TCP != want {
			t.Errorf("tcp: %s: %+v, %v, want %+v", tcp, r.TCP, err, want)
		}
		roundTrip(t, spec)
	}
}

func checkFaults(t *testing.T, err error, want []string) {
	t.Helper()
	if err == nil {
		t.Fatal("no fault was found")
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q is not among the faults", w)
		}
	}
	if got := len(strings.Split(err.Error(), "\n")); got != len(want) {
		t.Errorf("%d faults, want %d:\n%v", got, len(want), err)
	}
}

func TestParseRefusesTextsThatAreNoSite(t *testing.T) {
	for name, text := range map[string]string{
		"empty":         "",
		"a list":        "[1, 2]",
		"a text":        "host",
		"null":          "null",
		"no host":       "redirect_http: true",
		"broken":        "host: [",
		"tab":           "host:\n\t- x",
		"duplicate key": "host: a.example.com\nhost: b.example.com",
		"aliases":       "host: a.example.com\nallow: &a [10.0.0.0/8]\ndeny: *a",
		"two sites":     "host: a.example.com\n---\nhost: b.example.com",
		"too long":      "host: a.example.com #" + strings.Repeat("x", MaxSpecBytes),
	} {
		if spec, err := Parse([]byte(text)); err == nil {
			t.Errorf("%s: parsed as %+v", name, spec)
		}
	}
}

func TestParseAllReadsOneSiteADocument(t *testing.T) {
	specs, err := ParseAll([]byte("host: a.example.com\n---\nhost: '*.b.example.com'\n"))
	if err != nil || len(specs) != 2 || specs[0].Host != "a.example.com" || specs[1].Host != "*.b.example.com" {
		t.Fatalf("got %+v, %v", specs, err)
	}
	_, err = ParseAll([]byte("host: a.example.com\nx: 1\n---\nhost: b.example.com\ny: 2\n"))
	checkFaults(t, err, []string{"site 1: x: is not a known key", "site 2: y: is not a known key"})
}

func TestASpecSurvivesJSON(t *testing.T) {
	spec, err := Parse([]byte(everything))
	if err != nil {
		t.Fatal(err)
	}
	roundTrip(t, spec)
}

func roundTrip(t *testing.T, spec Spec) {
	t.Helper()
	text, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse(text)
	if err != nil {
		t.Fatalf("Parse of %s: %v", text, err)
	}
	textAgain, err := json.Marshal(again)
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != string(textAgain) {
		t.Fatalf("got %s\nwant %s", textAgain, text)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(everything))
	f.Add([]byte(`{"host":"*.example.com","parking":{"wait":"0s","max":0},"max_body":5}`))
	f.Add([]byte("host: a.example.com\nallow: &a [*a]"))
	f.Add([]byte("host: a.example.com\ntcp: {listen: 5432, idle_timeout: 1h}"))
	f.Add([]byte("host: a.example.com\nrate_limit: {requests_per_second: .inf}"))
	f.Add([]byte("? [a]\n: b\n---\n!!binary aaaa"))
	f.Fuzz(func(t *testing.T, text []byte) {
		specs, err := ParseAll(text)
		if err != nil {
			return
		}
		for _, spec := range specs {
			if _, err := Compile(spec, DefaultRules()); err != nil {
				t.Fatalf("a spec that was parsed does not compile: %v", err)
			}
			roundTrip(t, spec)
		}
	})
}
