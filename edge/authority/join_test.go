package authority

import (
	"strings"
	"testing"
	"time"

	"wormhole/shared/protocol"
)

func TestAJoinTokenIsGoodForJoiningOnly(t *testing.T) {
	a, other := process(t, storeDir(t)), process(t, storeDir(t))
	ca := strings.Repeat("ab", 32)
	raw, expires, err := a.IssueJoin(ca, 0)
	if err != nil {
		t.Fatal(err)
	}
	if d := time.Until(expires); d > DefaultJoinTTL || d < DefaultJoinTTL-time.Minute {
		t.Errorf("it lasts %s", d)
	}
	if pin, err := PeekJoin(raw + "\n"); err != nil || pin != ca {
		t.Errorf("pin %q, %v", pin, err)
	}
	if _, err := a.VerifyJoin(t.Context(), raw); err != nil {
		t.Error(err)
	}
	if _, err := other.VerifyJoin(t.Context(), raw); err == nil {
		t.Error("another network takes it")
	}
	_, err = a.Verify(raw)
	wantCode(t, err, protocol.CodeTokenMalformed)
	agents := issue(t, a, IssueRequest{}).Token
	if _, err := a.VerifyJoin(t.Context(), agents); err == nil {
		t.Error("an agent's token lets a machine join")
	}
	if _, err := PeekJoin(agents); err == nil {
		t.Error("an agent's token names an authority")
	}
	a.now = func() time.Time { return expires.Add(2 * time.Minute) }
	if _, err := a.VerifyJoin(t.Context(), raw); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("an old one: %v", err)
	}
	if _, _, err := a.IssueJoin(ca, MaxJoinTTL+1); err == nil {
		t.Error("a join token for ever")
	}
}
