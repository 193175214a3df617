package e2e

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"wormhole/edge/authority"
	"wormhole/edge/edgetest"
	"wormhole/edge/edgetest/oracle"
	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
	"wormhole/shared/tunnel/tlsmux"
)

// intruder is an agent that says what it likes.
type intruder struct {
	tunnel.Session
	welcome *protocol.Welcome
}

// intrude says hello to a node.
func intrude(t *testing.T, n *edgetest.Node, hello protocol.Hello) (*intruder, error) {
	t.Helper()
	conn, err := net.Dial("tcp", n.Addr("https"))
	if err != nil {
		t.Fatal(err)
	}
	hello.Instance, hello.Name, hello.Ready = strings.Repeat("b", 32), "intruder", true
	s, welcome, err := tlsmux.Dial(t.Context(), conn, &tls.Config{
		RootCAs: edgetest.Roots(t, n.CAFile()), ServerName: "localhost", MinVersion: tls.VersionTLS13,
	}, &hello, tlsmux.Options{})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = s.Close() })
	return &intruder{s, welcome}, nil
}

// say sends a control message.
func (i *intruder) say(t *testing.T, typ protocol.Type, v any) {
	t.Helper()
	_ = i.Control().SetDeadline(time.Now().Add(edgetest.Patience))
	if err := protocol.WriteMessage(i.Control(), typ, v); err != nil {
		t.Fatal(err)
	}
}

// refresh presents another token and returns what the edge says.
func (i *intruder) refresh(t *testing.T, token string) *protocol.Reject {
	t.Helper()
	i.say(t, protocol.TypeToken, protocol.TokenRefresh{Token: token})
	for {
		typ, payload, err := protocol.ReadMessage(i.Control(), protocol.MaxMessage)
		if err != nil {
			t.Fatal(err)
		}
		if typ == protocol.TypeTokenAck {
			var ack protocol.TokenAck
			if err := protocol.Decode(payload, &ack); err != nil {
				t.Fatal(err)
			}
			return ack.Reject
		}
	}
}

func TestH3HostsOnlyWithinTheToken(t *testing.T) {
	const mine, third = "mine.example.com", "third.example.com"
	n := edgetest.StartNode(t)
	edgetest.StartAgent(t, edgetest.AgentConfig{Token: n.Token(t, otherHost), Endpoint: answering(t, nil)}, n)
	n.AwaitBackends(t, 1)
	asked, wrong := 0, 0
	fault := func(format string, args ...any) {
		wrong++
		t.Errorf(format, args...)
	}

	// In the hello.
	for _, ask := range []string{
		otherHost, strings.ToUpper(otherHost), otherHost + ".", otherHost + ":443", "*.example.net", "*.net", "*", "*.*.example.net",
		"mine.example.com, " + otherHost, " " + otherHost, "", "xn--other-.example.net", "sub." + mine,
	} {
		asked++
		_, err := intrude(t, n, protocol.Hello{Token: n.Token(t, mine), Hosts: []string{mine, ask}})
		var reject *protocol.Reject
		if !errors.As(err, &reject) || reject.Code != protocol.CodeHostForbidden {
			fault("hello that asks for %q: %v, want %s", ask, err, protocol.CodeHostForbidden)
		}
	}

	// In every later message.
	in, err := intrude(t, n, protocol.Hello{Token: n.Token(t, mine)})
	if err != nil {
		t.Fatal(err)
	}
	claim := map[string]any{"ready": true, "hosts": []string{otherHost}, "host": otherHost, "token": n.Token(t, third)}
	for _, typ := range []protocol.Type{
		protocol.TypeReady, protocol.TypeHello, protocol.TypeWelcome, protocol.TypeEdges, protocol.TypeGoAway, protocol.TypeTokenAck, protocol.TypeDrainAck, 99,
	} {
		asked++
		in.say(t, typ, claim)
	}
	revoked, err := n.Authority().IssueToken(context.Background(), authority.IssueRequest{Hosts: []string{mine}, Name: "revoked"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Authority().Revoke(context.Background(), "revoked"); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		token string
		code  protocol.Code
	}{
		"of another host":   {n.Token(t, third), protocol.CodeHostForbidden},
		"of another tenant": {n.Token(t, otherHost), protocol.CodeHostForbidden},
		"that was revoked":  {revoked.Token, protocol.CodeTokenRevoked},
		"that is none":      {"x.y.z", protocol.CodeTokenMalformed},
	} {
		asked++
		if reject := in.refresh(t, c.token); reject == nil || reject.Code != c.code {
			fault("refresh with a token %s: %v, want %s", what, reject, c.code)
		}
	}
	asked++
	if reject := in.refresh(t, n.Token(t, mine, third)); reject != nil {
		fault("refresh with a token of more hosts: %v", reject)
	}
	for _, b := range n.Status().Backends {
		if b.Name == "intruder" && !slices.Equal(b.Hosts, []string{mine}) {
			fault("the intruder serves %v, want only %s", b.Hosts, mine)
		}
	}

	// Streams are the edge's to open.
	asked++
	if s, err := in.Open(t.Context()); err == nil {
		_ = s.SetDeadline(time.Now().Add(edgetest.Patience))
		header, _ := protocol.AppendStreamHeader(nil, protocol.StreamHeader{Kind: protocol.KindHTTP})
		_, _ = s.Write(header)
		if k, err := s.Read(make([]byte, 1)); err == nil {
			fault("the edge answered a stream of the agent's with %d bytes", k)
		}
		_ = s.Close()
	}

	// The victim has lost nothing, and nobody serves the third host.
	client := n.Client(t, "h1")
	lost := 0
	for range 200 {
		resp, err := client.Get("https://" + otherHost + "/")
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != http.StatusOK || resp.Header.Get("X-Backend") == "intruder" {
			lost++
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	}
	for _, s := range n.Sites() {
		if s.Host == third {
			fault("%s has become a site", third)
		}
	}
	oracle.Row{
		ID: "H3", Done: "hosts outside the token asked for in the hello, in every control message, in token refreshes; a stream from the agent",
		Figure: fmt.Sprintf("%d of %d attempts had an effect, the victim lost %d of 200 requests", wrong, asked, lost),
		Limit:  "0, 0", OK: wrong == 0 && lost == 0,
	}.Verdict(t)
}

func TestH4RevokeALiveToken(t *testing.T) {
	e := binaries.StartEdge(t)
	app := answering(t, nil)
	token := binaries.Token(t, e.Dir, "--host", host, "--name", "doomed")
	const tunnels = 3
	agents := make([]*edgetest.Process, tunnels)
	for i := range agents {
		agents[i] = edgetest.Start(t, e.AgentEnv(token, fmt.Sprint("WORMHOLE_NAME=doomed", i), "WORMHOLE_ENDPOINT="+app), binaries.Wormhole, "--", "sleep", "1000")
	}
	sidecar(t, e, binaries.Token(t, e.Dir, "--host", otherHost, "--name", "innocent"), app, "innocent")
	e.AwaitReady(t, tunnels+1)
	client := e.Client(t, "h1")

	began := time.Now()
	mustCLI(t, e.Dir, "", "token", "revoke", "doomed")
	edgetest.Eventually(t, "the tunnels are closed", func() bool { return len(backends(t, e)) == 1 })
	took := time.Since(began)

	for _, a := range agents { // they know, and their apps live on
		edgetest.Eventually(t, "the agent is told", func() bool { return contains(a, string(protocol.CodeTokenRevoked)) })
		if a.Exited() {
			t.Errorf("an agent has ended with its app:\n%s", a.Output())
		}
	}
	late := sidecar(t, e, token, app, "late")
	code := late.Exit(t, edgetest.Patience)
	left := backends(t, e)
	innocent := len(left) == 1 && left[0].Name == "innocent"
	resp, err := client.Get("https://" + otherHost + "/")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	oracle.Row{
		ID: "H4", Done: fmt.Sprintf("edge token revoke with %d live tunnels (several edges: with the cluster)", tunnels),
		Figure: fmt.Sprintf("all closed %s after the command began; a new agent exits %d; others untouched: %t", ms(took), code, innocent),
		Limit:  "2 s, 77",
		OK:     took <= scaled(4*time.Second, 2*time.Second) && code == 77 && innocent && resp.StatusCode == http.StatusOK,
	}.Verdict(t)
}

func TestH5KeyRotation(t *testing.T) {
	e := binaries.StartEdge(t)
	app := answering(t, nil)
	first := binaries.Token(t, e.Dir, "--host", host)
	file := filepath.Join(t.TempDir(), "token")
	write := func(token string) { // as a secret's mount does: whole or not at all
		if err := os.WriteFile(file+".new", []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	write(first)
	for _, name := range []string{"one", "two"} {
		sidecar(t, e, "", app, name, "WORMHOLE_TOKEN_FILE="+file)
	}
	laggard := binaries.Token(t, e.Dir, "--host", otherHost)
	sidecar(t, e, laggard, app, "laggard")
	e.AwaitReady(t, 3)
	old := backend(t, e, "one").TokenID
	keys := func() (ids []string, active string) {
		var list []authority.KeyInfo
		if err := json.Unmarshal([]byte(mustCLI(t, e.Dir, "", "key", "list", "--json")), &list); err != nil {
			t.Fatal(err)
		}
		for _, k := range list {
			ids = append(ids, k.ID)
			if k.Active {
				active = k.ID
			}
		}
		return ids, active
	}
	_, oldKey := keys()

	load := edgetest.StartProbe(e.Client(t, "h1"), "https://"+host+"/", 10*time.Millisecond)
	time.Sleep(scaled(300*time.Millisecond, 10*time.Second))
	newKey := strings.TrimSpace(mustCLI(t, e.Dir, "", "key", "rotate"))
	write(binaries.Token(t, e.Dir, "--host", host))
	edgetest.Eventually(t, "the agents present the new token", func() bool {
		one, two := backend(t, e, "one"), backend(t, e, "two")
		return one != nil && two != nil && contains(e.Process, "agent token refreshed") && strings.Count(e.Output(), "agent token refreshed") >= 2
	})
	began := time.Now()
	mustCLI(t, e.Dir, "", "key", "remove", oldKey)
	awaitGone(t, e, "laggard", edgetest.Patience, nil)
	closed := time.Since(began)
	late := sidecar(t, e, first, app, "late")
	code := late.Exit(t, edgetest.Patience)
	time.Sleep(scaled(300*time.Millisecond, 10*time.Second))
	answers := load.Stop()
	ids, active := keys()
	kept := backend(t, e, "one") != nil && backend(t, e, "two") != nil
	oracle.Row{
		ID: "H5", Done: "key rotated, tokens renewed in the file of running agents, old key removed, under 100 requests/s",
		Figure: fmt.Sprintf("%d of %d failed; a tunnel of the old key closed %s after its removal, a new agent with it exits %d",
			answers.Failed(), len(answers), ms(closed), code),
		Limit: "0 failed, 2 s, 77",
		OK: answers.Failed() == 0 && closed <= scaled(4*time.Second, 2*time.Second) && code == 77 && kept && old != "" &&
			active == newKey && newKey != oldKey && !slices.Contains(ids, oldKey),
	}.Verdict(t)
	if answers.Failed() > 0 {
		t.Log(answers.Faults())
	}
}
