package upstream

// maxChunkLine bounds a chunk's size line, extensions included, in bytes.
const maxChunkLine = 1 << 10

// chunkState is where in a chunked body (RFC 9112, section 7.1) the parser stands.
type chunkState uint8

const (
	chunkSize    chunkState = iota // before a size line
	chunkData                      // inside data
	chunkDataEnd                   // before the CRLF that follows data
	chunkTrailer                   // before the trailer section
	chunkDone
)

// chunks parses chunk framing in place. Every line must end with CRLF: a bare LF in
// here is what request smuggling is made of.
type chunks struct {
	state    chunkState
	left     int64 // of the data of this chunk
	seen     int   // of the trailer section, by earlier calls
	trailers []Field
}

// step advances over framing that is buffered in rd until data comes, the body is
// done, or it returns errMore.
func (c *chunks) step(rd *reader) error {
	for {
		b := rd.buffered()
		switch c.state {
		case chunkSize:
			size, n, err := parseChunkLine(b)
			if err != nil {
				return err
			}
			rd.skip(n)
			if c.left = size; size == 0 {
				c.state = chunkTrailer
			} else {
				c.state = chunkData
			}
		case chunkData:
			if c.left > 0 {
				return nil
			}
			c.state = chunkDataEnd
		case chunkDataEnd:
			if len(b) > 0 && b[0] != '\r' || len(b) > 1 && b[1] != '\n' {
				return errChunk
			}
			if len(b) < 2 {
				return errMore
			}
			rd.skip(2)
			c.state = chunkSize
		case chunkTrailer:
			end, next := headEnd(b, c.seen)
			if end == 0 {
				c.seen = next
				return errMore
			}
			if bareLF(b[:end]) {
				return errChunk
			}
			if end > 2 {
				var err error
				if c.trailers, err = parseTrailer(string(b[:end])); err != nil {
					return err
				}
			}
			rd.skip(end)
			c.state = chunkDone
		case chunkDone:
			return nil
		}
	}
}

// took notes that n bytes of data were handed out; step came to data before.
func (c *chunks) took(n int) { c.left -= int64(n) }

// parseChunkLine parses the size line at the front of b and returns its length.
// Extensions are skipped.
func parseChunkLine(b []byte) (size int64, n int, err error) {
	digits := 0
	for digits < len(b) {
		d, ok := hexDigit(b[digits])
		if !ok {
			break
		}
		if digits++; digits > 15 { // fits into an int64, with room
			return 0, 0, errChunk
		}
		size = size<<4 | int64(d)
	}
	if digits == len(b) {
		return 0, 0, errMore
	}
	if digits == 0 {
		return 0, 0, errChunk
	}
	i := digits
	// Spaces after the size are not in the grammar, but old servers pad with them.
	for i < len(b) && (b[i] == ' ' || b[i] == '\t') {
		i++
	}
	if i < len(b) && b[i] == ';' {
		for i < len(b) && (b[i] >= ' ' || b[i] == '\t') && b[i] != 0x7f {
			i++
		}
	}
	switch {
	case i > maxChunkLine:
		return 0, 0, errChunk
	case i == len(b):
		return 0, 0, errMore
	case b[i] != '\r':
		return 0, 0, errChunk
	case i+1 == len(b):
		return 0, 0, errMore
	case b[i+1] != '\n':
		return 0, 0, errChunk
	}
	return size, i + 2, nil
}

// bareLF reports whether a line in b ends with LF alone.
func bareLF(b []byte) bool {
	for i, c := range b {
		if c == '\n' && (i == 0 || b[i-1] != '\r') {
			return true
		}
	}
	return false
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case isDigit(c):
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}
