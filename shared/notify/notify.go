// Package notify tells the service manager what this process is doing, in the
// words of sd_notify(3): systemd units of Type=notify wait for them. Under any
// other manager, or none, it does nothing.
package notify

import (
	"fmt"
	"net"
	"strings"
	"time"
)

// Variable is the environment variable in which the manager says where it listens.
const Variable = "NOTIFY_SOCKET"

// timeout bounds one notice: the socket's queue may be full.
const timeout = time.Second

// Manager is who started this process. The zero value, and one without an address,
// is nobody. Its methods may be called concurrently.
type Manager struct{ addr string }

// To is the manager that listens at addr, the value of Variable: a path, or a name
// in the abstract namespace after "@". Empty is nobody.
func To(addr string) Manager { return Manager{addr: addr} }

// Ready says that the service has started: units ordered after it may start now.
func (m Manager) Ready(status string) error { return m.send("READY=1", "STATUS="+oneLine(status)) }

// Status says in words what the service is doing, for people.
func (m Manager) Status(status string) error { return m.send("STATUS=" + oneLine(status)) }

// MainProcess says that the service goes on in another process.
func (m Manager) MainProcess(pid int) error { return m.send(fmt.Sprintf("MAINPID=%d", pid)) }

// Stopping says that the service is on its way out, and asks not to be killed
// within the time given, whatever the unit says.
func (m Manager) Stopping(within time.Duration) error {
	return m.send("STOPPING=1", fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", within.Microseconds()))
}

func (m Manager) send(lines ...string) error {
	if m.addr == "" {
		return nil
	}
	conn, err := net.DialTimeout("unixgram", m.addr, timeout)
	if err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetWriteDeadline(time.Now().Add(timeout))
	if _, err := conn.Write([]byte(strings.Join(lines, "\n"))); err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	return nil
}

// oneLine keeps text from passing for further assignments.
func oneLine(s string) string { return strings.NewReplacer("\n", " ", "\r", " ").Replace(s) }
