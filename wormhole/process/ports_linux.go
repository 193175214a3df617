package process

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

// socket is one listening TCP socket as /proc/net/tcp shows it.
type socket struct {
	addr  netip.AddrPort
	inode uint64
}

// rowsAfterListeners is how many rows of other states are read in search of a
// further listener. Linux lists listeners first, so that a host with 100,000
// connections costs no more than an idle one; other kernels may mix them.
const rowsAfterListeners = 1024

// readListeners returns the listening TCP sockets of this network namespace.
func readListeners() ([]socket, error) {
	var all []socket
	for _, name := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		file, err := os.Open(name)
		if errors.Is(err, os.ErrNotExist) && name == "/proc/net/tcp6" { // no IPv6 here
			continue
		}
		if err != nil {
			return nil, err
		}
		found, err := parseListeners(file)
		file.Close()
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}

// parseListeners reads rows of the form
// "0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000 UID 0 INODE ...".
// Rows it does not understand are passed over.
func parseListeners(r io.Reader) ([]socket, error) {
	const listen = "0A"
	var found []socket
	rows := bufio.NewScanner(r)
	for others := 0; others < rowsAfterListeners && rows.Scan(); {
		fields := bytes.Fields(rows.Bytes())
		if len(fields) < 10 || string(fields[3]) != listen {
			others++
			continue
		}
		addr, ok := parseAddr(fields[1])
		inode, err := strconv.ParseUint(string(fields[9]), 10, 64)
		if ok && err == nil {
			found = append(found, socket{addr, inode})
		}
	}
	return found, rows.Err()
}

// parseAddr reads an address written as 32-bit words, each in the byte order of
// the machine, and a port, all in hexadecimal.
func parseAddr(text []byte) (netip.AddrPort, bool) {
	host, portText, ok := bytes.Cut(text, []byte(":"))
	if !ok || (len(host) != 8 && len(host) != 32) {
		return netip.AddrPort{}, false
	}
	var buf [16]byte
	n, err := hex.Decode(buf[:], host)
	if err != nil {
		return netip.AddrPort{}, false
	}
	for word := buf[:n]; len(word) > 0; word = word[4:] {
		binary.NativeEndian.PutUint32(word, binary.BigEndian.Uint32(word))
	}
	port, err := strconv.ParseUint(string(portText), 16, 16)
	if err != nil {
		return netip.AddrPort{}, false
	}
	addr, _ := netip.AddrFromSlice(buf[:n])
	return netip.AddrPortFrom(addr, uint16(port)), true
}

// listeningSockets returns the inodes of all listeners, or nil if they cannot
// be read.
func listeningSockets() map[uint64]struct{} {
	sockets, err := readListeners()
	if err != nil {
		return nil
	}
	known := make(map[uint64]struct{}, len(sockets))
	for _, s := range sockets {
		known[s.inode] = struct{}{}
	}
	return known
}

func (p *Process) listeners() ([]netip.AddrPort, error) {
	if p.exited() {
		return nil, nil
	}
	sockets, err := readListeners()
	if err != nil || len(sockets) == 0 {
		return nil, err
	}
	// Everything below this program is the app's, orphans included.
	owned := make(map[uint64]struct{})
	hidden := false
	below(os.Getpid(), func(pid int) {
		if err := socketsOf(pid, owned); err != nil {
			// Either it has just ended, or it is not ours to look into.
			if m, ok := readMember(pid); !ok || !m.dead() {
				hidden = hidden || ok || pid == p.pid
			}
		}
	})
	found := addresses(sockets, func(s socket) bool {
		_, ok := owned[s.inode]
		return ok
	})
	if len(found) > 0 || !hidden {
		return found, nil
	}
	own := make(map[uint64]struct{})
	if err := socketsOf(os.Getpid(), own); err != nil {
		return nil, err
	}
	return addresses(sockets, func(s socket) bool {
		_, before := p.known[s.inode]
		_, mine := own[s.inode]
		return !before && !mine
	}), nil
}

// addresses returns the addresses of the wanted sockets, sorted and distinct.
func addresses(sockets []socket, wanted func(socket) bool) []netip.AddrPort {
	var found []netip.AddrPort
	for _, s := range sockets {
		if wanted(s) {
			found = append(found, s.addr)
		}
	}
	slices.SortFunc(found, netip.AddrPort.Compare)
	return slices.Compact(found)
}

// socketsOf adds the inodes of the sockets that a process holds to set.
func socketsOf(pid int, set map[uint64]struct{}) error {
	name := "/proc/" + strconv.Itoa(pid) + "/fd"
	dir, err := os.Open(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	descriptors, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, fd := range descriptors {
		target, err := os.Readlink(name + "/" + fd)
		if errors.Is(err, os.ErrPermission) {
			return err
		}
		if err != nil { // closed meanwhile
			continue
		}
		text, ok := strings.CutPrefix(target, "socket:[")
		if !ok {
			continue
		}
		if inode, err := strconv.ParseUint(strings.TrimSuffix(text, "]"), 10, 64); err == nil {
			set[inode] = struct{}{}
		}
	}
	return nil
}
