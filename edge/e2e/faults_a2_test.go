package e2e

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"wormhole/edge/edgetest"
	"wormhole/edge/edgetest/oracle"
)

// TestA2UpgradeInPlaceRefusesNobody replaces the edge's process on the same port
// while new connections arrive and requests are in flight.
func TestA2UpgradeInPlaceRefusesNobody(t *testing.T) {
	connects := 600
	if oracle.Long() {
		connects = 5000
	}
	e := binaries.StartEdge(t)
	token := binaries.Token(t, e.Dir, "--host", host)
	copyOf(t, e, token, "statler")
	copyOf(t, e, token, "waldorf")
	e.AwaitReady(t, 2)
	addr := e.Status.Addresses["https"]
	conf := &tls.Config{RootCAs: edgetest.Roots(t, e.Status.CA), ServerName: host, MinVersion: tls.VersionTLS12}

	// Requests that are in flight when the upgrade begins, and end after it.
	client := e.Client(t, "h2")
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if status, _, _, err := ask(client, "/slow?ms=3000"); err != nil || status != http.StatusOK {
				t.Errorf("in flight: %d %v", status, err)
			}
		})
	}
	edgetest.Eventually(t, "requests in flight", func() bool {
		_ = e.Refresh()
		n := int64(0)
		for _, b := range e.Status.Backends {
			n += b.InFlight
		}
		return n == 20
	})

	var mu sync.Mutex
	failures := map[string]int{}
	began := time.Now()
	for i := range connects {
		if i == connects/4 {
			e.Signal(syscall.SIGUSR2)
		}
		wg.Go(func() {
			if err := connectAndAsk(addr, conf); err != nil {
				mu.Lock()
				failures[err.Error()]++
				mu.Unlock()
			}
		})
		time.Sleep(time.Until(began.Add(time.Duration(i+1) * 10 * time.Millisecond)))
	}
	wg.Wait()
	failed := 0
	for text, n := range failures {
		failed += n
		t.Errorf("%d connects failed: %s", n, text)
	}
	// The first process has gone, its successor answers under the same addresses.
	if code := e.Exit(t, 15*time.Second); code != 0 {
		t.Errorf("the first process ended with %d", code)
	}
	if err := e.Refresh(); err != nil || e.Status.Addresses["https"] != addr {
		t.Fatalf("the successor does not answer: %v %v", e.Status.Addresses, err)
	}
	e.AwaitReady(t, 2)
	edgetest.Eventually(t, "HTTP/3 from the successor", func() bool {
		status, _, _, err := ask(e.Client(t, "h3"), "/")
		return err == nil && status == http.StatusOK
	})
	oracle.Row{
		ID:     "A2",
		Done:   fmt.Sprintf("in-place upgrade under %d new connects at 100/s and 20 requests in flight", connects),
		Figure: fmt.Sprintf("%d failed", failed), Limit: "0 failed", OK: failed == 0,
	}.Verdict(t)
	mustCLI(t, e.Dir, "", "drain")
	edgetest.Eventually(t, "the successor is gone", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
}

// connectAndAsk makes one TLS connection for one request.
func connectAndAsk(addr string, conf *tls.Config) error {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", addr, conf)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", host); err != nil {
		return err
	}
	text, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	if line, _, _ := strings.Cut(string(text), "\r\n"); line != "HTTP/1.1 200 OK" {
		return fmt.Errorf("answer %q", line)
	}
	return nil
}

func TestAFailedUpgradeChangesNothing(t *testing.T) {
	// The successor reads the same configuration file, which is broken by now.
	file := t.TempDir() + "/edge.yaml"
	if err := os.WriteFile(file, []byte("region: a\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	e := binaries.StartEdge(t, "--config", file)
	if err := os.WriteFile(file, []byte("regoin: a\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	e.Signal(syscall.SIGUSR2)
	edgetest.Eventually(t, "the failure is logged", func() bool { return strings.Contains(e.Output(), "upgrade failed") })
	if !strings.Contains(e.Output(), "regoin") {
		t.Errorf("the log does not say what is wrong:\n%s", e.Output())
	}
	if err := e.Refresh(); err != nil || e.Status.State != "serving" {
		t.Errorf("after the failed upgrade: %q %v", e.Status.State, err)
	}
}
