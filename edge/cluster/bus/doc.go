// Package bus tells edges of each other: who is live, and which edge reaches which
// site. It needs no agreement and no durable state.
//
// Each edge runs a small NATS server; they form a full mesh over mutual TLS. Each
// edge is the only writer of its own rows, which carry its epoch (one more at each
// start, kept on its disk) and a sequence, and are signed with its node key. Changes
// are told at once (delta); every two seconds a digest says how the rows should look,
// and who missed something asks for all of them (snapshot).
//
// # Guarantees
//
// Rows of an older epoch are ignored, so that an edge that was suspended, or a
// message that was late, revives nothing. A snapshot that lacks more than half of what
// was known of an edge, without that edge being in a drain, is not believed for
// GuardHold: that rows are absent is no evidence. A delta names each row that goes.
// A message that is malformed, unsigned, or signed by an
// edge that left, changes nothing.
//
// The mesh forwards one hop: two edges without a direct route do not hear each
// other, even if both hear a third. Status tells.
package bus
