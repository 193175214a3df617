package rig

import (
	"context"
	"errors"
	"io"
	"net"
	"os/exec"
)

// Place is where programs run and connections are made. The zero value is this
// machine's loopback; a network namespace is another.
type Place struct {
	// IP is the address at which the edge is reached; empty means 127.0.0.1.
	IP string
	// Do calls its argument inside the place; nil calls it here.
	Do func(func() error) error
	// Hosts is a file that programs started here find as /etc/hosts, which needs
	// root; empty leaves theirs.
	Hosts string
	// Env is added to the environment of programs started here.
	Env []string
}

func (p Place) ip() string {
	if p.IP == "" {
		return "127.0.0.1"
	}
	return p.IP
}

func (p Place) do(f func() error) error {
	if p.Do == nil {
		return f()
	}
	return p.Do(f)
}

// Start is Start in this place.
func (p Place) Start(name string, cmd *exec.Cmd, output io.Writer) (process *Process, err error) {
	if len(p.Env) > 0 {
		cmd.Env = append(cmd.Environ(), p.Env...)
	}
	if p.Hosts != "" {
		// A mount namespace of its own, entered by the very process that becomes the
		// program.
		args := append([]string{"-m", "--", "sh", "-c", `mount --bind "$0" /etc/hosts && exec "$@"`, p.Hosts, cmd.Path}, cmd.Args[1:]...)
		inside := exec.Command("unshare", args...)
		inside.Env, inside.Dir = cmd.Env, cmd.Dir
		cmd = inside
	}
	err = p.do(func() error {
		process, err = Start(name, cmd, output)
		return err
	})
	return process, err
}

// DialContext dials from this place. The host in addr must be an IP address.
func (p Place) DialContext(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	err = p.do(func() error {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// FreePort is an address of this place's loopback that nobody listened on a moment ago.
func (p Place) FreePort() (string, error) {
	ports, err := p.freePorts("127.0.0.1", 1)
	if err != nil {
		return "", err
	}
	return ports[0], nil
}

// freePorts holds all of them before it lets any go, so that they differ. Each is
// free for TCP and for UDP.
func (p Place) freePorts(ip string, n int) (addrs []string, err error) {
	err = p.do(func() error {
		for attempt := 0; len(addrs) < n && attempt < 10*n; attempt++ {
			tcp, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
			if err != nil {
				return err
			}
			defer tcp.Close()
			udp, err := net.ListenPacket("udp", tcp.Addr().String())
			if err != nil {
				continue
			}
			defer udp.Close()
			addrs = append(addrs, tcp.Addr().String())
		}
		return nil
	})
	if err == nil && len(addrs) < n {
		err = errors.New("no free ports on " + ip)
	}
	return addrs, err
}
