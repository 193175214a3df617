package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	device = "link0"
	// deviceQueue is how many packets the kernel may hold before this process has
	// read them: many, so that only the link's own queue drops.
	deviceQueue = 10_000
	// tick is how exactly packets are delivered. Without it the threads would wake
	// for each packet of a busy link.
	tick = 100 * time.Microsecond
)

// Side is one end of a link: a network namespace with loopback and the link. Its
// methods may be called concurrently.
type Side struct {
	// Addr is its address on the link; the other side reaches it there.
	Addr netip.Addr

	space *os.File // the namespace; it exists while this is open
	home  *os.File // the namespace of the process
	tun   int
	stop  int // an eventfd; readable once the link is to end
	once  sync.Once
}

func openSide(addr, congestion string) (s *Side, err error) {
	s = &Side{Addr: netip.MustParseAddr(addr), tun: -1, stop: -1}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("link: %w", err), s.close())
			s = nil
		}
	}()
	if os.Geteuid() != 0 {
		return s, errors.New("network namespaces and TUN devices need root")
	}
	if s.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return s, err
	}
	err = onThread(func() (restored bool, err error) {
		if s.home, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return true, err
		}
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return true, fmt.Errorf("new network namespace: %w", err)
		}
		if s.space, err = os.Open("/proc/thread-self/ns/net"); err == nil {
			err = s.configure(congestion)
		}
		return unix.Setns(int(s.home.Fd()), unix.CLONE_NEWNET) == nil, err
	})
	return s, err
}

// onThread runs f on a thread that is used for nothing else meanwhile, and for
// nothing ever again if f could not restore it.
func onThread(f func() (restored bool, err error)) error {
	done := make(chan error, 1)
	go func() { // ends with f
		runtime.LockOSThread() // without Unlock, the thread ends with the goroutine
		restored, err := f()
		if restored {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// Do calls f on a thread inside the namespace: sockets that f opens, and programs
// that it starts, belong there and stay. f must open them itself, not in another
// goroutine; names that need resolving start some.
func (s *Side) Do(f func() error) error {
	return onThread(func() (bool, error) {
		if err := unix.Setns(int(s.space.Fd()), unix.CLONE_NEWNET); err != nil {
			return true, fmt.Errorf("enter the network namespace: %w", err)
		}
		err := f()
		return unix.Setns(int(s.home.Fd()), unix.CLONE_NEWNET) == nil, err
	})
}

// DialContext dials from this side. addr must have an IP address, not a name.
func (s *Side) DialContext(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	if _, err := netip.ParseAddrPort(addr); err != nil {
		return nil, fmt.Errorf("link: dial: %w", err)
	}
	err = s.Do(func() error {
		var dialer net.Dialer
		conn, err = dialer.DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// Listen listens on this side, with port 0 on a free one.
func (s *Side) Listen(network, addr string) (listener net.Listener, err error) {
	err = s.Do(func() error {
		listener, err = net.Listen(network, addr)
		return err
	})
	return listener, err
}

// Start starts a program inside.
func (s *Side) Start(command *exec.Cmd) error { return s.Do(command.Start) }

// configure runs inside the new namespace.
func (s *Side) configure(congestion string) error {
	for path, value := range map[string]string{
		// What one connection learns of the link must not help or harm the next.
		"ipv4/tcp_no_metrics_save": "1",
		// No router solicitations among the counted packets.
		"ipv6/conf/all/disable_ipv6":     "1",
		"ipv6/conf/default/disable_ipv6": "1",
	} {
		err := os.WriteFile("/proc/sys/net/"+path, []byte(value), 0)
		if strings.HasPrefix(path, "ipv6/") && errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return fmt.Errorf("set net/%s to %s: %w", path, value, err)
		}
	}
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(socket)
	if err := s.openTUN(); err != nil {
		return err
	}
	mask := net.CIDRMask(24, 32)
	addr := s.Addr.As4()
	for _, step := range []struct {
		device  string
		request uint
		set     func(*unix.Ifreq) error
	}{
		{"lo", unix.SIOCSIFFLAGS, number16(unix.IFF_UP | unix.IFF_RUNNING)},
		{device, unix.SIOCSIFMTU, number32(MTU)},
		{device, unix.SIOCSIFTXQLEN, number32(deviceQueue)},
		{device, unix.SIOCSIFADDR, inet4(addr[:])},
		{device, unix.SIOCSIFNETMASK, inet4(mask)},
		{device, unix.SIOCSIFFLAGS, number16(unix.IFF_UP | unix.IFF_RUNNING)},
	} {
		request, err := unix.NewIfreq(step.device)
		if err == nil {
			err = step.set(request)
		}
		if err == nil {
			err = unix.IoctlIfreq(socket, step.request, request)
		}
		if err != nil {
			return fmt.Errorf("set up %s (%#x): %w", step.device, step.request, err)
		}
	}
	// Of the route, because only the first namespace of a machine may make any that is
	// known its default (tcp_allowed_congestion_control of Documentation/networking/ip-sysctl.rst).
	route := exec.Command("ip", "route", "replace", netip.PrefixFrom(s.Addr, 24).Masked().String(), "dev", device, "src", s.Addr.String(), "congctl", congestion)
	if output, err := route.CombinedOutput(); err != nil {
		return fmt.Errorf("choose congestion control %s: %w: %s", congestion, err, bytes.TrimSpace(output))
	}
	return nil
}

func number16(v uint16) func(*unix.Ifreq) error {
	return func(r *unix.Ifreq) error { r.SetUint16(v); return nil }
}

func number32(v uint32) func(*unix.Ifreq) error {
	return func(r *unix.Ifreq) error { r.SetUint32(v); return nil }
}

func inet4(v []byte) func(*unix.Ifreq) error {
	return func(r *unix.Ifreq) error { return r.SetInet4Addr(v) }
}

// openTUN makes the device; it goes when the descriptor is closed. See
// Documentation/networking/tuntap.rst of the kernel.
func (s *Side) openTUN() error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open /dev/net/tun: %w", err)
	}
	s.tun = fd
	request, err := unix.NewIfreq(device)
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return fmt.Errorf("make a TUN device: %w", err)
	}
	return nil
}

// interrupt makes the thread that reads from this side end.
func (s *Side) interrupt() { _, _ = unix.Write(s.stop, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }

// close lets device and namespace go. It is idempotent.
func (s *Side) close() error {
	var faults []error
	s.once.Do(func() {
		for _, fd := range []int{s.tun, s.stop} {
			if fd >= 0 {
				faults = append(faults, unix.Close(fd))
			}
		}
		for _, file := range []*os.File{s.space, s.home} {
			if file != nil {
				faults = append(faults, file.Close())
			}
		}
	})
	return errors.Join(faults...)
}

// carry moves packets from one side to the other until from is interrupted.
func carry(d *direction, from, to *Side) {
	_ = onThread(func() (restored bool, err error) {
		// Programs that want all cores must not delay the link; where neither is allowed,
		// Stats.Late shows it.
		realtime := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: 1}
		if unix.SchedSetAttr(0, &realtime, 0) != nil {
			_ = unix.Setpriority(unix.PRIO_PROCESS, 0, -20)
		}
		_ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(time.Microsecond), 0, 0, 0)
		d.carry(from.tun, from.stop, to.tun)
		return false, nil
	})
}

func (d *direction) carry(from, stop, to int) {
	began := time.Now()
	now := func() int64 { return int64(time.Since(began)) }
	var underway transit
	ready := []unix.PollFd{{Fd: int32(from), Events: unix.POLLIN}, {Fd: int32(stop), Events: unix.POLLIN}}
	buffer := make([]byte, MTU+64)
	for {
		var wait *unix.Timespec // without end
		if next := underway.next(); next != nil {
			limit := unix.NsecToTimespec(max(next.due-now(), int64(tick)))
			wait = &limit
		}
		if _, err := unix.Ppoll(ready, wait, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		if ready[1].Revents != 0 || ready[0].Revents&(unix.POLLERR|unix.POLLNVAL) != 0 {
			return
		}
		for range 64 { // then look at what is due
			n, err := unix.Read(from, buffer)
			if err != nil {
				break // EAGAIN; a device that is gone interrupts, too
			}
			if n == 0 || n > MTU || buffer[0]>>4 != 4 {
				continue
			}
			if due, taken := d.take(now(), n); taken {
				underway.push(buffer[:n], due)
			}
		}
		at := now()
		for next := underway.next(); next != nil && next.due <= at+int64(tick); next = underway.next() {
			_, err := unix.Write(to, next.data[:next.size])
			d.arrived(at, next.due, next.size, err == nil)
			underway.pop()
		}
	}
}
