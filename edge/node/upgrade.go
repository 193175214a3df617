package node

import (
	"errors"
	"fmt"
	"time"

	"wormhole/edge/handover"
)

// takeOver is how long a successor has until its doors are open.
const takeOver = 30 * time.Second

// Upgrade starts the program at path with args as this node's successor on the same
// sockets, and drains this node once the successor serves: nobody is refused, and
// what is in flight here finishes here. If the successor does not come up, nothing
// changes and the error says why.
func (n *Node) Upgrade(path string, args []string) error {
	if err := n.Ready(); err != nil {
		return fmt.Errorf("no upgrade now: the edge is %w", err)
	}
	if n.cluster != nil {
		// Two processes cannot be one node of the mesh, or host one store.
		return errors.New("an edge of a cluster is not upgraded in place: restart it, the others serve meanwhile")
	}
	if !n.upgrading.TryLock() {
		return errors.New("an upgrade is under way already")
	}
	defer n.upgrading.Unlock()
	https, quic, http := n.ingress.Sockets()
	sockets := map[string]any{handover.HTTPS: https, handover.Admin: n.adminListener}
	if quic != nil {
		sockets[handover.QUIC] = quic
	}
	if http != nil {
		sockets[handover.HTTP] = http
	}
	if n.dns != nil {
		sockets[handover.DNS], sockets[handover.DNSPackets] = n.dns.Sockets()
	}
	for host, listener := range n.raw.Listeners() {
		sockets[handover.Raw+host] = listener
	}
	n.logger.Info("starting successor", "node", n.id, "path", path)
	successor, err := handover.Start(path, args, sockets, takeOver)
	if err != nil {
		return err
	}
	n.logger.Info("successor serves", "node", n.id, "pid", successor.PID)
	if err := n.manager.MainProcess(successor.PID); err != nil {
		n.logger.Warn("the service manager does not learn of the successor", "err", err)
	}
	n.successor = successor
	n.succeeded.Store(true)
	n.Drain()
	return nil
}
