package process

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// socket is one listening TCP socket.
type socket struct {
	addr  netip.AddrPort
	inode uint64
}

// listenSockets returns the listening TCP sockets of this network namespace. It
// asks the kernel for just these; where that is not to be had, as in sandboxes,
// it reads the tables in /proc, for which the kernel walks its hash of all
// connections, about a millisecond on an idle machine.
func listenSockets() ([]socket, error) {
	if found, err := askListeners(); err == nil {
		return found, nil
	}
	return readListeners()
}

// askListeners asks over netlink, see sock_diag(7).
func askListeners() ([]socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	defer unix.Close(fd)
	// The kernel answers at once; whoever imitates it shall not keep us waiting.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200_000}); err != nil {
		return nil, fmt.Errorf("limit netlink's time: %w", err)
	}
	var all []socket
	buf := make([]byte, 32<<10)
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		if err := unix.Sendto(fd, listenRequest(family), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return nil, fmt.Errorf("ask netlink: %w", err)
		}
		for more := true; more; {
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("read netlink: %w", err)
			}
			if all, more, err = appendAnswer(all, buf[:n]); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

// listenRequest is an nlmsghdr and an inet_diag_req_v2 for a dump of all sockets
// in state LISTEN.
func listenRequest(family byte) []byte {
	const (
		sockDiagByFamily = 20
		tcpListen        = 10
		size             = unix.SizeofNlMsghdr + 56
	)
	b := make([]byte, 0, size)
	b = binary.NativeEndian.AppendUint32(b, size)
	b = binary.NativeEndian.AppendUint16(b, sockDiagByFamily)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0) // sequence and port: the kernel fills in
	b = append(b, family, unix.IPPROTO_TCP, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, 1<<tcpListen)
	return b[:size] // any address
}

var errNetlink = errors.New("netlink answered with an error")

// appendAnswer adds the sockets of one datagram of the answer, and tells
// whether more datagrams follow.
func appendAnswer(all []socket, b []byte) (_ []socket, more bool, err error) {
	const (
		message = 72 // size of inet_diag_msg
		port    = 4  // offsets in it
		source  = 8
		inode   = 68
	)
	for len(b) >= unix.SizeofNlMsghdr {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return nil, false, errNetlink
		}
		body := b[unix.SizeofNlMsghdr:size]
		switch binary.NativeEndian.Uint16(b[4:]) {
		case unix.NLMSG_DONE:
			return all, false, nil
		case unix.NLMSG_ERROR:
			return nil, false, errNetlink
		default:
			if len(body) < message {
				return nil, false, errNetlink
			}
			width := 4
			if body[0] == unix.AF_INET6 {
				width = 16
			}
			addr, _ := netip.AddrFromSlice(body[source : source+width])
			all = append(all, socket{
				addr:  netip.AddrPortFrom(addr, binary.BigEndian.Uint16(body[port:])),
				inode: uint64(binary.NativeEndian.Uint32(body[inode:])),
			})
		}
		b = b[min(len(b), (size+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)):]
	}
	return all, true, nil
}
