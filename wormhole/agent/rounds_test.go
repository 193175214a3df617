package agent

import (
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"wormhole/shared/protocol"
)

// bubble is an agent that does not run, with links that dial nothing: for tests of
// when they would.
func bubble(t *testing.T, links int) (*Agent, []*link) {
	t.Helper()
	a, err := New(Config{Edges: []string{"edge.test:443"}, Token: "x"}, echo{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	out := make([]*link, links)
	for i := range out {
		out[i] = &link{agent: a, name: fmt.Sprint(i), target: target{addr: fmt.Sprint(i)}, wait: a.newBackoff()}
		a.share(1)
	}
	return a, out
}

// hold is a tunnel to node that opens, or one that is lost.
func (a *Agent) hold(node string, open bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if open {
		if len(a.nodes) == 0 {
			a.rounds.wait.Connected()
		}
		a.nodes[node] = &connection{}
	} else if delete(a.nodes, node); len(a.nodes) == 0 {
		a.bereft(false)
	}
	a.announce()
}

func TestNoLinkTriesTwiceInARound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, links := bubble(t, 3)
		tries := make([]map[int]time.Time, len(links)) // by round
		var wg sync.WaitGroup
		end := time.Now().Add(10 * time.Minute)
		for i, l := range links {
			tries[i] = map[int]time.Time{}
			wg.Go(func() {
				for l.awaitTurn(t.Context()) && time.Now().Before(end) {
					if _, twice := tries[i][l.round]; twice {
						t.Errorf("link %d tries twice in round %d", i, l.round)
					}
					tries[i][l.round] = time.Now()
					if i == 2 {
						time.Sleep(time.Duration(len(tries[i])%5) * time.Second) // it leads nowhere, which takes time to find
					}
					a.postpone(l, nil)
				}
			})
		}
		wg.Wait()
		// 1, 2, 4, 8, 16 and then 30 s at most, half of that on average.
		if n := a.rounds.number; n < 25 || n > 80 {
			t.Errorf("%d rounds in 10 minutes, want about 43", n)
		}
		for i, made := range tries { // a round that comes soon overtakes some
			if n := len(made); n > a.rounds.number || n < a.rounds.number/2 {
				t.Errorf("%d tries of link %d in %d rounds", n, i, a.rounds.number)
			}
		}
		for round, at := range tries[0] {
			if other, both := tries[1][round]; both && at.Sub(other).Abs() > a.cfg.timing.spread {
				t.Errorf("in round %d one tried %s after the other", round, at.Sub(other))
			}
		}
	})
}

// Many agents of several edges that come back together are as far apart as those of
// one edge.
func TestAgentsThatKnowManyEdgesComeBackApart(t *testing.T) {
	const agents, down = 1500, 31 * time.Second
	for _, edges := range []int{1, 2, 3} {
		synctest.Test(t, func(t *testing.T) {
			var mu sync.Mutex
			back := map[int]int{} // by second
			var wg sync.WaitGroup
			up := time.Now().Add(down)
			last := time.Duration(0)
			for range agents {
				a, links := bubble(t, edges)
				var once sync.Once
				a.hold("", true)
				a.hold("", false)
				for _, l := range links {
					wg.Go(func() {
						for l.awaitTurn(t.Context()) {
							if after := time.Since(up); after >= 0 {
								once.Do(func() {
									mu.Lock()
									defer mu.Unlock()
									back[int(after/time.Second)]++
									last = max(last, after)
								})
								return
							}
							a.postpone(l, nil)
						}
					})
				}
			}
			wg.Wait()
			most := 0
			for _, n := range back {
				most = max(most, n)
			}
			t.Logf("%d edges: %.1f %% in a second at most, all after %s", edges, float64(most)*100/agents, last.Round(100*time.Millisecond))
			if most > agents/10 {
				t.Errorf("%d edges: %d of %d agents are back in one second", edges, most, agents)
			}
			if last > time.Minute {
				t.Errorf("%d edges: the last is back after %s", edges, last)
			}
		})
	}
}

func TestLossOfTheLastTunnelBringsTheOthersForward(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, links := bubble(t, 2)
		a.hold("e1", true)
		for range 10 { // the other edge has been away for long
			a.postpone(links[0], nil)
		}
		links[0].until = time.Now().Add(20 * time.Second)
		time.Sleep(5 * time.Second)
		a.hold("e1", false)
		lost := time.Now()
		if !links[0].awaitTurn(t.Context()) {
			t.Fatal("no turn")
		}
		if d, most := time.Since(lost), RetryBase+a.cfg.timing.spread; d > most {
			t.Errorf("tried %s after the last tunnel was lost, want %s at most", d, most)
		}
	})
}

// The shared ceiling starts over only when some tunnel was open for long.
func TestRoundsStartOverAfterAStableTime(t *testing.T) {
	for _, test := range []struct {
		open time.Duration
		over bool
	}{{RetryStable - time.Second, false}, {RetryStable, true}} {
		synctest.Test(t, func(t *testing.T) {
			longest := time.Duration(0)
			for range 50 {
				a, links := bubble(t, 1)
				for range 6 {
					a.postpone(links[0], nil)
					time.Sleep(time.Until(links[0].until))
				}
				a.hold("e1", true)
				time.Sleep(test.open / 2) // tunnels overlap: one is open all the time
				a.hold("e2", true)
				a.hold("e1", false)
				time.Sleep(test.open - test.open/2)
				a.hold("e2", false)
				d, _ := a.turn(links[0])
				longest = max(longest, d)
			}
			if over := longest <= RetryBase; over != test.over {
				t.Errorf("after %s the next try is up to %s away", test.open, longest)
			}
		})
	}
}

func TestWhatAnEdgeAskedForHoldsInEveryRound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, links := bubble(t, 2)
		busy := &protocol.Reject{Code: protocol.CodeBusy, RetryAfterMillis: 20_000}
		asked := time.Now()
		if d := a.postpone(links[0], busy); d < 20*time.Second {
			t.Errorf("waits %s, was asked for 20s", d)
		}
		a.hold("e2", true)
		time.Sleep(time.Second)
		a.hold("e2", false) // the other link's; all try
		if !links[1].awaitTurn(t.Context()) || time.Since(asked) > 4*time.Second {
			t.Errorf("the link that was not asked to wait tries after %s", time.Since(asked))
		}
		if !links[0].awaitTurn(t.Context()) || time.Since(asked) < 20*time.Second {
			t.Errorf("came back after %s, was asked for 20s", time.Since(asked))
		}
	})
}

// After a loss each edge gets one quick try, also one that is chosen only when another
// has failed; one that is chosen again waits like the rest.
func TestAnEdgeThatIsChosenLaterIsTriedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, links := bubble(t, 1)
		a.hold("e1", true)
		a.hold("e1", false)
		for range 6 {
			if !links[0].awaitTurn(t.Context()) {
				t.Fatal("no turn")
			}
			a.postpone(links[0], nil)
		}
		for i, quick := range []bool{true, false} {
			a.share(1)
			l := &link{agent: a, node: "e2", target: target{addr: "2"}, wait: a.newBackoff()}
			wait, _ := a.turn(l)
			if (wait == 0) != quick {
				t.Errorf("chosen the %d. time: waits %s", i+1, wait)
			}
			if quick {
				wait = a.postpone(l, nil)
			}
			if wait < time.Until(links[0].until)-a.cfg.timing.spread {
				t.Errorf("chosen the %d. time: tries after %s, the other link after %s", i+1, wait, time.Until(links[0].until))
			}
		}
	})
}
