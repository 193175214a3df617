package e2e

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"

	"wormhole/edge/edgetest"
	"wormhole/shared/protocol"
)

// wiretap sits between agents and an edge, ends TLS on both sides, and sees every
// frame in the order of the wire. It may change what it passes on.
type wiretap struct {
	// greeting changes the payload of the hello or of its answer; nil for no change.
	greeting func(protocol.Type, []byte) []byte
	// tunnel is called for each new tunnel and returns what is asked for each of its
	// frames, by one goroutine for each direction: it returns what to pass on.
	tunnel func() func(fromEdge bool, f muxFrame) []muxFrame

	addr   string // where agents dial
	target string
	server *tls.Config
	client *tls.Config
}

// muxFrame is a frame of yamux.
type muxFrame struct {
	head [12]byte // version u8, type u8, flags u16, stream u32, length u32
	body []byte   // of data frames
}

// controlStream is the number of the stream that carries control messages: the
// agent opens it first.
const controlStream = 1

func (f *muxFrame) data() bool     { return f.head[1] == 0 }
func (f *muxFrame) opens() bool    { return f.head[3]&1 != 0 }
func (f *muxFrame) stream() uint32 { return binary.BigEndian.Uint32(f.head[4:]) }

// with is the frame with another body.
func (f *muxFrame) with(body []byte) muxFrame {
	g := muxFrame{head: f.head, body: body}
	binary.BigEndian.PutUint32(g.head[8:], uint32(len(body)))
	return g
}

// start begins to relay to target, an edge whose certificate roots verify. Agents
// must trust ca.
func (w *wiretap) start(t *testing.T, ca *edgetest.CA, target string, roots *x509.CertPool) {
	t.Helper()
	cert, key := ca.Issue(t, "edge.localhost", "localhost")
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	w.server = &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{protocol.ALPN}, MinVersion: tls.VersionTLS13}
	w.client = &tls.Config{RootCAs: roots, ServerName: "edge.localhost", NextProtos: []string{protocol.ALPN}, MinVersion: tls.VersionTLS13}
	w.target = target
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.addr = l.Addr().String()
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex // guards conns and closed
		conns []net.Conn
		over  bool
	)
	keep := func(c net.Conn) bool {
		mu.Lock()
		defer mu.Unlock()
		if over {
			_ = c.Close()
			return false
		}
		conns = append(conns, c)
		return true
	}
	wg.Go(func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			if keep(raw) {
				wg.Go(func() { w.relay(raw, keep) })
			}
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		over = true
		for _, c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
}

func (w *wiretap) relay(raw net.Conn, keep func(net.Conn) bool) {
	agent := tls.Server(raw, w.server)
	defer agent.Close()
	if agent.Handshake() != nil {
		return
	}
	edge, err := tls.Dial("tcp", w.target, w.client)
	if err != nil || !keep(edge) {
		return
	}
	defer edge.Close()
	if w.greet(edge, agent, protocol.MaxHello) != nil || w.greet(agent, edge, protocol.MaxMessage) != nil {
		return
	}
	each := w.tunnel()
	var wg sync.WaitGroup
	wg.Go(func() {
		pump(edge, agent, func(f muxFrame) []muxFrame { return each(false, f) })
		_ = edge.Close()
	})
	pump(agent, edge, func(f muxFrame) []muxFrame { return each(true, f) })
	_ = agent.Close()
	wg.Wait()
}

func (w *wiretap) greet(to io.Writer, from io.Reader, limit int) error {
	typ, payload, err := protocol.ReadMessage(from, limit)
	if err != nil {
		return err
	}
	if w.greeting != nil {
		payload = w.greeting(typ, payload)
	}
	return protocol.WriteMessage(to, typ, payload)
}

// pump passes frames on until an end fails.
func pump(to io.Writer, from io.Reader, each func(muxFrame) []muxFrame) {
	in, out := bufio.NewReaderSize(from, 64<<10), bufio.NewWriterSize(to, 64<<10)
	for {
		var f muxFrame
		if _, err := io.ReadFull(in, f.head[:]); err != nil {
			return
		}
		if f.data() {
			f.body = make([]byte, binary.BigEndian.Uint32(f.head[8:]))
			if _, err := io.ReadFull(in, f.body); err != nil {
				return
			}
		}
		for _, f := range each(f) {
			_, _ = out.Write(f.head[:])
			_, _ = out.Write(f.body)
		}
		if in.Buffered() == 0 && out.Flush() != nil {
			return
		}
	}
}

// messages cuts the control stream into messages. It may be fed one direction only.
type messages struct{ rest []byte }

// feed returns the messages that data completes, each with its header.
func (m *messages) feed(data []byte) (whole [][]byte) {
	m.rest = append(m.rest, data...)
	for len(m.rest) >= 4 {
		n := 4 + (int(m.rest[1])<<16 | int(m.rest[2])<<8 | int(m.rest[3]))
		if len(m.rest) < n {
			break
		}
		whole = append(whole, m.rest[:n:n])
		m.rest = m.rest[n:]
	}
	return whole
}
