package upstream

import (
	"bytes"
	"net/textproto"
	"strconv"
	"strings"
)

// MaxHead bounds the head of an answer, and a trailer section, in bytes.
const MaxHead = 64 << 10

// Field is one header or trailer field.
type Field struct {
	Name, Value string
}

// malformed is the error of an answer that is not HTTP as this package accepts it.
type malformed string

// Error says what is wrong.
func (m malformed) Error() string { return string(m) }

// The ways an answer can be malformed.
const (
	errTooLong    = malformed("head longer than 64 KiB")
	errStatusLine = malformed("malformed status line")
	errFieldLine  = malformed("malformed header field")
	errFraming    = malformed("ambiguous or malformed framing")
	errUnasked101 = malformed("protocol switched without being asked")
	errTooMany1xx = malformed("too many interim answers")
	errChunk      = malformed("malformed chunked body")
)

// head is the parsed head of an answer. Its strings share one allocation.
type head struct {
	status int
	minor  int // of HTTP/1.x
	// fields are the end-to-end fields in order, names in canonical form.
	fields []Field
	// length is Content-Length, -1 without one.
	length  int64
	chunked bool
	// closes says Connection: close; upgrade holds the Upgrade field if Connection
	// nominates it.
	closes  bool
	upgrade string
	// keepAlive is the timeout parameter of Keep-Alive in seconds, -1 without one.
	keepAlive int
}

// headEnd returns the length of the head or field section that b begins with,
// including the empty line; 0 if its end is not in b. from is where an earlier look
// at a shorter b left off, next where the next one may go on.
func headEnd(b []byte, from int) (end, next int) {
	line := from
	for {
		i := bytes.IndexByte(b[line:], '\n')
		switch {
		case i < 0:
			return 0, line
		case i == 0, i == 1 && b[line] == '\r':
			return line + i + 1, line + i + 1
		}
		line += i + 1
	}
}

// parseHead parses the head of an answer, empty line included, into h, whose
// fields' memory is reused. It accepts less than RFC 9112 allows: no folding, no
// space before the colon, no control characters, one Content-Length of digits,
// Transfer-Encoding only as "chunked" and never beside Content-Length (sections 5
// and 6.3).
func parseHead(text string, h *head) error {
	*h = head{fields: h.fields[:0], length: -1, keepAlive: -1}
	line, rest, ok := cutLine(text)
	if !ok || parseStatusLine(line, h) != nil {
		return errStatusLine
	}
	var connection, upgrade string
	hasTE := false
	for {
		if line, rest, ok = cutLine(rest); !ok {
			return errFieldLine
		}
		if line == "" {
			break
		}
		f, err := parseField(line)
		if err != nil {
			return err
		}
		switch f.Name {
		case "Content-Length":
			n, err := parseLength(f.Value)
			if err != nil || h.length >= 0 {
				return errFraming
			}
			h.length = n
		case "Transfer-Encoding":
			if hasTE || h.minor == 0 || !strings.EqualFold(f.Value, "chunked") {
				return errFraming
			}
			hasTE, h.chunked = true, true
			continue
		case "Connection":
			if connection != "" {
				connection += ","
			}
			connection += f.Value
			continue
		case "Upgrade":
			upgrade = f.Value
			continue
		case "Keep-Alive":
			h.keepAlive = keepAliveTimeout(f.Value)
			continue
		case "Proxy-Connection", "Te", "Proxy-Authenticate", "Proxy-Authorization":
			continue
		}
		h.fields = append(h.fields, f)
	}
	if rest != "" {
		return errFieldLine
	}
	if hasTE && h.length >= 0 {
		return errFraming
	}
	if connection != "" {
		h.nominated(connection, upgrade)
	}
	return nil
}

// nominated takes the fields away that Connection names (RFC 9110, section 7.6.1).
func (h *head) nominated(connection, upgrade string) {
	for token := range tokens(connection) {
		switch {
		case strings.EqualFold(token, "close"):
			h.closes = true
		case strings.EqualFold(token, "keep-alive"):
		case strings.EqualFold(token, "upgrade"):
			h.upgrade = upgrade
		case strings.EqualFold(token, "content-length"):
			// Framing is not the app's to take away.
		default:
			kept := h.fields[:0]
			for _, f := range h.fields {
				if !strings.EqualFold(f.Name, token) {
					kept = append(kept, f)
				}
			}
			h.fields = kept
		}
	}
}

// tokens yields the elements of a comma-separated list.
func tokens(list string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for list != "" {
			var token string
			token, list, _ = strings.Cut(list, ",")
			if token = trimSpace(token); token != "" && !yield(token) {
				return
			}
		}
	}
}

// hasToken reports whether a comma-separated list has the element.
func hasToken(list, token string) bool {
	for t := range tokens(list) {
		if strings.EqualFold(t, token) {
			return true
		}
	}
	return false
}

// cutLine takes a line off text. The line ends with LF; a CR before it is dropped.
// Lenient here on purpose (RFC 9112, section 2.2): a bare LF in a head is common
// and cannot be read in two ways, unlike in chunk framing.
func cutLine(text string) (line, rest string, ok bool) {
	i := strings.IndexByte(text, '\n')
	if i < 0 {
		return "", "", false
	}
	line, rest = text[:i], text[i+1:]
	if n := len(line); n > 0 && line[n-1] == '\r' {
		line = line[:n-1]
	}
	return line, rest, true
}

func parseStatusLine(line string, h *head) error {
	const version = "HTTP/1."
	if len(line) < len("HTTP/1.1 200") || line[:len(version)] != version {
		return errStatusLine
	}
	switch line[7] {
	case '0', '1':
		h.minor = int(line[7] - '0')
	default:
		return errStatusLine
	}
	code := line[9:12]
	if line[8] != ' ' || !isDigit(code[0]) || !isDigit(code[1]) || !isDigit(code[2]) {
		return errStatusLine
	}
	h.status = int(code[0]-'0')*100 + int(code[1]-'0')*10 + int(code[2]-'0')
	if h.status < 100 {
		return errStatusLine
	}
	reason := line[12:]
	if reason != "" && reason[0] != ' ' || !validValue(reason) {
		return errStatusLine
	}
	return nil
}

// parseField parses one field line (RFC 9112, section 5).
func parseField(line string) (Field, error) {
	colon := strings.IndexByte(line, ':')
	if colon <= 0 || !validName(line[:colon]) {
		return Field{}, errFieldLine
	}
	value := trimSpace(line[colon+1:])
	if !validValue(value) {
		return Field{}, errFieldLine
	}
	return Field{Name: textproto.CanonicalMIMEHeaderKey(line[:colon]), Value: value}, nil
}

// parseTrailer parses a trailer section, empty line included. Fields that would
// speak about framing, routing or the connection are dropped (RFC 9110, section
// 6.5.1).
func parseTrailer(text string) ([]Field, error) {
	var fields []Field
	for {
		line, rest, ok := cutLine(text)
		if !ok {
			return nil, errFieldLine
		}
		if line == "" {
			return fields, nil
		}
		f, err := parseField(line)
		if err != nil {
			return nil, err
		}
		if trailerAllowed(f.Name) {
			fields = append(fields, f)
		}
		text = rest
	}
}

// trailerAllowed reports whether a field, in canonical form, may be in a trailer.
func trailerAllowed(name string) bool {
	switch name {
	case "Content-Length", "Transfer-Encoding", "Host", "Connection", "Keep-Alive", "Te", "Trailer", "Upgrade",
		"Content-Encoding", "Content-Type", "Content-Range", "Authorization", "Set-Cookie", "Cookie", "Expect",
		"Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization":
		return false
	}
	return true
}

// parseLength parses Content-Length: digits only, and it fits.
func parseLength(s string) (int64, error) {
	if s == "" || len(s) > 18 {
		return 0, errFraming
	}
	var n int64
	for i := range len(s) {
		if !isDigit(s[i]) {
			return 0, errFraming
		}
		n = n*10 + int64(s[i]-'0')
	}
	return n, nil
}

// keepAliveTimeout finds timeout=N in a Keep-Alive field, -1 without one.
func keepAliveTimeout(v string) int {
	for token := range tokens(v) {
		name, value, _ := strings.Cut(token, "=")
		if !strings.EqualFold(trimSpace(name), "timeout") {
			continue
		}
		if n, err := strconv.Atoi(trimSpace(value)); err == nil && n >= 0 {
			return n
		}
	}
	return -1
}

func trimSpace(s string) string {
	for s != "" && (s[0] == ' ' || s[0] == '\t') {
		s = s[1:]
	}
	for s != "" && (s[len(s)-1] == ' ' || s[len(s)-1] == '\t') {
		s = s[:len(s)-1]
	}
	return s
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// validName reports whether s is a token (RFC 9110, section 5.6.2).
func validName(s string) bool {
	for i := range len(s) {
		if !isTokenByte(s[i]) {
			return false
		}
	}
	return s != ""
}

// isTokenByte reports whether c may be in a token.
func isTokenByte(c byte) bool {
	const marks = 1<<'!' | 1<<'#' | 1<<'$' | 1<<'%' | 1<<'&' | 1<<'\'' | 1<<'*' | 1<<'+' | 1<<'-' | 1<<'.'
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', isDigit(c):
		return true
	case c < 64:
		return uint64(marks)>>c&1 != 0
	}
	return c == '^' || c == '_' || c == '`' || c == '|' || c == '~'
}

// validValue reports whether s has no control character but HTAB: no CR, LF or NUL.
func validValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}
