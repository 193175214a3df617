// Package agent keeps tunnels to the edges alive: it finds the edges, dials them,
// says hello, serves the streams they open, tells them whether the app is ready,
// and takes its leave so that no request is lost.
//
// # Who owns what
//
// Agent.Run starts everything and waits for it. One goroutine per configured name
// resolves it and owns one link per address; one goroutine owns the links to edges
// that other edges told us of. A link dials, one attempt at a time, and hands each
// session to a connection, which reads and writes the control stream, accepts
// streams and judges whether the edge is still there. Connections that were asked
// to leave live on beside their link until what is in flight has ended.
package agent
