// Package protocol defines the words that an agent and an edge say to each
// other: the hello that opens a tunnel, the control messages that keep it, and
// the header that opens every stream. SPEC.md beside this file describes the
// same bytes precisely enough to write another agent from.
//
// Everything here is a pure encoder or decoder: no goroutines, no clocks and no
// connections of its own. All functions may be called concurrently.
package protocol
