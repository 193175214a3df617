package nameserver

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"time"
)

// Lengths in bytes (RFC 7873, section 4), and how far a cookie's time may be from
// ours (RFC 9018, section 4.3).
const (
	clientCookie = 8
	serverCookie = 16
	mostCookie   = 40
	cookieOld    = time.Hour
	cookieNew    = 5 * time.Minute
)

// cookies makes and checks server cookies, which prove that a client got an answer
// at its address before. The form is that of RFC 9018 with another hash: each edge
// has its own address and checks only its own cookies.
type cookies struct {
	key [32]byte // of this process
}

// check looks at the text of a cookie option, hexadecimal. good is false if its
// length is impossible; proven says that the client is at addr. reply is what goes
// into the answer.
func (c *cookies) check(text string, addr netip.Addr, now time.Time) (reply string, proven, good bool) {
	raw, err := hex.DecodeString(text)
	if err != nil || len(raw) != clientCookie && (len(raw) < clientCookie+8 || len(raw) > mostCookie) {
		return "", false, false
	}
	client, server := raw[:clientCookie], raw[clientCookie:]
	if len(server) == serverCookie && server[0] == 1 {
		age := now.Sub(time.Unix(int64(binary.BigEndian.Uint32(server[4:])), 0))
		proven = age <= cookieOld && age >= -cookieNew && hmac.Equal(server, c.make(client, server[:8], addr))
	}
	head := make([]byte, 8)
	head[0] = 1
	binary.BigEndian.PutUint32(head[4:], uint32(now.Unix()))
	return hex.EncodeToString(append(client[:clientCookie:clientCookie], c.make(client, head, addr)...)), proven, true
}

// make is head (version, reserved, time) and the proof.
func (c *cookies) make(client, head []byte, addr netip.Addr) []byte {
	h := hmac.New(sha256.New, c.key[:])
	h.Write(client)
	h.Write(head)
	ip := addr.As16()
	h.Write(ip[:])
	return h.Sum(append(make([]byte, 0, 8+sha256.Size), head...))[:serverCookie]
}
