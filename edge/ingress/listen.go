package ingress

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"syscall"
)

// Addrs are the addresses listened on, with their real ports. A field is nil when
// there is no such listener.
type Addrs struct {
	HTTPS net.Addr // TCP
	QUIC  net.Addr // UDP
	HTTP  net.Addr // TCP, without TLS
}

// Listen binds all addresses, or none: its error names every one that could not be
// bound, with the flag that says it.
func (in *Ingress) Listen() error {
	if in.https != nil {
		return errors.New("ingress: Listen was called twice")
	}
	var faults []error
	httpsListener, packet, err := in.listenHTTPS()
	if err != nil {
		faults = append(faults, err)
	}
	plain := in.cfg.HTTPListener
	if plain == nil && in.cfg.HTTP != "" {
		plain, err = net.Listen("tcp", in.cfg.HTTP)
		if err != nil {
			faults = append(faults, listenError("--http", in.cfg.HTTP, err))
		}
	}
	closeAll := func() {
		for _, c := range []io.Closer{httpsListener, packet, plain} {
			if c != nil {
				_ = c.Close()
			}
		}
	}
	if err := errors.Join(faults...); err != nil {
		closeAll()
		return err
	}
	in.https, in.packet, in.http = httpsListener, packet, plain
	in.openTCP()
	if packet != nil && in.cfg.QUICAfter == nil {
		if err := in.openQUIC(); err != nil {
			closeAll()
			in.https, in.packet, in.http = nil, nil, nil
			return fmt.Errorf("listen on --https %s (udp): %w", packet.LocalAddr(), err)
		}
	}
	return nil
}

// listenHTTPS binds the TCP port and the UDP port of the same number.
func (in *Ingress) listenHTTPS() (net.Listener, net.PacketConn, error) {
	listener, packet := in.cfg.HTTPSListener, in.cfg.QUICConn
	address := in.cfg.HTTPS
	// With port 0 the kernel may choose a TCP port whose UDP twin is taken.
	const tries = 16
	for try := 1; ; try++ {
		var err error
		l := listener
		if l == nil {
			if l, err = net.Listen("tcp", address); err != nil {
				return nil, nil, listenError("--https", address, err)
			}
		}
		if in.cfg.DisableQUIC {
			return l, nil, nil
		}
		if packet != nil {
			return l, packet, nil
		}
		p, err := net.ListenPacket("udp", l.Addr().String())
		if err == nil {
			return l, p, nil
		}
		_ = l.Close()
		if listener != nil || try == tries || !anyPort(address) {
			return nil, nil, listenError("--https (udp)", l.Addr().String(), err)
		}
	}
}

func anyPort(address string) bool {
	_, port, err := net.SplitHostPort(address)
	return err == nil && (port == "0" || port == "")
}

// listenError names the flag and says in plain words what a person can mend.
func listenError(flag, address string, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("listen on %s %s: the port is taken by another program: %w", flag, address, err)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("listen on %s %s: a port below 1024 needs a privilege (CAP_NET_BIND_SERVICE): %w", flag, address, err)
	}
	return fmt.Errorf("listen on %s %s: %w", flag, address, err)
}

// Addrs returns the addresses listened on; before Listen they are nil.
func (in *Ingress) Addrs() Addrs {
	var a Addrs
	if in.https != nil {
		a.HTTPS = in.https.Addr()
	}
	if in.packet != nil {
		a.QUIC = in.packet.LocalAddr()
	}
	if in.http != nil {
		a.HTTP = in.http.Addr()
	}
	return a
}

// Sockets returns the open sockets, to be passed to a successor process. Those that
// are not open are nil.
func (in *Ingress) Sockets() (https net.Listener, quic net.PacketConn, http net.Listener) {
	return in.https, in.packet, in.http
}

// altSvcValue is what tells clients of HTTP/3 (RFC 7838). They remember it for a
// day, so that an edge that loses its UDP port is not asked in vain for longer.
func altSvcValue(port int) string {
	return `h3=":` + strconv.Itoa(port) + `"; ma=86400`
}

func portOf(addr net.Addr) int {
	ap, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return 0
	}
	return int(ap.Port())
}
