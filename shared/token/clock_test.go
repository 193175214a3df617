package token

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"wormhole/shared/protocol"
)

// Fault B12: clocks that differ by up to a minute do no harm; beyond that the
// reason leads to the clocks.
func TestClocks(t *testing.T) {
	raw := mint(t, testClaims()) // valid for an hour from epoch
	for _, c := range []struct {
		skew time.Duration // of the edge's clock against epoch
		code protocol.Code // empty: accepted
	}{
		{-24 * time.Hour, protocol.CodeTokenNotYetValid},
		{-5 * time.Minute, protocol.CodeTokenNotYetValid},
		{-61 * time.Second, protocol.CodeTokenNotYetValid},
		{-60 * time.Second, ""},
		{0, ""},
		{time.Hour, ""},
		{time.Hour + 59*time.Second, ""},
		{time.Hour + 60*time.Second, protocol.CodeTokenExpired},
		{time.Hour + 5*time.Minute, protocol.CodeTokenExpired},
		{25 * time.Hour, protocol.CodeTokenExpired},
	} {
		t.Run(fmt.Sprint(c.skew), func(t *testing.T) {
			now := epoch().Add(c.skew)
			_, err := Verify(raw, testKeys(), testNetwork, now)
			if c.code == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			var refused *Error
			if !errors.As(err, &refused) || refused.Code != c.code {
				t.Fatalf("got %v, want code %s", err, c.code)
			}
			if !strings.Contains(refused.Reason, "clock") || !strings.Contains(refused.Reason, stamp(now)) {
				t.Fatalf("the reason does not lead to the clocks: %s", refused.Reason)
			}
			if wait := c.code == protocol.CodeTokenNotYetValid; refused.Reject().Code.Permanent() == wait {
				t.Fatalf("permanent is %v for %s", !wait, c.code)
			}
		})
	}
}

func TestATokenForLaterIsNotYetValidThoughIssued(t *testing.T) {
	c := testClaims()
	c.NotBefore = epoch().Add(30 * time.Minute)
	raw := mint(t, c)
	var refused *Error
	if _, err := Verify(raw, testKeys(), testNetwork, epoch()); !errors.As(err, &refused) || refused.Code != protocol.CodeTokenNotYetValid {
		t.Fatalf("got %v", err)
	}
	if _, err := Verify(raw, testKeys(), testNetwork, epoch().Add(29*time.Minute)); err != nil {
		t.Fatal(err)
	}
}

func TestATokenIssuedInTheFutureIsRefusedThoughValid(t *testing.T) {
	c := testClaims()
	c.NotBefore, c.IssuedAt = epoch().Add(-time.Hour), epoch().Add(10*time.Minute)
	var refused *Error
	if _, err := Verify(mint(t, c), testKeys(), testNetwork, epoch()); !errors.As(err, &refused) || refused.Code != protocol.CodeTokenNotYetValid {
		t.Fatalf("got %v", err)
	}
}
