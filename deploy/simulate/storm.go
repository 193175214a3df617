package main

import (
	"container/heap"
	"math/rand/v2"
	"time"

	"golang.org/x/time/rate"

	"wormhole/edge/agents"
	"wormhole/shared/backoff"
	"wormhole/wormhole/agent"
)

// roundTrip is what a try costs that is refused, and what a hello takes.
const roundTrip = 50 * time.Millisecond

// storm is agents that lose their edge, which is away for a while. With other edges
// to go to, this is the share of each.
type storm struct {
	agents int
	away   time.Duration
	rate   int // hellos admitted in a second
}

// calm is how it ended. Times count from when the edge was back.
type calm struct {
	half, most, all time.Duration // 50 %, 99 %, 100 % of the agents are back
	peak            float64       // the largest share that came back within one second
	busy            int           // hellos that were turned away
}

// due is an agent that tries again.
type due struct {
	at   time.Duration
	wait *backoff.Backoff
}

type queue []due

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].at < q[j].at }
func (q queue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)        { *q = append(*q, x.(due)) }
func (q *queue) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}

// run plays it with the agents' back-off and the edge's limiter themselves.
func (s storm) run(random *rand.Rand) calm {
	start := time.Unix(0, 0)
	now := start
	q := make(queue, s.agents)
	for i := range q {
		w := backoff.NewSimulated(agent.RetryBase, agent.RetryMax, agent.RetryStable, func() time.Time { return now }, random.Int64N)
		q[i] = due{w.Next(), w}
	}
	heap.Init(&q)
	limit := rate.NewLimiter(rate.Limit(s.rate), s.rate)
	var out calm
	var back []time.Duration
	for len(q) > 0 {
		d := q[0]
		now = start.Add(d.at)
		switch {
		case d.at < s.away:
			d.at += roundTrip + d.wait.Next()
		case limit.AllowN(now, 1):
			back = append(back, d.at+roundTrip-s.away)
			heap.Pop(&q)
			continue
		default:
			out.busy++
			// As agents.Door says it and agent.link obeys it.
			after := agents.BusyLeast + time.Duration(random.Int64N(int64(agents.BusyMost-agents.BusyLeast)))
			wait := d.wait.Next()
			if after > wait {
				wait = after + time.Duration(random.Int64N(int64(after/4+1)))
			}
			d.at += roundTrip + wait
		}
		q[0] = d
		heap.Fix(&q, 0)
	}
	n := len(back)
	out.half, out.most, out.all = back[(n-1)/2], back[(n-1)*99/100], back[n-1]
	for i, j := 0, 0; i < n; i++ { // they came back in order
		for back[i]-back[j] >= time.Second {
			j++
		}
		out.peak = max(out.peak, float64(i-j+1)/float64(n))
	}
	return out
}
