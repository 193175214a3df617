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
	"strconv"
)

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
