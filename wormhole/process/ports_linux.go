package process

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

// listeningSockets returns the inodes of all listeners, or nil if they cannot
// be read.
func listeningSockets() map[uint64]struct{} {
	sockets, err := listenSockets()
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
	sockets, err := listenSockets()
	if err != nil || len(sockets) == 0 {
		return nil, err
	}
	// Everything below this program is the app's, orphans included.
	owned := make(map[uint64]struct{})
	hidden := !procIsOurs()
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
	if err := readSockets("/proc/self/fd", own); err != nil {
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
			// ::ffff:a.b.c.d, as Java has it, takes IPv4 alone.
			found = append(found, netip.AddrPortFrom(s.addr.Addr().Unmap(), s.addr.Port()))
		}
	}
	slices.SortFunc(found, netip.AddrPort.Compare)
	return slices.Compact(found)
}

// socketsOf adds the inodes of the sockets that a process holds to set.
func socketsOf(pid int, set map[uint64]struct{}) error {
	return readSockets("/proc/"+strconv.Itoa(pid)+"/fd", set)
}

// readSockets is socketsOf for the folder of a process's descriptors.
func readSockets(name string, set map[uint64]struct{}) error {
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
