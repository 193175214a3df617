package main

import (
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"wormhole/deploy/rig"
	"wormhole/edge/agents"
	"wormhole/edge/cluster/bus"
)

func chance() *rand.Rand { return rand.New(rand.NewPCG(7, 7)) }

func TestAChangeAloneTakesItsWaitAndItsWay(t *testing.T) {
	c := spreading{edges: 2, rate: .5, gather: 5 * time.Millisecond, lasts: 200 * time.Second, near: time.Millisecond, receivers: 1, quiet: true}
	s := c.run(chance())
	want := 5*time.Millisecond + sendMessage + sendRow + time.Millisecond + takeIn(1)
	if got := s.quantile(.5); got != want || s.lost+s.unheard > 0 || len(s.lags) < 50 {
		t.Errorf("median %s of %d, want %s; %d lost", got, len(s.lags), want, s.lost)
	}
}

// Arrivals at random and one server that always takes as long: the mean wait is
// known (Pollaczek and Khinchine), load / (2 - 2 load) of what one takes.
func TestTheQueueIsTheOneOfTheory(t *testing.T) {
	const cost = 10 * time.Millisecond
	for _, load := range []float64{.3, .5, .8} {
		// Many edges that seldom change are arrivals at random, and no two share a message.
		c := spreading{
			edges: cellSize, rate: load / cost.Seconds() / (cellSize - 1), lasts: 4000 * time.Second, receivers: 1, quiet: true,
			cost: func(int) time.Duration { return cost },
		}
		s := c.run(chance())
		var sum time.Duration
		for _, lag := range s.lags {
			sum += lag - cost - sendMessage - sendRow
		}
		got := sum.Seconds() / float64(len(s.lags)) / cost.Seconds()
		want := load / (2 - 2*load)
		if math.Abs(got-want) > .05*want || math.Abs(s.busy-load) > .02 {
			t.Errorf("load %.1f: mean wait %.3f of a message, want %.3f; busy %.3f", load, got, want, s.busy)
		}
	}
}

func TestLostMessagesAreMadeUpByTheNextDigest(t *testing.T) {
	c := spreading{edges: 3, rate: 1, gather: 5 * time.Millisecond, lasts: 2000 * time.Second, lost: .2, near: time.Millisecond, receivers: 1, rows: 100}
	s := c.run(chance())
	if s.lost < 100 {
		t.Fatalf("only %d messages were lost", s.lost)
	}
	if got := s.quantile(.5); got > 10*time.Millisecond {
		t.Errorf("median %s, though most are not lost", got)
	}
	// One in five is lost; the odds that six after it are too are below one in 10,000.
	if got := s.quantile(.999); got < bus.DigestInterval/4 || got > 6*bus.DigestInterval {
		t.Errorf("the slowest take %s, want some digests' time", got)
	}
	if s.unheard > 5 {
		t.Errorf("%d changes were never known", s.unheard)
	}
}

func TestTooManyPendingAreDropped(t *testing.T) {
	c := spreading{
		edges: 5, rate: 200, lasts: 10 * time.Second, receivers: 1, pending: 100,
		cost: func(int) time.Duration { return 10 * time.Millisecond },
	}
	if s := c.run(chance()); s.busy < 5 || s.lost == 0 || s.quantile(.5) < time.Second {
		t.Errorf("busy %.1f, %d lost, median %s: this cannot be taken in", s.busy, s.lost, s.quantile(.5))
	}
}

func TestAStormIsLetInAtTheRate(t *testing.T) {
	few := storm{agents: 100, away: 30 * time.Second, rate: agents.HellosPerSecond}.run(chance())
	if few.busy > 0 || few.all > 32*time.Second {
		t.Errorf("a hundred agents: %+v", few)
	}
	const n = 6000
	many := storm{agents: n, away: 30 * time.Second, rate: agents.HellosPerSecond}.run(chance())
	least := time.Duration(n-agents.HellosPerSecond) * time.Second / agents.HellosPerSecond
	if many.all < least || many.all > 2*least {
		t.Errorf("%d agents are back after %s; the rate allows %s", n, many.all, least)
	}
	if most := 2 * float64(agents.HellosPerSecond) / n; many.peak > most+1e-9 {
		t.Errorf("%.2f %% came in one second, the rate and what it saves up are %.2f %%", 100*many.peak, 100*most)
	}
	if again := (storm{agents: n, away: 30 * time.Second, rate: agents.HellosPerSecond}).run(chance()); again != many {
		t.Errorf("the same seed gives %+v and %+v", many, again)
	}
}

func TestWhatStandsIsReckonedRight(t *testing.T) {
	s := stand(20, 1000, 2)
	if s.sessions != 190 || s.peers != 19 || s.digests != 9.5 || s.rows != 1000*(siteBytes+siteEdgeBytes) {
		t.Errorf("%+v", s)
	}
	if two := standInCell(200, 1e6); two.peers != 19 || two.rows != 2e6/10*siteBytes {
		t.Errorf("in a region: %+v", two)
	}
	small, _ := digest(20)
	large, _ := digest(10_000)
	if small != digestBytes+19*peerBytes || large != digestBytes {
		t.Errorf("digests have %d and %d bytes", small, large)
	}
}

// docs/scaling.md shows what this program prints.
func TestTheDocumentHoldsTheOutput(t *testing.T) {
	root, err := rig.Root()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	report(&out, 1)
	text, err := os.ReadFile(filepath.Join(root, "docs", "scaling.md"))
	if err != nil {
		t.Fatal(err)
	}
	missing := slices.DeleteFunc(strings.Split(out.String(), "\n"), func(line string) bool {
		return strings.HasPrefix(line, "#") || strings.Contains(string(text), line+"\n")
	})
	if len(missing) > 0 {
		t.Errorf("docs/scaling.md lacks these lines; put in what `go run ./deploy/simulate` prints:\n%s", strings.Join(missing, "\n"))
	}
}
