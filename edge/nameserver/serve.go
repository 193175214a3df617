package nameserver

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const headerSize = 12

// serveUDP answers datagrams until the socket closes.
func (s *Server) serveUDP() {
	buf, out := make([]byte, maxQuery), make([]byte, maxUDP)
	for {
		n, session, err := dns.ReadFromSessionUDP(s.packets, buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			// Such as an earlier answer that could not be delivered; were it lasting, this
			// must not turn into a busy loop.
			time.Sleep(time.Millisecond)
			continue
		}
		from := addrOf(session.RemoteAddr())
		answer := s.answer(buf[:n], from, true)
		if answer == nil {
			continue
		}
		wire, err := answer.PackBuffer(out)
		if err == nil {
			_, _ = dns.WriteToSessionUDP(s.packets, wire, session) // who asks again is answered again
		}
	}
}

// serveTCP answers one query of a connection.
func (s *Server) serveTCP(w dns.ResponseWriter, q *dns.Msg) {
	answer := s.reply(q, addrOf(w.RemoteAddr()), false)
	if answer == nil {
		_ = w.Close()
		return
	}
	_ = w.WriteMsg(answer)
}

// accept decides on the header of a query over TCP as answer does over UDP.
func accept(h dns.Header) dns.MsgAcceptAction {
	switch fault := faultOf(h); {
	case h.Bits&flagResponse != 0:
		return dns.MsgIgnore
	case fault == dns.RcodeNotImplemented:
		return dns.MsgRejectNotImplemented
	case fault != dns.RcodeSuccess:
		return dns.MsgReject
	}
	return dns.MsgAccept
}

func addrOf(a net.Addr) netip.Addr {
	var ap netip.AddrPort
	switch a := a.(type) {
	case *net.UDPAddr:
		ap = a.AddrPort()
	case *net.TCPAddr:
		ap = a.AddrPort()
	}
	return ap.Addr().Unmap().WithZone("")
}

// Connections that are open at once, in all and of one network.
const (
	mostConns = 512
	mostOfOne = 32
)

// door is a listener that closes at once what is too many, so that nobody can
// occupy it alone.
type door struct {
	net.Listener
	mu   sync.Mutex // guards all, of
	all  int
	open map[netip.Prefix]int
}

func newDoor(l net.Listener) *door { return &door{Listener: l, open: map[netip.Prefix]int{}} }

// Accept implements net.Listener.
func (d *door) Accept() (net.Conn, error) {
	for {
		conn, err := d.Listener.Accept()
		if err != nil {
			return nil, err
		}
		of := network(addrOf(conn.RemoteAddr()))
		if d.enter(of) {
			return &guest{Conn: conn, leave: sync.OnceFunc(func() { d.leave(of) })}, nil
		}
		_ = conn.Close()
	}
}

func (d *door) enter(of netip.Prefix) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.all >= mostConns || d.open[of] >= mostOfOne {
		return false
	}
	d.all++
	d.open[of]++
	return true
}

func (d *door) leave(of netip.Prefix) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all--
	if d.open[of]--; d.open[of] == 0 {
		delete(d.open, of)
	}
}

// guest is a connection that was let in.
type guest struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (g *guest) Close() error {
	g.leave()
	return g.Conn.Close()
}
