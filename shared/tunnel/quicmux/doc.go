// Package quicmux carries a tunnel session over one QUIC connection. QUIC has
// what a tunnel needs: END is the FIN of a stream's direction (RFC 9000, section
// 3.1), ABORT is RESET_STREAM and STOP_SENDING together (3.5), and a closed
// connection is an error on every stream.
//
// A stream becomes visible to the peer with its first byte or its abort; Open
// alone sends nothing.
package quicmux
