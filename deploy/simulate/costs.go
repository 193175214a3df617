package main

import "time"

// What things cost, as measured on two shared cores of an EPYC server by
//
//	go test -run '^$' -bench Cost -benchtime 300ms ./edge/cluster/bus
//	go test -run '^$' -bench Cost -benchtime 1x ./edge/cluster/relay
//
// in time of the processor. Put your machine's figures here to see its limits; the
// times from the code (intervals, rates, back-off) are taken from the code itself.
const (
	// A message with changes: for its sender, once, and for each further row.
	sendMessage = 30 * time.Microsecond
	sendRow     = 250 * time.Nanosecond
	// The same for each receiver: decode, verify, take in.
	receiveMessage = 60 * time.Microsecond
	receiveRow     = 550 * time.Nanosecond
	// The mesh's own part for each receiver, sender's and receiver's side together.
	carryMessage = 15 * time.Microsecond
	// A digest names each edge that its sender hears.
	digestPeer = 650 * time.Nanosecond

	messageBytes = 531 - 28 // without rows
	rowBytes     = 30
	digestBytes  = 616
	peerBytes    = 24
	digestMost   = 16 << 10 // beyond, a digest does not say whom its sender hears

	// Memory of an edge.
	siteBytes      = 147 // a site that one other edge reaches
	siteEdgeBytes  = 91  // each further edge that reaches it
	meshPeerBytes  = 64 << 10
	sessionBytes   = 55 << 10 // one end of a kept relay session
	sessionSeconds = 0.000165 // of processor in each second, one end
)

// digest is the bytes of a digest in a mesh of n edges, and what taking it in costs.
func digest(n int) (bytes int, cost time.Duration) {
	sees := (n - 1) * peerBytes
	if sees > digestMost {
		return digestBytes, receiveMessage + carryMessage
	}
	return digestBytes + sees, receiveMessage + carryMessage + time.Duration(n-1)*digestPeer
}
