package token

import (
	"crypto/ed25519"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	testNetwork = "net-1"
	testKid     = "key-1"
)

// epoch is the time at which tokens of these tests are issued.
func epoch() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }

// testKey is the same in every run, so that failures repeat.
func testKey(n byte) ed25519.PrivateKey {
	seed := make([]byte, ed25519.SeedSize)
	seed[0] = n
	return ed25519.NewKeyFromSeed(seed)
}

func public(key ed25519.PrivateKey) ed25519.PublicKey { return key.Public().(ed25519.PublicKey) }

func testKeys() Keys { return Keys{testKid: public(testKey(1))} }

func testClaims() Claims {
	return Claims{
		ID: "tok-1", Name: "demo", Hosts: []string{"app.example.com"},
		IssuedAt: epoch(), ExpiresAt: epoch().Add(time.Hour),
	}
}

func mint(t testing.TB, c Claims) string {
	t.Helper()
	raw, err := Mint(testKey(1), testKid, testNetwork, c)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestVerifiedClaimsAreThoseMinted(t *testing.T) {
	c := Claims{
		ID: "tok_A-1", Name: "höhe & tiefe", Hosts: []string{"App.Example.com.", "*.parent.example", "BÜCHER.example"},
		Kinds: []string{KindHTTP, KindTLS}, Tags: map[string]string{"team": "blue", "k8s.io/zone": ""},
		Limits: Limits{MaxTunnels: 3, MaxStreams: 500}, AppProtocol: AppH2C,
		IssuedAt: epoch(), NotBefore: epoch().Add(time.Minute), ExpiresAt: epoch().Add(time.Hour),
	}
	got, err := Verify(mint(t, c), testKeys(), testNetwork, epoch().Add(30*time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	want := c
	want.Hosts = []string{"app.example.com", "*.parent.example", "xn--bcher-kva.example"}
	want.KeyID = testKid
	if !reflect.DeepEqual(*got, want) {
		t.Fatalf("verified claims are\n%+v, want\n%+v", *got, want)
	}
}

func TestKindsDefaultToHTTPAndNotBeforeToIssuedAt(t *testing.T) {
	got, err := Verify(mint(t, testClaims()), testKeys(), testNetwork, epoch())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got.Kinds, []string{"http"}) || !got.NotBefore.Equal(epoch()) {
		t.Fatalf("kinds %v, not before %v; want [http], %v", got.Kinds, got.NotBefore, epoch())
	}
	if !got.AllowsKind("http") || got.AllowsKind("tcp") {
		t.Fatal("AllowsKind does not follow the kinds")
	}
}

func TestMintNamesEveryFaultAtOnce(t *testing.T) {
	_, err := Mint(nil, "../k", "", Claims{
		ID: "a/b", Name: "x\x1b[2J", Hosts: []string{"1.2.3.4", "*.com", "ok.example", "ok.example"}, Kinds: []string{"udp"},
		Tags: map[string]string{"a b": "v", "k": "\n"}, Limits: Limits{MaxTunnels: -1, MaxStreams: -1}, AppProtocol: "spdy",
	})
	if err == nil {
		t.Fatal("minted")
	}
	for _, want := range []string{
		"signing key", "key id", "audience", "time of issue", `id "a/b"`, "name ", "1.2.3.4", "*.com", "twice", "udp", `tag "a b"`,
		`tag "k"`, "limit of tunnels", "limit of streams", "spdy", "expires",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not mention %q:\n%v", want, err)
		}
	}
}

func TestMintRefusesATokenThatAHelloCannotHold(t *testing.T) {
	c := testClaims()
	c.Hosts = nil
	for i := range 40 {
		c.Hosts = append(c.Hosts, strings.Repeat(string(rune('a'+i%26)), 60)+strings.Repeat(".x", i+1)+".example.com")
	}
	_, err := Mint(testKey(1), testKid, testNetwork, c)
	if err == nil || !strings.Contains(err.Error(), "fewer hosts") {
		t.Fatalf("got %v, want a refusal that advises fewer hosts", err)
	}
}

func TestPeekReadsWithoutVerifying(t *testing.T) {
	raw := mint(t, testClaims())
	raw = raw[:strings.LastIndexByte(raw, '.')+1] + strings.Repeat("A", 86) // no signature of anybody
	got, err := Peek(raw)
	if err != nil {
		t.Fatal(err)
	}
	want := Unverified{
		ID: "tok-1", Name: "demo", Hosts: []string{"app.example.com"}, Audience: testNetwork,
		NotBefore: epoch(), ExpiresAt: epoch().Add(time.Hour), KeyID: testKid,
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v, want %+v", got, want)
	}
	for _, garbage := range []string{"", "x", "a.b.c", raw + ".x", strings.Repeat(".", 1<<20)} {
		if _, err := Peek(garbage); err == nil {
			t.Errorf("Peek took %.20q", garbage)
		}
	}
}

func TestExactHostsLeavesOutWildcards(t *testing.T) {
	c := Claims{Hosts: []string{"a.example", "*.b.example", "c.example"}}
	if got := c.ExactHosts(); !slices.Equal(got, []string{"a.example", "c.example"}) {
		t.Fatalf("got %v", got)
	}
}

func TestVerifyDoesNotChangeKeys(t *testing.T) {
	keys := testKeys()
	before := maps.Clone(keys)
	_, _ = Verify(mint(t, testClaims()), keys, testNetwork, epoch())
	if !reflect.DeepEqual(keys, before) {
		t.Fatal("keys changed")
	}
}
