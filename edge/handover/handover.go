// Package handover passes the open sockets of one edge process to the next, so
// that a new binary takes over the same ports without a refused connection.
//
// The successor is a child that inherits the descriptors. TCP listeners are shared
// by both processes from then on: whoever accepts, serves. UDP cannot be shared,
// since QUIC packets of one connection must reach the process that holds it; the
// successor leaves it alone until its predecessor has gone.
//
// One stream socket joins the two: the successor writes one byte when its doors
// are open, and the predecessor's end of it closes when that process ends.
package handover

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// env names the variable that tells a successor what it inherits, as
// name=descriptor pairs.
const env = "EDGE_HANDOVER"

// Names of what is handed over.
const (
	HTTPS = "https" // TCP
	HTTP  = "http"  // TCP
	Admin = "admin" // TCP
	QUIC  = "quic"  // UDP
	Raw   = "tcp/"  // TCP, with the host of the site that owns it
	DNS   = "dns"   // TCP
	// DNSPackets is UDP. Each query stands alone, so both processes may answer.
	DNSPackets = "dnspackets"
	link       = "link" // the stream socket that joins the processes
)

// Sockets are what a successor inherits; a nil field was not handed over.
type Sockets struct {
	HTTPS, HTTP, Admin, DNS net.Listener
	QUIC, DNSPackets        net.PacketConn
	Raw                     map[string]net.Listener // by host

	link net.Conn
	gone chan struct{}
}

// Inherited returns what the predecessor handed over, nil if there is none. It
// takes the variable out of the environment. Call it once.
func Inherited() (*Sockets, error) {
	text, ok := os.LookupEnv(env)
	if !ok {
		return nil, nil
	}
	_ = os.Unsetenv(env)
	s := &Sockets{Raw: map[string]net.Listener{}, gone: make(chan struct{})}
	for _, pair := range strings.Split(text, ",") {
		name, number, _ := strings.Cut(pair, "=")
		fd, err := strconv.Atoi(number)
		if err != nil || fd < 3 {
			return nil, fmt.Errorf("%s: %q is not name=descriptor", env, pair)
		}
		if err := s.adopt(name, os.NewFile(uintptr(fd), name)); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", env, pair, err)
		}
	}
	if s.link == nil {
		return nil, fmt.Errorf("%s: no link to the predecessor", env)
	}
	return s, nil
}

func (s *Sockets) adopt(name string, f *os.File) (err error) {
	defer f.Close()
	if host, ok := strings.CutPrefix(name, Raw); ok {
		s.Raw[host], err = net.FileListener(f)
		return err
	}
	switch name {
	case HTTPS:
		s.HTTPS, err = net.FileListener(f)
	case HTTP:
		s.HTTP, err = net.FileListener(f)
	case Admin:
		s.Admin, err = net.FileListener(f)
	case QUIC:
		s.QUIC, err = net.FilePacketConn(f)
	case DNS:
		s.DNS, err = net.FileListener(f)
	case DNSPackets:
		s.DNSPackets, err = net.FilePacketConn(f)
	case link:
		s.link, err = net.FileConn(f)
	default:
		err = errors.New("unknown name")
	}
	return err
}

// Opened tells the predecessor that the doors are open here, and watches for its
// end. It is called once.
func (s *Sockets) Opened() error {
	_, err := s.link.Write([]byte{1})
	go func() { // ends with the predecessor
		_, _ = io.Copy(io.Discard, s.link)
		_ = s.link.Close()
		close(s.gone)
	}()
	return err
}

// Gone is closed when the predecessor has ended.
func (s *Sockets) Gone() <-chan struct{} { return s.gone }

// Successor is a process that has taken over.
type Successor struct {
	PID  int
	link net.Conn // kept open: its end is how the successor learns of ours
}

// Start starts path with args and this process's environment, hands it sockets by
// name, and waits until its doors are open. If that does not happen within
// patience, the process is killed and the error says what it was; nothing has
// changed then. The successor outlives the caller.
func Start(path string, args []string, sockets map[string]any, patience time.Duration) (*Successor, error) {
	mine, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	cmd := exec.Command(path, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	names := []string{link + "=3"}
	cmd.ExtraFiles = []*os.File{theirs}
	for name, socket := range sockets {
		filer, ok := socket.(interface{ File() (*os.File, error) })
		if !ok {
			_ = mine.Close()
			return nil, fmt.Errorf("the %s socket cannot be handed over", name)
		}
		f, err := filer.File()
		if err != nil {
			_ = mine.Close()
			return nil, fmt.Errorf("hand over the %s socket: %w", name, err)
		}
		defer f.Close()
		names = append(names, fmt.Sprintf("%s=%d", name, 3+len(cmd.ExtraFiles)))
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	cmd.Env = append(os.Environ(), env+"="+strings.Join(names, ","))
	err = cmd.Start()
	for _, socket := range sockets {
		keepNonblocking(socket)
	}
	if err != nil {
		_ = mine.Close()
		return nil, fmt.Errorf("start successor: %w", err)
	}
	_ = theirs.Close()
	_ = mine.SetReadDeadline(time.Now().Add(patience))
	var word [1]byte
	if _, err := io.ReadFull(mine, word[:]); err != nil {
		_ = mine.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = fmt.Errorf("its doors were not open after %s", patience)
		} else {
			err = fmt.Errorf("it ended: %s", cmd.ProcessState)
		}
		return nil, fmt.Errorf("the successor did not take over: %w", err)
	}
	go func() { _ = cmd.Wait() }() // reaps it should it end before us; ends with this process
	return &Successor{PID: cmd.Process.Pid, link: mine}, nil
}

// keepNonblocking undoes what passing a descriptor to a child does: the mode
// belongs to the socket, which both ends share.
func keepNonblocking(socket any) {
	sc, ok := socket.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { _ = syscall.SetNonblock(int(fd), true) })
}

func socketPair() (net.Conn, *os.File, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make link: %w", err)
	}
	syscall.CloseOnExec(fds[0])
	syscall.CloseOnExec(fds[1])
	f := os.NewFile(uintptr(fds[0]), link)
	defer f.Close()
	mine, err := net.FileConn(f)
	if err != nil {
		_ = syscall.Close(fds[1])
		return nil, nil, fmt.Errorf("make link: %w", err)
	}
	return mine, os.NewFile(uintptr(fds[1]), link), nil
}
