//go:build linux

package process

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// listening is an app that listens once told to.
type listening struct {
	*Process
	in  *os.File
	out *bufio.Scanner
}

// startListening starts an app that will listen on addrs; prefix may be a
// program that runs it.
func startListening(t *testing.T, s *Supervisor, env []string, prefix []string, addrs ...string) *listening {
	t.Helper()
	appIn, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, appOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); out.Close() })
	args := slices.Concat(prefix, []string{self(t), "role=listen"}, addrs)
	app := start(t, s, Command{Path: args[0], Args: args[1:], Env: append(os.Environ(), env...), Stdin: appIn, Stdout: appOut})
	appIn.Close()
	appOut.Close()
	return &listening{app, in, bufio.NewScanner(out)}
}

// listen tells the app to and returns its addresses, sorted.
func (l *listening) listen(t *testing.T) []netip.AddrPort {
	t.Helper()
	if _, err := io.WriteString(l.in, "go\n"); err != nil {
		t.Fatal(err)
	}
	var addrs []netip.AddrPort
	for l.out.Scan() && l.out.Text() != "done" {
		addrs = append(addrs, netip.MustParseAddrPort(l.out.Text()))
	}
	slices.SortFunc(addrs, netip.AddrPort.Compare)
	return addrs
}

func TestListeningPortsTellsWildcardFromLoopback(t *testing.T) {
	addrs := []string{"127.0.0.1:0", "0.0.0.0:0", "[::]:0", "127.0.0.1:0"}
	if l, err := net.Listen("tcp6", "[::1]:0"); err == nil {
		l.Close()
		addrs = append(addrs, "[::1]:0")
	}
	for name, prefix := range map[string][]string{
		"the app itself":               nil,
		"a child of the app":           {"sh", "-c", `"$0" "$@"; :`},
		"an orphan in its own session": {"sh", "-c", `exec 3<&0; (setsid "$0" "$@" <&3 3<&- &); exec sleep 1000 3<&-`},
	} {
		t.Run(name, func(t *testing.T) {
			other, err := net.Listen("tcp", "127.0.0.1:0") // ours, not the app's
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			app := startListening(t, supervise(t), nil, prefix, addrs...)
			if got, err := app.ListeningPorts(); len(got) > 0 || err != nil {
				t.Errorf("before: got %v, %v, want none", got, err)
			}
			want := app.listen(t)
			if len(want) != len(addrs) {
				t.Fatalf("the app listens on %v, want %d addresses", want, len(addrs))
			}
			got, err := app.ListeningPorts()
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("got %v, %v, want %v", got, err, want)
			}
			app.Kill()
			if got, err := app.ListeningPorts(); len(got) > 0 || err != nil {
				t.Errorf("after the end: got %v, %v, want none", got, err)
			}
		})
	}
}

func TestAnAppThatHidesItsDescriptorsIsFoundByWhatIsNew(t *testing.T) {
	// Whatever else begins to listen on the host meanwhile is as new as the app's.
	ownNetwork(t)
	before, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	cmd := exec.Command(self(t), "role=weak", "role=ports", self(t), "role=listen", "hide", "127.0.0.1:0")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(in, "go\n"); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	lines := strings.Fields(string(out))
	slices.Sort(lines) // address, done, found, address
	if len(lines) != 4 || lines[0] != lines[1] {
		t.Errorf("got %q, want the address that was found to be the one listened on", out)
	}
}

// ownNetwork moves the calling goroutine, and the programs that it starts, to a
// network of loopback alone until the test ends. Without the right to, they stay.
func ownNetwork(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // for good: the thread ends with the goroutine
	switch err := unix.Unshare(unix.CLONE_NEWNET); {
	case errors.Is(err, unix.EPERM):
		runtime.UnlockOSThread()
		return
	case err != nil:
		t.Fatal(err)
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(s)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo); err != nil {
		t.Fatal(err)
	}
}

func TestG7WatchPortWaitsUntilTheAppListens(t *testing.T) {
	app := startListening(t, supervise(t), []string{"PORT="}, nil, "127.0.0.1:0")
	type answer struct {
		addr netip.AddrPort
		err  error
	}
	answers := make(chan answer, 1)
	go func() {
		addr, err := app.WatchPort(t.Context())
		answers <- answer{addr, err}
	}()
	select {
	case got := <-answers:
		t.Fatalf("before the app listens: got %v, want nothing", got)
	case <-time.After(3 * pollInterval): // long enough to have polled
	}
	want := app.listen(t)[0]
	if got := <-answers; got.err != nil || got.addr != want {
		t.Errorf("got %v, %v, want %v", got.addr, got.err, want)
	}
}

func TestG7AnAppThatNeverListensEndsTheWatch(t *testing.T) {
	s := supervise(t)
	cause := errors.New("app does not listen")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 2*pollInterval, cause)
	defer cancel()
	if _, err := start(t, s, Command{Path: "sleep", Args: []string{"1000"}}).WatchPort(ctx); !errors.Is(err, cause) {
		t.Errorf("it lives: got %v, want %v", err, cause)
	}
	if _, err := start(t, s, Command{Path: "sleep", Args: []string{"0.1"}}).WatchPort(t.Context()); !errors.Is(err, ErrExited) {
		t.Errorf("it has ended: got %v, want %v", err, ErrExited)
	}
}

func TestWatchPortTakesThePortInTheEnvironment(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	want := netip.MustParseAddrPort(free.Addr().String())
	free.Close()
	app := startListening(t, supervise(t), []string{fmt.Sprintf("PORT=%d", want.Port())}, nil, "0.0.0.0:0", want.String(), "[::]:0")
	app.listen(t)
	if got, err := app.WatchPort(t.Context()); err != nil || got != want {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
}

func TestChoosePortTakesTheLikeliestForThePublic(t *testing.T) {
	for _, c := range []struct {
		name      string
		found     string
		preferred uint16
		want      string
	}{
		{"the preferred, wherever", "0.0.0.0:80 127.0.0.1:3000", 3000, "127.0.0.1:3000"},
		{"the preferred on the wildcard", "127.0.0.1:3000 [::]:3000", 3000, "[::]:3000"},
		{"wildcard before loopback", "127.0.0.1:80 0.0.0.0:8000", 0, "0.0.0.0:8000"},
		{"wildcard before one interface", "10.0.0.2:80 [::]:8000", 0, "[::]:8000"},
		{"one interface before loopback", "[::1]:80 127.0.0.1:80 10.0.0.2:8000", 0, "10.0.0.2:8000"},
		{"the lowest port", "0.0.0.0:9000 [::]:8000 0.0.0.0:8080", 0, "[::]:8000"},
		{"IPv4 before IPv6", "[::]:8000 0.0.0.0:8000", 0, "0.0.0.0:8000"},
		{"another protocol last", "0.0.0.0:6379 127.0.0.1:8000", 0, "127.0.0.1:8000"},
		{"another protocol alone", "0.0.0.0:6379", 0, "0.0.0.0:6379"},
		{"another protocol if preferred", "0.0.0.0:6379 0.0.0.0:8000", 6379, "0.0.0.0:6379"},
		{"the preferred is missing", "0.0.0.0:9000", 8000, "0.0.0.0:9000"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var found []netip.AddrPort
			for _, text := range strings.Fields(c.found) {
				found = append(found, netip.MustParseAddrPort(text))
			}
			for range 2 {
				if got, ok := ChoosePort(found, c.preferred); !ok || got.String() != c.want {
					t.Errorf("of %v: got %v, want %v", found, got, c.want)
				}
				slices.Reverse(found)
			}
		})
	}
	if got, ok := ChoosePort(nil, 80); ok {
		t.Errorf("of none: got %v", got)
	}
}

func TestDialTargetsReachTheListener(t *testing.T) {
	for addr, want := range map[string][]string{
		"127.0.0.1:80": {"127.0.0.1:80"},
		"10.0.0.2:80":  {"10.0.0.2:80"},
		"[::1]:80":     {"[::1]:80"},
		"0.0.0.0:80":   {"127.0.0.1:80"},
		"[::]:80":      {"127.0.0.1:80", "[::1]:80"},
	} {
		if got := DialTargets(netip.MustParseAddrPort(addr)); !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", addr, got, want)
		}
	}
}

func TestNetlinkAndProcAgree(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::]:0", "[::ffff:127.0.0.1]:0"} {
		network := "tcp4"
		if strings.HasPrefix(addr, "[") {
			network = "tcp"
		}
		l, err := net.Listen(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	own := make(map[uint64]struct{})
	if err := socketsOf(os.Getpid(), own); err != nil {
		t.Fatal(err)
	}
	mine := func(s socket) bool { _, ok := own[s.inode]; return ok }
	read, err := readListeners()
	if err != nil {
		t.Fatal(err)
	}
	if got := addresses(read, mine); len(got) != 4 {
		t.Errorf("/proc: got %v, want the four listeners", got)
	}
	asked, err := askListeners()
	if err != nil {
		t.Logf("no netlink here: %v", err)
		return
	}
	if got, want := addresses(asked, mine), addresses(read, mine); !slices.Equal(got, want) {
		t.Errorf("netlink: got %v, want what /proc says, %v", got, want)
	}
}

func FuzzAppendAnswer(f *testing.F) {
	f.Add(listenRequest(2))
	f.Add([]byte{16, 0, 0, 0, 3, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add(append([]byte{88, 0, 0, 0, 20, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10}, make([]byte, 71)...))
	f.Fuzz(func(t *testing.T, answer []byte) {
		found, _, err := appendAnswer(nil, answer)
		if err != nil && found != nil {
			t.Error("sockets beside an error")
		}
	})
}

func FuzzParseListeners(f *testing.F) {
	f.Add("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n" +
		"   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0000000000000000 100 0 0 10 0\n")
	f.Add("   1: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 0 0 0 0 0 12 1\n")
	f.Add("0: :: : 0A 0 0 0 0 0 0 0")
	f.Fuzz(func(t *testing.T, text string) {
		found, _ := parseListeners(strings.NewReader(text))
		for _, s := range found {
			if !s.addr.IsValid() {
				t.Errorf("%q gives an invalid address", text)
			}
		}
	})
}

func BenchmarkListeningPorts(b *testing.B) {
	s := Supervise(discard())
	defer s.Close()
	in, write, err := os.Pipe()
	if err != nil {
		b.Fatal(err)
	}
	defer write.Close()
	app, err := s.Start(Command{Path: os.Args[0], Args: []string{"role=listen", "127.0.0.1:0"}, Stdin: in, Stdout: os.Stderr})
	if err != nil {
		b.Fatal(err)
	}
	in.Close()
	if _, err := io.WriteString(write, "go\n"); err != nil {
		b.Fatal(err)
	}
	if _, err := app.WatchPort(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if got, err := app.ListeningPorts(); len(got) != 1 || err != nil {
			b.Fatal(got, err)
		}
	}
}
