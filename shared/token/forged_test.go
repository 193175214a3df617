package token

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"wormhole/shared/protocol"
)

// goodHeader and goodPayload are what Mint would sign.
const goodHeader = `{"alg":"EdDSA","kid":"key-1","typ":"JWT"}`

func goodPayload() string {
	return fmt.Sprintf(`{"iss":"wormhole","aud":"net-1","jti":"tok-1","hosts":["app.example.com"],"iat":%d,"nbf":%[1]d,"exp":%d}`,
		epoch().Unix(), epoch().Add(time.Hour).Unix())
}

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// sign makes a token of any header and payload, signed properly with a key of the
// network: what follows from it is not the signature's doing.
func sign(header, payload string) string {
	text := b64(header) + "." + b64(payload)
	return text + "." + b64(string(ed25519.Sign(testKey(1), []byte(text))))
}

// edit changes one thing of the good payload.
func edit(t testing.TB, old, replacement string) string {
	t.Helper()
	p := goodPayload()
	if strings.Count(p, old) != 1 {
		t.Fatalf("%q is not once in %s", old, p)
	}
	return sign(goodHeader, strings.Replace(p, old, replacement, 1))
}

func without(t testing.TB, claim string) string {
	t.Helper()
	var m map[string]any
	d := json.NewDecoder(strings.NewReader(goodPayload()))
	d.UseNumber()
	if err := d.Decode(&m); err != nil {
		t.Fatal(err)
	}
	delete(m, claim)
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return sign(goodHeader, string(b))
}

// withMethod signs the good claims with any other algorithm of the JWT library.
func withMethod(t testing.TB, method jwt.SigningMethod, key any) string {
	t.Helper()
	tok := jwt.NewWithClaims(method, jwt.MapClaims{
		"iss": Issuer, "aud": testNetwork, "jti": "tok-1", "hosts": []string{"app.example.com"},
		"iat": epoch().Unix(), "nbf": epoch().Unix(), "exp": epoch().Add(time.Hour).Unix(),
	})
	tok.Header["kid"] = testKid
	raw, err := tok.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestTheGoodTokenOfTheseTestsIsAccepted(t *testing.T) {
	if _, err := Verify(sign(goodHeader, goodPayload()), testKeys(), testNetwork, epoch()); err != nil {
		t.Fatal(err)
	}
}

// Fault H1 (RFC 8725; CVE-2025-30204): none of these is accepted, each with the
// code that its agent is told.
func TestForgedTokensAreRefused(t *testing.T) {
	pub := public(testKey(1))
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	pubPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := Mint(testKey(2), testKid, testNetwork, testClaims())
	if err != nil {
		t.Fatal(err)
	}
	good := sign(goodHeader, goodPayload())
	parts := strings.Split(good, ".")
	header := func(h string) string { return sign(h, goodPayload()) }
	payload := func(p string) string { return sign(goodHeader, p) }

	const (
		malformed = protocol.CodeTokenMalformed
		signature = protocol.CodeTokenSignature
		audience  = protocol.CodeTokenAudience
	)
	for name, c := range map[string]struct {
		raw  string
		code protocol.Code
	}{
		"none":                            {withMethod(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType), malformed},
		"none with signature":             {header(`{"alg":"none","kid":"key-1"}`), malformed},
		"nOnE with signature":             {header(`{"alg":"nOnE","kid":"key-1"}`), malformed},
		"good without signature":          {parts[0] + "." + parts[1] + ".", malformed},
		"good without signature part":     {parts[0] + "." + parts[1], malformed},
		"HS256 keyed with the public key": {withMethod(t, jwt.SigningMethodHS256, []byte(pub)), malformed},
		"HS256 keyed with its PEM":        {withMethod(t, jwt.SigningMethodHS256, pubPEM), malformed},
		"HS512 keyed with its DER":        {withMethod(t, jwt.SigningMethodHS512, der), malformed},
		"ES256":                           {withMethod(t, jwt.SigningMethodES256, ec), malformed},
		"RS256":                           {withMethod(t, jwt.SigningMethodRS256, rsaKey), malformed},
		"PS256":                           {withMethod(t, jwt.SigningMethodPS256, rsaKey), malformed},
		"EdDSA of a foreign key":          {foreign, signature},
		"signature of other claims":       {parts[0] + "." + b64(strings.Replace(goodPayload(), "app", "www", 1)) + "." + parts[2], signature},
		"signature truncated":             {good[:len(good)-2], signature},
		"signature with one bit changed":  {flip(good), signature},

		"no alg":            {header(`{"kid":"key-1"}`), malformed},
		"alg null":          {header(`{"alg":null,"kid":"key-1"}`), malformed},
		"alg in a list":     {header(`{"alg":["EdDSA"],"kid":"key-1"}`), malformed},
		"alg in lower case": {header(`{"alg":"eddsa","kid":"key-1"}`), malformed},
		"alg twice":         {header(`{"alg":"none","alg":"EdDSA","kid":"key-1"}`), malformed},
		"ALG beside alg":    {header(`{"alg":"EdDSA","ALG":"none","kid":"key-1"}`), malformed},
		"other typ":         {header(`{"alg":"EdDSA","kid":"key-1","typ":"at+jwt"}`), malformed},
		"crit":              {header(`{"alg":"EdDSA","kid":"key-1","crit":["exp"]}`), malformed},
		"crit empty":        {header(`{"alg":"EdDSA","kid":"key-1","crit":[]}`), malformed},
		"b64 false":         {header(`{"alg":"EdDSA","kid":"key-1","b64":false}`), malformed},
		"jku":               {header(`{"alg":"EdDSA","kid":"key-1","jku":"https://evil.example/keys"}`), malformed},
		"jwk":               {header(`{"alg":"EdDSA","kid":"key-1","jwk":{"kty":"OKP","crv":"Ed25519","x":"` + b64(string(pub)) + `"}}`), malformed},
		"x5u":               {header(`{"alg":"EdDSA","kid":"key-1","x5u":"https://evil.example/chain"}`), malformed},
		"x5c":               {header(`{"alg":"EdDSA","kid":"key-1","x5c":["` + b64("x") + `"]}`), malformed},
		"zip":               {header(`{"alg":"EdDSA","kid":"key-1","zip":"DEF"}`), malformed},

		"no kid":         {header(`{"alg":"EdDSA"}`), malformed},
		"kid empty":      {header(`{"alg":"EdDSA","kid":""}`), malformed},
		"kid a number":   {header(`{"alg":"EdDSA","kid":1}`), malformed},
		"kid a list":     {header(`{"alg":"EdDSA","kid":["key-1"]}`), malformed},
		"kid traversal":  {header(`{"alg":"EdDSA","kid":"../../../../dev/null"}`), malformed},
		"kid SQL":        {header(`{"alg":"EdDSA","kid":"key-1' OR '1'='1"}`), malformed},
		"kid URL":        {header(`{"alg":"EdDSA","kid":"https://evil.example/key-1"}`), malformed},
		"kid line end":   {header(`{"alg":"EdDSA","kid":"key-1\n"}`), malformed},
		"kid NUL":        {header(`{"alg":"EdDSA","kid":"key-1\u0000"}`), malformed},
		"kid of 65":      {header(`{"alg":"EdDSA","kid":"` + strings.Repeat("k", 65) + `"}`), malformed},
		"kid unknown":    {header(`{"alg":"EdDSA","kid":"key-2"}`), signature},
		"kid other case": {header(`{"alg":"EdDSA","kid":"KEY-1"}`), signature},
		"kid twice":      {header(`{"alg":"EdDSA","kid":"key-2","kid":"key-1"}`), malformed},

		"no iss":         {without(t, "iss"), malformed},
		"no aud":         {without(t, "aud"), malformed},
		"no exp":         {without(t, "exp"), malformed},
		"no nbf":         {without(t, "nbf"), malformed},
		"no iat":         {without(t, "iat"), malformed},
		"no jti":         {without(t, "jti"), malformed},
		"no hosts":       {without(t, "hosts"), malformed},
		"exp null":       {edit(t, fmt.Sprintf(`"exp":%d`, epoch().Add(time.Hour).Unix()), `"exp":null`), malformed},
		"exp zero":       {edit(t, fmt.Sprintf(`"exp":%d`, epoch().Add(time.Hour).Unix()), `"exp":0`), malformed},
		"exp negative":   {edit(t, fmt.Sprintf(`"exp":%d`, epoch().Add(time.Hour).Unix()), `"exp":-1`), malformed},
		"exp 1e300":      {edit(t, fmt.Sprintf(`"exp":%d`, epoch().Add(time.Hour).Unix()), `"exp":1e300`), malformed},
		"exp max int64":  {edit(t, fmt.Sprintf(`"exp":%d`, epoch().Add(time.Hour).Unix()), `"exp":9223372036854775807`), malformed},
		"exp a fraction": {edit(t, fmt.Sprintf(`"exp":%d`, epoch().Add(time.Hour).Unix()), `"exp":9999999999.5`), malformed},
		"exp a string":   {edit(t, fmt.Sprintf(`"exp":%d`, epoch().Add(time.Hour).Unix()), `"exp":"9999999999"`), malformed},
		"wrong iss":      {edit(t, `"wormhole"`, `"someone"`), malformed},
		"iss in case":    {edit(t, `"wormhole"`, `"Wormhole"`), malformed},
		"wrong aud":      {edit(t, `"net-1"`, `"net-2"`), audience},
		"aud empty":      {edit(t, `"net-1"`, `""`), malformed},
		"aud a list":     {edit(t, `"net-1"`, `["net-2","net-1"]`), malformed},
		"claims twice":   {edit(t, `"jti":"tok-1"`, `"jti":"tok-2","jti":"tok-1"`), malformed},
		"exp twice":      {edit(t, `"jti"`, `"exp":9999999999,"jti"`), malformed},
		"EXP beside exp": {edit(t, `"jti"`, `"EXP":9999999999,"jti"`), malformed},
		"EXP alone":      {edit(t, `"exp"`, `"EXP"`), malformed},
		"hostſ, long s":  {edit(t, `"jti"`, `"hostſ":["www.example.com"],"jti"`), malformed},
		"hosts escaped":  {edit(t, `"jti"`, `"\u0068osts":["www.example.com"],"jti"`), malformed},
		"tag twice":      {edit(t, `"jti"`, `"tags":{"a":"1","a":"2"},"jti"`), malformed},
		"bound by cnf":   {edit(t, `"jti"`, `"cnf":{"jkt":"x"},"jti"`), malformed},
		"cnf null":       {edit(t, `"jti"`, `"cnf":null,"jti"`), malformed},
		"jti traversal":  {edit(t, `"tok-1"`, `"../tok-1"`), malformed},
		"unknown kind":   {edit(t, `"jti"`, `"kinds":["udp"],"jti"`), malformed},
		"tunnels < 0":    {edit(t, `"jti"`, `"limits":{"max_tunnels":-1},"jti"`), malformed},
		"name escapes":   {edit(t, `"jti"`, `"sub":"\u001b[2J","jti"`), malformed},

		"payload null":     {payload(`null`), malformed},
		"payload a list":   {payload(`[]`), malformed},
		"payload empty":    {payload(`{}`), malformed},
		"payload cut":      {payload(goodPayload()[:40]), malformed},
		"payload and more": {payload(goodPayload() + "{}"), malformed},
		"payload nested":   {edit(t, `"jti"`, `"x":`+strings.Repeat("[", 2000)+strings.Repeat("]", 2000)+`,"jti"`), malformed},
		"payload latin-1":  {edit(t, `"jti"`, "\"sub\":\"\xe4\",\"jti\""), malformed},
		"header null":      {header(`null`), malformed},

		"empty":            {"", malformed},
		"dots":             {"..", malformed},
		"padded":           {parts[0] + "=." + parts[1] + "." + parts[2], malformed},
		"standard base64":  {strings.NewReplacer("-", "+", "_", "/").Replace(good) + "+", malformed},
		"line end inside":  {good[:10] + "\n" + good[10:], malformed},
		"line end after":   {good + "\n", malformed},
		"space before":     {" " + good, malformed},
		"four parts":       {good + "." + parts[2], malformed},
		"JSON form":        {`{"payload":"` + parts[1] + `","signatures":[]}`, malformed},
		"a JWE":            {good + ".x.y", malformed},
		"8 KiB and 1":      {good + strings.Repeat("A", MaxSize+1-len(good)), malformed},
		"1 MiB":            {strings.Repeat("A", 1<<20), malformed},
		"1 MiB good start": {good + strings.Repeat("A", 1<<20), malformed},
		"a million dots":   {strings.Repeat(".", 1e6), malformed},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Verify(c.raw, testKeys(), testNetwork, epoch())
			if err == nil {
				t.Fatalf("accepted: %+v", got)
			}
			if got != nil {
				t.Fatal("claims beside an error")
			}
			var refused *Error
			if !errors.As(err, &refused) || refused.Code != c.code {
				t.Fatalf("got %v, want code %s", err, c.code)
			}
			if len(refused.Reason) < 20 || len(refused.Reason) > 1000 || strings.ContainsAny(refused.Reason, "\n\x00\x1b") {
				t.Fatalf("not a sentence for a log: %q", refused.Reason)
			}
			if r := refused.Reject(); !r.Code.Permanent() || r.Reason != refused.Reason {
				t.Fatalf("the agent would be told %+v", r)
			}
		})
	}
}

// flip changes a bit of the signature that is not one of the unused last bits.
func flip(raw string) string {
	b := []byte(raw)
	i := len(b) - 10
	if b[i] == 'A' {
		b[i] = 'B'
	} else {
		b[i] = 'A'
	}
	return string(b)
}

func TestEverySpellingOfATokenButOneIsRefused(t *testing.T) {
	good := sign(goodHeader, goodPayload())
	for i := range len(good) {
		for _, c := range []byte("AQ\n") {
			if good[i] == c {
				continue
			}
			b := []byte(good)
			b[i] = c
			if _, err := Verify(string(b), testKeys(), testNetwork, epoch()); err == nil {
				t.Fatalf("accepted with byte %d changed from %q to %q", i, good[i], c)
			}
		}
	}
}

func TestAnEdgeWithoutANetworkAcceptsNothing(t *testing.T) {
	raw := edit(t, `"net-1"`, `""`)
	var refused *Error
	if _, err := Verify(raw, testKeys(), "", epoch()); !errors.As(err, &refused) || refused.Code != protocol.CodeInternal {
		t.Fatalf("got %v", err)
	}
}

func TestKeysOfWrongLengthVerifyNothing(t *testing.T) {
	for _, key := range []ed25519.PublicKey{nil, {}, make([]byte, 31), make([]byte, 33)} {
		if _, err := Verify(sign(goodHeader, goodPayload()), Keys{testKid: key}, testNetwork, epoch()); err == nil {
			t.Fatalf("accepted with a key of %d bytes", len(key))
		}
	}
}

func TestRefusingAHugeTokenCostsNothing(t *testing.T) {
	keys := testKeys()
	for name, raw := range map[string]string{
		"1 MiB":          strings.Repeat("A", 1<<20),
		"a million dots": strings.Repeat(".", 1e6),
		"8 KiB of dots":  strings.Repeat(".", MaxSize),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		const times = 100
		for range times {
			if _, err := Verify(raw, keys, testNetwork, epoch()); err == nil {
				t.Fatal("accepted")
			}
		}
		runtime.ReadMemStats(&after)
		if got := (after.TotalAlloc - before.TotalAlloc) / times; got > 2<<10 {
			t.Errorf("%s: %d bytes allocated", name, got)
		}
	}
}

// Whatever a token of permitted size holds, verifying it takes a bounded amount of
// memory.
func TestVerifyingTheWorstTokenIsBounded(t *testing.T) {
	worst := map[string]string{
		"names":   `{"":0` + manyNames(700) + `}`,
		"nesting": `{"x":` + strings.Repeat("[", 5500) + `}`,
		"hosts":   strings.Replace(goodPayload(), `"app.example.com"`, strings.TrimSuffix(strings.Repeat(`"a",`, 1300), ","), 1),
		"number":  strings.Replace(goodPayload(), `"jti"`, `"x":`+strings.Repeat("9", 5500)+`,"jti"`, 1),
		"escapes": strings.Replace(goodPayload(), `"jti"`, `"x":"`+strings.Repeat(`\u0000`, 900)+`","jti"`, 1),
	}
	keys := testKeys()
	for name, payload := range worst {
		raw := sign(goodHeader, payload)
		if len(raw) > MaxSize {
			t.Fatalf("%s: the token has %d bytes and would not be looked into", name, len(raw))
		}
		// The fastest of several runs: the others also measure what else the machine does.
		took := time.Hour
		result := testing.AllocsPerRun(5, func() {
			began := time.Now()
			_, _ = Verify(raw, keys, testNetwork, epoch())
			took = min(took, time.Since(began))
		})
		if took > 100*time.Millisecond || result > 20_000 {
			t.Errorf("%s: %v and %.0f allocations", name, took, result)
		}
	}
}

func manyNames(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"%x":0`, i)
	}
	return b.String()
}
