package main

import (
	"time"

	"wormhole/edge/cluster/bus"
)

// cellSize is how many edges are one region of a two-level network, and gateways how
// many of them speak with other regions.
const (
	cellSize = 20
	gateways = 3
)

// standing is what one edge holds and does when nothing happens.
type standing struct {
	rows     float64 // of memory for routes, bytes
	peers    int     // other edges that it meshes with
	memory   float64 // of routes, peers and sessions, bytes
	digests  float64 // heard in a second
	busy     float64 // of a processor, for digests and sessions
	inbound  float64 // bytes a second, digests
	sessions int     // of the whole network
	joining  time.Duration
	joinSize float64 // bytes of snapshots that a newcomer hears
}

// stand reckons an edge of a mesh of n edges that knows sites sites, each reached by
// so many edges as copies says.
func stand(n int, sites float64, copies int) standing {
	bytes, cost := digest(n)
	every := bus.DigestInterval.Seconds()
	s := standing{rows: sites * float64(siteBytes+(copies-1)*siteEdgeBytes), peers: n - 1, sessions: n * (n - 1) / 2}
	s.memory = s.rows + float64(s.peers)*(meshPeerBytes+sessionBytes)
	s.digests = float64(s.peers) / every
	s.busy = s.digests*cost.Seconds() + float64(s.peers)*sessionSeconds
	s.inbound = s.digests * float64(bytes)
	rows := float64(copies) * sites
	messages := max(float64(s.peers), rows/bus.MaxRowsInMessage)
	s.joining = time.Duration(rows*float64(receiveRow) + messages*float64(receiveMessage+carryMessage))
	s.joinSize = rows*rowBytes + messages*messageBytes
	return s
}

// cells is how many regions of cellSize n edges are.
func cells(n int) int { return max(1, (n+cellSize-1)/cellSize) }

// standInCell is an ordinary edge of a two-level network: the routes of its region,
// and nothing of the others but their gateways. The two tunnels of a site end in two
// regions.
func standInCell(n int, sites float64) standing {
	return stand(min(n, cellSize), 2*sites/float64(cells(n)), 1)
}

// standAtGateway is a gateway: its region's routes, and for every site the regions
// that reach it, told by the other gateways.
func standAtGateway(n int, sites float64) standing {
	own := standInCell(n, sites)
	among := stand(gateways*cells(n), sites, 2)
	return standing{
		rows: own.rows + among.rows, peers: own.peers + among.peers, memory: own.memory + among.memory,
		digests: own.digests + among.digests, busy: own.busy + among.busy, inbound: own.inbound + among.inbound,
		sessions: cells(n)*own.sessions + among.sessions, joining: own.joining + among.joining, joinSize: own.joinSize + among.joinSize,
	}
}
