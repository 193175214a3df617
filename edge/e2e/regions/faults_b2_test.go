package regions

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"wormhole/edge/edgetest"
	"wormhole/edge/edgetest/oracle"
	"wormhole/wormhole/agent"
)

// judgement is one line of an edge's log: from then on it took another for this.
type judgement struct {
	Time   time.Time
	Msg    string
	Node   string
	Health string
}

// judgements are what an edge has said of another since a moment.
func judgements(t *testing.T, e, of *edge, since time.Time) []judgement {
	t.Helper()
	var list []judgement
	for line := range strings.Lines(e.Output()) {
		if !strings.Contains(line, "health of an edge changed") {
			continue
		}
		var j judgement
		edgetest.JSON(t, []byte(line), &j)
		if j.Node == of.Status.Node && j.Time.After(since) {
			list = append(list, j)
		}
	}
	return list
}

// turns counts how often an edge that was up was no longer, and was again, and says
// when it first was not and last was.
func turns(list []judgement) (fell, rose int, lost, back time.Time) {
	up := true
	for _, j := range list {
		switch now := j.Health == "up"; {
		case up && !now:
			fell++
			if lost.IsZero() {
				lost = j.Time
			}
		case !up && now:
			rose++
			back = j.Time
		}
		up = j.Health == "up"
	}
	return fell, rose, lost, back
}

// B2: an edge of three stands still under load: its connections stay open and it says
// nothing. Then it goes on as if nothing had been. One site has agents with a tunnel
// elsewhere too, the other's are at the edge that stands still alone: until they have
// given it up, what asks for them is refused, but never waits.
func TestB2AnEdgeThatStandsStill(t *testing.T) {
	still, after, rate := 8*time.Second, 8*time.Second, 100
	if oracle.Long() {
		still, after, rate = time.Minute, time.Minute, 300
	}
	edges := binaries.StartCluster(t, 3)
	stopped, others := edges[1], []*edge{edges[0], edges[2]}
	roots := edgetest.Roots(t, edges[0].Status.CA)
	app := edgetest.App(t, edgetest.Named("app"))
	token := issue(t, edges[0], "both.localhost", "only.localhost")
	start := func(host string, tunnels int) *worker { // the region, so that one tunnel is at the edge that will stand still
		w := workWith(t, agent.Config{
			Edges: []string{stopped.Door, edges[0].Door}, Token: token, Hosts: []string{host}, Name: host, RootCAs: roots, Transport: agent.OnlyTLS,
			EdgesMin: tunnels, EdgesMax: tunnels, Region: "r2",
		}, app)
		edgetest.Eventually(t, fmt.Sprintf("%d tunnels, one of them there", tunnels), func() bool {
			s, there := w.Status(), false
			for _, x := range s.Tunnels {
				there = there || x.Node == stopped.Status.Node
			}
			return there && len(s.Tunnels) == tunnels
		})
		return w
	}
	for range 3 {
		start("both.localhost", 2)
	}
	var alone []*worker
	for range 5 {
		alone = append(alone, start("only.localhost", 1))
	}
	both, only := []*edgetest.Probe{}, []*edgetest.Probe{}
	every := 4 * time.Second / time.Duration(rate) // four probes
	for _, e := range others {
		c := client(t, e, edges[0])
		awaitOK(t, c, "both.localhost")
		awaitOK(t, c, "only.localhost")
		both = append(both, edgetest.StartProbe(c, "https://both.localhost/", every))
		only = append(only, edgetest.StartProbe(c, "https://only.localhost/", every))
	}
	began := time.Now()
	time.Sleep(time.Second)

	stopped.Signal(syscall.SIGSTOP)
	stop := time.Now()
	var shown time.Duration // until the operator of each can see it
	for _, e := range others {
		edgetest.Eventually(t, "it is taken for silent", func() bool {
			for _, p := range status(t, operator(t, e)).Cluster.Peers {
				if p.Node == stopped.Status.Node {
					return p.Health != "up"
				}
			}
			return false
		})
		shown = max(shown, time.Since(stop))
	}
	moved := make([]time.Duration, len(alone)) // until each agent had a tunnel elsewhere
	for time.Since(stop) < still {
		for i, w := range alone {
			for _, x := range w.Status().Tunnels {
				if moved[i] == 0 && x.Node != stopped.Status.Node {
					moved[i] = time.Since(stop)
				}
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	stopped.Signal(syscall.SIGCONT)
	cont := time.Now()
	time.Sleep(after)
	served, how := cont.Sub(began)+5*time.Second, "the agents there stayed" // from then on everything is
	if last := slices.Max(moved); slices.Min(moved) > 0 {
		served, how = stop.Sub(began)+last+time.Second, fmt.Sprintf("the agents there were elsewhere after %s", last.Round(10*time.Millisecond))
	}

	slow, slowest, asked, failed, refused := 0, time.Duration(0), 0, 0, 0
	late := 0 // failed when there was another way again
	for i, p := range append(both, only...) {
		answers := p.Stop()
		asked += len(answers)
		for _, a := range answers {
			slowest = max(slowest, a.Took)
			if a.Took > oracle.SlowAfter {
				slow++
			}
		}
		if i < len(both) {
			failed += answers.Failed()
			late += answers.Since(stop.Sub(began) + 3*time.Second).Failed()
		} else {
			refused += answers.Failed()
			late += answers.Since(served).Failed()
		}
		t.Logf("probe %d: %d of %d failed, p99 %s:%s", i, answers.Failed(), len(answers), answers.P99(), answers.Faults())
	}
	suspected, up, flaps := time.Duration(0), time.Duration(0), 0
	for i, e := range others {
		list := judgements(t, e, stopped, stop)
		fell, rose, lost, back := turns(list)
		said, _ := json.Marshal(list)
		t.Logf("edge %d of the one that stood still: %s", i, said)
		if fell != 1 || rose != 1 {
			flaps++
		}
		suspected, up = max(suspected, lost.Sub(stop)), max(up, back.Sub(cont))
		flaps += len(judgements(t, e, others[1-i], stop)) // they took nothing amiss with each other
		// It may have taken the others for silent, whom it had not heard for so long.
		if fell, rose, _, _ := turns(judgements(t, stopped, e, stop)); fell != rose || fell > 1 {
			flaps++
		}
	}
	oracle.Row{
		ID: "B2", Done: fmt.Sprintf("kill -STOP of one edge of three for %s under %d/s at the others, then CONT; %s more", still, rate, after),
		Figure: fmt.Sprintf("suspected after %s at most, shown to operators after %s; %d of %d requests took more than 5 s, the slowest %s; where agents have another tunnel %d failed, "+
			"for what was there alone %d (%s), %d of both late; up again %s after CONT, %d edges saw another change more than down once and up once",
			suspected.Round(10*time.Millisecond), shown.Round(10*time.Millisecond), slow, asked, slowest.Round(10*time.Millisecond), failed, refused, how, late,
			up.Round(10*time.Millisecond), flaps),
		Limit: "suspected in 3 s, none above 5 s, 0 late (3 s after STOP with another tunnel, 1 s after the agents moved, 5 s after CONT), up in 5 s, 0 edges",
		OK:    suspected > 0 && suspected <= 3*time.Second && slow == 0 && late == 0 && up <= 5*time.Second && flaps == 0,
	}.Verdict(t)
}
