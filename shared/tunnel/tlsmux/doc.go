// Package tlsmux carries a tunnel session over one TLS connection, multiplexed
// by hashicorp/yamux.
//
// yamux keeps the streams' states, ids and receive buffers. What it lacks for a
// tunnel lives in the connection that this package puts beneath it (wire), which
// sees every frame that goes by and knows where frames begin:
//
//   - Outbox: frames are gathered and written by one goroutine, one TLS write for
//     all that is queued. Data goes there directly, under send windows of our own,
//     so that a Write can be interrupted and a control frame never waits.
//   - ABORT: yamux has no reset. The outbox sends a standard RST frame, and the
//     read side hands the same frame to the local yamux, which then forgets the
//     stream without waiting for the peer.
//   - END: io.EOF counts only if the peer's FIN was seen and every byte before it
//     was read. yamux also says io.EOF when its session dies; that is an abort.
//   - Windows grow for streams that are read fast, and what is received but not
//     read has a ceiling per session.
//   - A peer that does not keep to SPEC.md loses its session at once.
//
// Locks: table.mu and outbox.mu are never held together, nor while calling yamux.
package tlsmux
