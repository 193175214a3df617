package notify_test

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"wormhole/shared/notify"
)

func listen(t *testing.T, addr string) func() string {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: addr, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return func() string {
		t.Helper()
		_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		buf := make([]byte, 1024)
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
}

func TestManagerHearsEachState(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	heard := listen(t, path)
	m := notify.To(path)
	for _, c := range []struct {
		say  func() error
		want string
	}{
		{func() error { return m.Ready("serves :443") }, "READY=1\nSTATUS=serves :443"},
		{func() error { return m.Status("a\nREADY=1") }, "STATUS=a READY=1"},
		{func() error { return m.Stopping(33 * time.Second) }, "STOPPING=1\nEXTEND_TIMEOUT_USEC=33000000"},
	} {
		if err := c.say(); err != nil {
			t.Fatal(err)
		}
		if got := heard(); got != c.want {
			t.Errorf("heard %q, want %q", got, c.want)
		}
	}
}

func TestWithoutAManagerNothingHappens(t *testing.T) {
	if err := notify.To("").Ready("x"); err != nil {
		t.Error(err)
	}
}

func TestManagerThatIsGoneIsAnError(t *testing.T) {
	if err := notify.To(filepath.Join(t.TempDir(), "none")).Ready("x"); err == nil {
		t.Error("no error")
	}
}
