package node

import "time"

// closing is how long the node may take beyond its drain: what Shutdown and the
// parts need to close.
const closing = 10 * time.Second

// tellReady tells the service manager that every door is open.
func (n *Node) tellReady() {
	addrs := n.addresses()
	if err := n.manager.Ready("https on " + addrs["https"] + ", admin on " + addrs["admin"]); err != nil {
		n.logger.Warn("the service manager does not learn that the edge serves", "err", err)
	}
}

// tellStopping asks the service manager for the time that the drain may take, which
// the unit's author need not have known.
func (n *Node) tellStopping(deadline time.Duration) {
	if err := n.manager.Stopping(n.cfg.DrainDelay + deadline + closing); err != nil {
		n.logger.Warn("the service manager does not learn that the edge stops", "err", err)
	}
}
