//go:build !linux

package link

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os/exec"
)

// Side is one end of a link, on Linux only.
type Side struct{ Addr netip.Addr }

var errNoLinux = errors.New("link: network namespaces and TUN devices need Linux")

func openSide(string, string) (*Side, error) { return nil, errNoLinux }

// Do fails: there is no link.
func (s *Side) Do(func() error) error { return errNoLinux }

// DialContext fails: there is no link.
func (s *Side) DialContext(context.Context, string, string) (net.Conn, error) { return nil, errNoLinux }

// Listen fails: there is no link.
func (s *Side) Listen(string, string) (net.Listener, error) { return nil, errNoLinux }

// Start fails: there is no link.
func (s *Side) Start(*exec.Cmd) error { return errNoLinux }

func (s *Side) interrupt()   {}
func (s *Side) close() error { return nil }

func carry(*direction, *Side, *Side) {}
