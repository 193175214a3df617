package tlsmux

import "encoding/binary"

// The yamux frame (spec version 0): version u8, type u8, flags u16, stream u32,
// length u32, all big endian. Length is the body's on data frames, a window
// delta, a ping's id or a reason on the others, which have no body.
const (
	headerLen = 12

	typeData   = 0
	typeWindow = 1
	typePing   = 2
	typeGoAway = 3

	flagSYN = 1
	flagACK = 2
	flagFIN = 4
	flagRST = 8

	// initialWindow is what both ends may send on a stream before any update.
	initialWindow = 256 << 10
)

// header is one decoded frame header.
type header struct {
	version, kind uint8
	flags         uint16
	id, length    uint32
}

func decodeHeader(b []byte) header {
	return header{
		version: b[0],
		kind:    b[1],
		flags:   binary.BigEndian.Uint16(b[2:]),
		id:      binary.BigEndian.Uint32(b[4:]),
		length:  binary.BigEndian.Uint32(b[8:]),
	}
}

func (h header) append(b []byte) []byte {
	b = append(b, h.version, h.kind)
	b = binary.BigEndian.AppendUint16(b, h.flags)
	b = binary.BigEndian.AppendUint32(b, h.id)
	return binary.BigEndian.AppendUint32(b, h.length)
}

// setFlags rewrites the flags of the frame that begins at b.
func setFlags(b []byte, flags uint16) { binary.BigEndian.PutUint16(b[2:], flags) }
