package proxy

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"time"

	"wormhole/edge/upstream"
	"wormhole/shared/pipe"
)

// wantsWebSocket reports whether the request asks to become a WebSocket (RFC 6455,
// section 4.1). No other protocol may be switched to, and only over HTTP/1.1.
func wantsWebSocket(r *http.Request) bool {
	upgrade := r.Header["Upgrade"]
	return len(upgrade) == 1 && strings.EqualFold(upgrade[0], "websocket") &&
		r.ProtoMajor == 1 && r.ProtoMinor == 1 && r.Method == http.MethodGet && r.ContentLength == 0 &&
		hasToken(r.Header["Connection"], "upgrade")
}

func hasToken(lists []string, token string) bool {
	for _, list := range lists {
		for t := range strings.SplitSeq(list, ",") {
			if strings.EqualFold(strings.TrimSpace(t), token) {
				return true
			}
		}
	}
	return false
}

// upgrade joins the client's connection and the app's after the app's 101. Until
// here no byte that the client sent after its head has been passed on.
func (v *visit) upgrade(ctx context.Context, resp *upstream.Response) {
	v.begun = true
	v.rec.Status = http.StatusSwitchingProtocols
	conn, buffered, err := http.NewResponseController(v.w).Hijack()
	if err != nil {
		v.cut(err)
	}
	defer conn.Close()
	ctx, abort := context.WithCancel(ctx)
	defer abort()
	v.p.joined.add(v, abort)
	defer v.p.joined.remove(v)
	stream, first := resp.Hijack()
	head := appendSwitch(make([]byte, 0, 512), resp)
	head = append(head, first...)

	// Deadlines of the server do not hold for what follows.
	_ = conn.SetDeadline(time.Time{})
	_ = conn.SetWriteDeadline(time.Now().Add(v.rules.IdleTimeout))
	if _, err := conn.Write(head); err != nil {
		v.rec.Err = err
		return
	}
	_ = conn.SetWriteDeadline(time.Time{})

	client := pipe.Conn(conn)
	if n := buffered.Reader.Buffered(); n > 0 {
		early, _ := buffered.Peek(n)
		client = &resumed{Conn: conn, early: early}
	}
	used := v.site.Usage()
	v.joinedBytes = true
	v.p.cfg.Usage.Bytes(used, 0, int64(len(first)))
	result := pipe.JoinCounted(ctx, client, stream, v.p.cfg.StreamTimeout, func(in, out int) {
		v.p.cfg.Usage.Bytes(used, int64(in), int64(out))
	})
	v.body.read.Add(result.AToB)
	v.rec.BytesOut = int64(len(first)) + result.BToA
	if result.Err != nil && !errors.Is(result.Err, context.Canceled) {
		v.rec.Err = result.Err
	}
}

// appendSwitch appends the head of the 101 answer.
func appendSwitch(b []byte, resp *upstream.Response) []byte {
	b = append(b, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"...)
	for _, f := range resp.Fields {
		switch f.Name {
		case "Content-Length", "Transfer-Encoding", "Alt-Svc":
			continue
		}
		b = append(b, f.Name...)
		b = append(b, ": "...)
		b = append(b, f.Value...)
		b = append(b, "\r\n"...)
	}
	return append(b, "\r\n"...)
}

// resumed is a connection of which the server had already read some bytes.
type resumed struct {
	net.Conn
	early []byte
}

// Read returns the early bytes first.
func (c *resumed) Read(p []byte) (int, error) {
	if len(c.early) > 0 {
		n := copy(p, c.early)
		c.early = c.early[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// CloseWrite passes an END on.
func (c *resumed) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return pipe.ErrNoHalfClose
}

// NetConn is the connection below, for whoever wants to reset it.
func (c *resumed) NetConn() net.Conn { return c.Conn }
