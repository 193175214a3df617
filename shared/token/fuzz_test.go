package token

import (
	"errors"
	"testing"
)

// FuzzVerify looks for input that makes the verifier panic, accept a token that
// Mint cannot have made, or give claims that would not mint again.
func FuzzVerify(f *testing.F) {
	good := sign(goodHeader, goodPayload())
	f.Add(good)
	f.Add("")
	f.Add("..")
	f.Add(flip(good))
	f.Add(b64(`{"alg":"none"}`) + "." + b64(goodPayload()) + ".AAAA")
	f.Fuzz(func(t *testing.T, raw string) {
		_, _ = Peek(raw)
		c, err := Verify(raw, testKeys(), testNetwork, epoch())
		check := func() {
			var refused *Error
			if err != nil && (!errors.As(err, &refused) || refused.Code == "" || refused.Reason == "") {
				t.Fatalf("refused without code or reason: %v", err)
			}
		}
		if check(); err == nil && raw != good {
			t.Fatalf("accepted %q: %+v", raw, c)
		}
	})
}

// FuzzVerifySigned does the same behind a proper signature, where the claims are
// read: whatever is accepted must say the same after minting it anew.
func FuzzVerifySigned(f *testing.F) {
	f.Add(goodHeader, goodPayload())
	f.Add(goodHeader, `{"iss":"wormhole","aud":"net-1","jti":"t","hosts":["*.a.test"],"kinds":["tcp"],"tags":{"a":"b"},"limits":{"max_streams":1},"app_protocol":"h2c","iat":1772366400,"nbf":1772366400,"exp":1772370000}`)
	f.Add(`{"alg":"EdDSA","kid":"key-1","crit":[]}`, `{}`)
	f.Fuzz(func(t *testing.T, header, payload string) {
		c, err := Verify(sign(header, payload), testKeys(), testNetwork, epoch())
		if err != nil {
			return
		}
		raw, err := Mint(testKey(1), testKid, testNetwork, *c)
		if err != nil {
			if len(payload) > MaxMintSize/2 {
				return // too large for Mint, which leaves room in the hello
			}
			t.Fatalf("accepted what cannot be minted: %v\n%s", err, payload)
		}
		if _, err := Verify(raw, testKeys(), testNetwork, epoch()); err != nil {
			t.Fatal(err)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	raw, keys := mint(b, testClaims()), testKeys()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Verify(raw, keys, testNetwork, epoch()); err != nil {
			b.Fatal(err)
		}
	}
}
