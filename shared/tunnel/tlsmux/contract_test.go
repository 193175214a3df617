package tlsmux

import (
	"testing"

	"wormhole/shared/tunnel"
	"wormhole/shared/tunnel/tunneltest"
)

func TestContract(t *testing.T) {
	tunneltest.Run(t, func(t testing.TB) (edge, agent tunnel.Session) {
		agent, edge = pair(t, Options{}, Options{})
		return edge, agent
	})
}
