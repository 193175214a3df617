// Package agent keeps tunnels to the edges alive: it finds the edges, dials them,
// says hello, serves the streams they open, tells them whether the app is ready,
// and takes its leave so that no request is lost.
//
// # Who owns what
//
// Agent.Run starts everything and waits for it. One goroutine per configured name
// resolves it and owns one link per address; one goroutine owns the links to edges
// that other edges told us of, has those measured, and decides which are wanted: the
// nearest of a network, and every edge that is of none. A link dials, one attempt at
// a time, and hands each session to a connection, which reads and writes the control stream, accepts
// streams and judges whether the edge is still there. Connections that were asked
// to leave, or are not wanted any more, live on beside their link until what is in
// flight has ended.
//
// # When a link dials
//
// While another tunnel is open, each link waits between attempts by a back-off of its
// own. While none is, all links share one (rounds), so that an agent which knows many
// edges knocks no more often than one which knows one; a loss of the last tunnel
// brings every link's next attempt forward. What an edge asked for, and how long a
// tunnel must have been open for the waits to start over, holds in both.
package agent
