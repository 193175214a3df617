package e2e

import (
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"wormhole/edge/edgetest"
)

// TestE5FloodOfKeyUpdatesIsCut asks for new traffic keys a thousand times on one
// connection: it is closed, and other visitors notice nothing.
func TestE5FloodOfKeyUpdatesIsCut(t *testing.T) {
	n := serve(t, edgetest.Named("statler"))
	addr := n.Addr("https")
	_, port, _ := net.SplitHostPort(addr)
	// "K" on a line of its own makes s_client send a KeyUpdate that asks for one back.
	cmd := exec.Command("openssl", "s_client", "-connect", "127.0.0.1:"+port, "-servername", host, "-CAfile", n.CAFile(), "-tls1_3")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	go func() { // ends with the pipe
		defer in.Close()
		for range 1000 {
			if _, err := io.WriteString(in, "K\n"); err != nil {
				return
			}
			time.Sleep(time.Millisecond)
		}
		time.Sleep(20 * time.Second) // the edge must be the one who ends it
	}()
	client := n.Client(t, "h1")
	for range 50 {
		if status, _, _, err := ask(client, "/"); err != nil || status != 200 {
			t.Fatalf("a visitor was disturbed: %d %v", status, err)
		}
	}
	select {
	case <-done:
	case <-time.After(12 * time.Second):
		_ = cmd.Process.Kill()
		<-done
		t.Errorf("the connection was still open after 12 s of key updates:\n%s", out.String())
	}
	asked := strings.Count(out.String(), "KEYUPDATE")
	if asked < 16 || strings.Contains(out.String(), "HTTP/1.1") {
		t.Errorf("only %d key updates were asked for; the test has seen nothing:\n%s", asked, out.String())
	}
	t.Logf("cut after %d key updates", asked)
}
