package regions

import (
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wormhole/edge/cluster/store"
	"wormhole/edge/edgetest"
	"wormhole/edge/edgetest/oracle"
	"wormhole/shared/token"
)

// signer reads the key with which an edge that runs alone signs its tokens.
func signer(t *testing.T, dir string) (key ed25519.PrivateKey, id, network string) {
	t.Helper()
	s, err := store.OpenDir(filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	e, err := s.Get(t.Context(), "keys", "ring")
	if err != nil {
		t.Fatal(err)
	}
	var ring struct {
		Network, Active string
		Keys            []struct {
			ID   string
			Seed []byte
		}
	}
	if err := json.Unmarshal(e.Value, &ring); err != nil {
		t.Fatal(err)
	}
	for _, k := range ring.Keys {
		if k.ID == ring.Active {
			return ed25519.NewKeyFromSeed(k.Seed), k.ID, ring.Network
		}
	}
	t.Fatal("the edge has no key")
	return nil, "", ""
}

// B12: tokens whose times are those of a clock that is wrong. Up to a minute does no
// harm; beyond that the real agent says that a clock may be the cause.
func TestB12TokensOfAWrongClock(t *testing.T) {
	t.Parallel()
	e := binaries.StartEdge(t, "--http", "")
	key, id, network := signer(t, e.Dir)
	now := time.Now().Truncate(time.Second)
	type skewed struct {
		from, until time.Duration // nbf and exp from now on
		good        bool
		agent       *edgetest.Process
	}
	const long = 30 * 24 * time.Hour
	cases := []*skewed{
		{from: 59 * time.Second, until: long, good: true},
		{from: -long, until: -20 * time.Second, good: true}, // 40 s are left for a slow machine
		{from: -long, until: 59 * time.Second, good: true},
		{from: 5 * time.Minute, until: long},
		{from: 24 * time.Hour, until: long},
		{from: -long, until: -5 * time.Minute},
		{from: -long, until: -24 * time.Hour},
	}
	for i, c := range cases {
		raw, err := token.Mint(key, id, network, token.Claims{
			ID: fmt.Sprintf("skew%d", i), Hosts: []string{"app.localhost"},
			IssuedAt: now.Add(c.from), NotBefore: now.Add(c.from), ExpiresAt: now.Add(c.until),
		})
		if err != nil {
			t.Fatal(err)
		}
		if c.until < 0 && !c.good { // the program looks at this by itself: have the edge judge too
			w := work(t, e.Status.CA, raw, fmt.Sprint(i), "127.0.0.1:1", 1, strings.Replace(e.Status.Addresses["https"], "127.0.0.1", "localhost", 1))
			edgetest.Eventually(t, fmt.Sprintf("the edge refuses token %d because of the clock", i), func() bool { return strings.Contains(w.Status().Refused, "clock") })
		}
		c.agent = edgetest.Start(t, e.AgentEnv(raw, "WORMHOLE_NAME="+fmt.Sprint(i), "WORMHOLE_ENDPOINT=127.0.0.1:1"), binaries.Wormhole)
	}
	accepted, told := 0, 0
	for i, c := range cases {
		if !c.good {
			edgetest.Eventually(t, fmt.Sprintf("agent %d is refused because of the clock", i), func() bool { return strings.Contains(c.agent.Output(), "clock") })
			told++
			continue
		}
		edgetest.Eventually(t, fmt.Sprintf("agent %d has a tunnel", i), func() bool {
			if e.Refresh() != nil {
				return false
			}
			for _, b := range e.Status.Backends {
				if b.Name == fmt.Sprint(i) {
					return true
				}
			}
			return false
		})
		accepted++
	}
	_ = e.Refresh()
	tunnels := len(e.Status.Backends)
	oracle.Row{
		ID: "B12", Done: "real agents with tokens of a clock that is wrong by up to a minute, by 5 minutes and by a day, either way",
		Figure: fmt.Sprintf("%d of 3 accepted, %d of 4 refused with a reason that names the clock, %d tunnels", accepted, told, tunnels),
		Limit:  "a minute accepted, the others refused for the clock", OK: accepted == 3 && told == 4 && tunnels == 3,
	}.Verdict(t)
}
