package main

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"wormhole/shared/tunnel"
)

// exposition is what the agent knows of itself, in Prometheus's text format 0.0.4.
// No library writes it: a client library would be a third of the binary. Labels
// take values from short lists only: carriers, and nodes that a tunnel leads to now.
func (s *service) exposition() string {
	status, done := s.agent.Status(), s.forward.Totals()
	var x expositor
	x.family("wormhole_agent_build_info", "gauge", "1, labelled with the version.")
	x.sample(1, "version", buildVersion())
	x.single("wormhole_agent_start_time_seconds", "gauge", "Unix time of the agent's start.", float64(s.started.UnixMilli())/1000)
	x.single("wormhole_agent_app_ready", "gauge", "1 while the app accepts requests.", oneIf(status.Ready))
	x.single("wormhole_agent_draining", "gauge", "1 while the agent is leaving.", oneIf(status.Draining))
	if at := s.expires.Load(); at != 0 {
		x.single("wormhole_agent_token_expiry_timestamp_seconds", "gauge", "Unix time when the token expires; absent if it never does.", float64(at))
	}

	carriers := map[string]int{string(tunnel.TLS): 0, string(tunnel.QUIC): 0}
	trips := map[string]float64{} // by node: two tunnels to one may be open for a moment
	streams := 0
	for _, t := range status.Tunnels {
		carriers[string(t.Carrier)]++
		streams += t.Streams
		if t.RTT > 0 {
			trips[t.Node] = t.RTT.Seconds()
		}
	}
	x.family("wormhole_agent_tunnels", "gauge", "Tunnels open now, by carrier.")
	for _, c := range slices.Sorted(maps.Keys(carriers)) {
		x.sample(float64(carriers[c]), "carrier", c)
	}
	x.family("wormhole_agent_tunnel_rtt_seconds", "gauge", "Round trip of the last beat on the tunnel to a node, time in both processes included.")
	for _, node := range slices.Sorted(maps.Keys(trips)) {
		x.sample(trips[node], "node", node)
	}
	x.single("wormhole_agent_tunnels_opened_total", "counter", "Tunnels that an edge accepted.", float64(status.Totals.Opened))
	x.single("wormhole_agent_tunnels_lost_total", "counter", "Tunnels that ended although neither side had asked for it.", float64(status.Totals.Lost))
	x.single("wormhole_agent_tunnel_failures_total", "counter", "Attempts that opened no tunnel, refusals included.", float64(status.Totals.Failed))

	x.single("wormhole_agent_streams", "gauge", "Streams open in all tunnels, kept ones included.", float64(streams))
	x.single("wormhole_agent_streams_total", "counter", "Streams that edges opened, refused ones included.", float64(done.Streams))
	x.single("wormhole_agent_streams_refused_total", "counter", "Streams refused before a byte reached the app.", float64(done.Refused))
	x.single("wormhole_agent_app_unreachable_total", "counter", "Streams refused because the app accepted no connection.", float64(done.Unreachable))
	x.single("wormhole_agent_received_bytes_total", "counter", "Bytes from edges handed to the app.", float64(done.ToApp))
	x.single("wormhole_agent_sent_bytes_total", "counter", "Bytes from the app handed to edges.", float64(done.FromApp))
	return x.text.String()
}

// expositor writes families of samples.
type expositor struct {
	text strings.Builder
	name string // of the family that samples belong to
}

func (x *expositor) family(name, kind, help string) {
	x.name = name
	_, _ = fmt.Fprintf(&x.text, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

// single writes a family of one sample without labels.
func (x *expositor) single(name, kind, help string, v float64) {
	x.family(name, kind, help)
	x.sample(v)
}

// sample writes one sample; labels are names and values in turn.
func (x *expositor) sample(v float64, labels ...string) {
	x.text.WriteString(x.name)
	for i := 0; i+1 < len(labels); i += 2 {
		x.text.WriteByte("{,"[min(i, 1)])
		x.text.WriteString(labels[i] + `="` + labelEscapes.Replace(labels[i+1]) + `"`)
	}
	if len(labels) > 0 {
		x.text.WriteByte('}')
	}
	x.text.WriteString(" " + strconv.FormatFloat(v, 'g', -1, 64) + "\n")
}

// labelEscapes are those of the text format.
var labelEscapes = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
