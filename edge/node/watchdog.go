package node

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"
)

const (
	// watchInterval is how often what is watched is asked, and watchTurns how many
	// intervals in a row it may leave unanswered.
	watchInterval = 500 * time.Millisecond
	watchTurns    = 16
	// exitStuck is the exit status of a process that the watchdog ended (EX_SOFTWARE).
	exitStuck = 70
)

// watchdog ends a process that is stuck: one that looks alive from outside, accepts
// connections and answers none is worse than one that its service manager starts
// again. It counts its own turns, not time, so that a process that was suspended or
// gets no CPU is not taken for one that is stuck.
type watchdog struct {
	// checks are calls that return soon in a process that is well, by name.
	checks map[string]func(ctx context.Context)
	// stuck is called once, with the name of a check that does not return.
	stuck func(name string)
}

// guard watches what every request needs: the routing table, the agents' door, and
// the loop that judges other edges.
func (n *Node) guard() *watchdog {
	w := &watchdog{stuck: n.stuck, checks: map[string]func(context.Context){
		"routes": func(context.Context) { n.network.Lookup("watchdog.invalid") },
		"agents": func(context.Context) { n.door.Tunnels() },
	}}
	if n.cluster != nil {
		w.checks["edges"] = func(context.Context) { n.cluster.Edges() }
		var seen uint64
		w.checks["cluster loop"] = func(ctx context.Context) {
			for n.cluster.Turns() == seen && ctx.Err() == nil {
				time.Sleep(watchInterval / 5)
			}
			seen = n.cluster.Turns()
		}
	}
	return w
}

// stuck says on stderr what every goroutine does, and ends the process.
func (n *Node) stuck(name string) {
	n.logger.Error("this edge is stuck and ends itself", "part", name)
	stacks := make([]byte, 16<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	fmt.Fprintf(os.Stderr, "watchdog: %s did not answer for %s\n\n%s\n", name, watchTurns*watchInterval, stacks)
	os.Exit(exitStuck)
}

// run watches until ctx ends. A check that gets stuck then keeps it from returning:
// so would what the check asks.
func (w *watchdog) run(ctx context.Context) {
	var mu sync.Mutex // guards late
	late := map[string]int{}
	var checking sync.WaitGroup
	for name, check := range w.checks {
		checking.Go(func() { // ends with ctx, unless check is stuck
			tick := time.NewTicker(watchInterval)
			defer tick.Stop()
			for ctx.Err() == nil {
				check(ctx)
				mu.Lock()
				late[name] = 0
				mu.Unlock()
				select {
				case <-tick.C:
				case <-ctx.Done():
				}
			}
		})
	}
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			checking.Wait()
			return
		case <-tick.C:
		}
		mu.Lock()
		for name := range w.checks {
			if late[name]++; late[name] > watchTurns {
				mu.Unlock()
				w.stuck(name)
				return
			}
		}
		mu.Unlock()
	}
}
