//go:build linux

package process

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// screen is what programs have written to a terminal whose keyboard is the test.
type screen struct {
	master *os.File
	ended  chan struct{} // closed when nothing more can come

	mu   sync.Mutex // guards text, seen
	text bytes.Buffer
	seen int // how much of text expect has passed
}

// runOnTerminal starts cmd as the leader of a session with a terminal of its own.
func runOnTerminal(t *testing.T, cmd *exec.Cmd) *screen {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	control, err := master.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var number int
	if err := control.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			number, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	}); err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tty.Close()
	s := &screen{master: master, ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			s.mu.Lock()
			s.text.Write(buf[:n])
			s.mu.Unlock()
			if err != nil { // EIO: nobody has the terminal open any more
				return
			}
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		master.Close()
		<-s.ended
		if t.Failed() {
			t.Logf("screen:\n%s", s.text.String())
		}
	})
	return s
}

func (s *screen) press(t *testing.T, keys string) {
	t.Helper()
	if _, err := s.master.WriteString(keys); err != nil {
		t.Fatal(err)
	}
}

// expect waits until want shows after all that was expected before.
func (s *screen) expect(t *testing.T, want string) {
	t.Helper()
	waitFor(t, fmt.Sprintf("%q on the screen", want), func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		i := strings.Index(s.text.String()[s.seen:], want)
		if i >= 0 {
			s.seen += i + len(want)
		}
		return i >= 0
	})
}

// echo is an interactive app: it reads from the terminal and answers.
const echo = `echo ready; while read -r line; do echo "got $line"; done; echo end`

func TestG9AnInteractiveAppHasTheTerminal(t *testing.T) {
	const ignored = "grep SigIgn /proc/self/status"
	want, err := exec.Command("sh", "-c", ignored).Output()
	if err != nil {
		t.Fatal(err)
	}
	inBothPlaces(t, func(t *testing.T, play func(string, ...string) *exec.Cmd) {
		cmd := play("agent", "sh", "-c", ignored+";"+echo)
		s := runOnTerminal(t, cmd)
		s.expect(t, strings.TrimSpace(string(want)))
		s.expect(t, "ready")
		s.press(t, "one\n")
		s.expect(t, "got one")
		s.press(t, "\x1a") // ^Z: no shell could wake it, so it goes on
		s.press(t, "two\n")
		s.expect(t, "got two")
		s.press(t, "\x03") // ^C
		if got, want := exitCode(t, cmd.Wait()), 130; got != want {
			t.Errorf("got exit code %d, want %d", got, want)
		}
	})
}

func TestG3InterruptFromTheKeyboardComesToTheAgentAndThenOnceToTheApp(t *testing.T) {
	inBothPlaces(t, func(t *testing.T, play func(string, ...string) *exec.Cmd) {
		cmd := play("agent", self(t), "role=signals", "2")
		s := runOnTerminal(t, cmd)
		s.expect(t, "ready")
		s.expect(t, "ready")
		s.press(t, "\x03") // ^C
		s.expect(t, " 2\r")
		s.expect(t, " 2\r")
		if got, want := exitCode(t, cmd.Wait()), 42; got != want {
			t.Errorf("got exit code %d, want the app's own, %d", got, want)
		}
		<-s.ended
		if got := s.text.String(); strings.Count(got, " 2\r") != 2 {
			t.Errorf("got %q, want one interrupt for each of the two processes", got)
		}
	})
}

func TestG9APagerBehindThePipeKeepsTheKeyboard(t *testing.T) {
	cmd := exec.Command("sh", "-i")
	cmd.Env = append(os.Environ(), "PS1=prompt> ", "ENV=", "HISTFILE=")
	s := runOnTerminal(t, cmd)
	s.expect(t, "prompt> ")
	s.press(t, self(t)+` role=agent sh -c 'echo page; sleep 0.1' | sh -c 'read page; read key </dev/tty; echo "$page $key"'`+"\n")
	s.press(t, "down\n")
	s.expect(t, "page down")
	s.press(t, "exit 5\n")
	if got, want := exitCode(t, cmd.Wait()), 5; got != want {
		t.Errorf("got exit code %d of the shell, want %d", got, want)
	}
}

func TestG9AShellCanSuspendTheAppAndBringItBack(t *testing.T) {
	cmd := exec.Command("sh", "-i")
	cmd.Env = append(os.Environ(), "PS1=prompt> ", "ENV=", "HISTFILE=")
	s := runOnTerminal(t, cmd)
	s.expect(t, "prompt> ")
	s.press(t, fmt.Sprintf("%s role=agent sh -c '%s'\n", self(t), echo))
	s.expect(t, "\nready")
	for _, word := range []string{"one", "two"} {
		s.press(t, word+"\n")
		s.expect(t, "got "+word)
		s.press(t, "\x1a") // ^Z
		s.expect(t, "prompt> ")
		s.press(t, "echo shell $((40+2))\n")
		s.expect(t, "shell 42")
		s.press(t, "fg\n")
	}
	s.press(t, "three\n")
	s.expect(t, "got three")
	s.press(t, "\x04") // ^D
	s.expect(t, "end")
	s.expect(t, "prompt> ")
	s.press(t, "exit 5\n")
	if got, want := exitCode(t, cmd.Wait()), 5; got != want {
		t.Errorf("got exit code %d of the shell, want %d", got, want)
	}
}

func TestAnAgentInTheBackgroundLeavesTheTerminalToOthers(t *testing.T) {
	cmd := exec.Command("sh", "-i")
	cmd.Env = append(os.Environ(), "PS1=prompt> ", "ENV=", "HISTFILE=")
	s := runOnTerminal(t, cmd)
	s.expect(t, "prompt> ")
	s.press(t, self(t)+" role=agent sh -c 'echo app $((1+1)); sleep 0.2; echo app $((1+2))' &\n")
	s.expect(t, "app 2")
	s.press(t, "echo shell $((40+2))\n")
	s.expect(t, "shell 42")
	s.expect(t, "app 3")
	s.press(t, "exit 5\n")
	if got, want := exitCode(t, cmd.Wait()), 5; got != want {
		t.Errorf("got exit code %d of the shell, want %d", got, want)
	}
}
