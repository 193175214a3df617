// Package tlsmux carries a tunnel session over one TLS connection, multiplexed
// by hashicorp/yamux.
//
// yamux keeps the streams' states and ids and the queue of those not yet accepted.
// What it lacks for a tunnel lives in the connection that this package puts beneath
// it (wire), which sees every frame that goes by and knows where frames begin:
//
//   - Outbox: frames are gathered and written by one goroutine, one TLS write for
//     all that is queued. Data goes there directly, under send windows of our own,
//     so that a Write can be interrupted and a control frame never waits.
//   - Receiving: the bodies of data frames never reach yamux, whose buffers double
//     and are copied as they grow. They go from the connection into chunks of their
//     stream's own queue, and yamux hears of a frame's flags only. An idle stream
//     holds no chunk, and what all hold is counted.
//   - Passing on: a short frame of a stream whose reader waits may go past the queue,
//     into another stream's outbox (tunnel.Direct), by the goroutine that received it,
//     which never waits for the other peer.
//   - ABORT: yamux has no reset. The outbox sends a standard RST frame, and the
//     read side hands the same frame to the local yamux, which then forgets the
//     stream without waiting for the peer.
//   - END: io.EOF counts only if the peer's FIN was seen and every byte before it
//     was read. yamux also says io.EOF when its session dies; that is an abort.
//   - Windows grow for streams that are read fast, and what is received but not
//     read has a ceiling per session.
//   - A peer that does not keep to SPEC.md loses its session at once.
//
// Locks: table.mu and outbox.mu are never held together, nor while calling yamux. A
// stream's recv.mu may be taken while table.mu is held, and no lock while it is.
package tlsmux
