package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"wormhole/edge/edgetest"
	"wormhole/edge/edgetest/oracle"
	"wormhole/shared/protocol"
)

// previous is the commit that counts as version N-1: set it when the protocol or the
// order of its messages changes.
const previous = "b642e5e88ac18f9e70bcfc40bb81e2d3d26b5959"

// future makes one side's words those of a newer version: every object has a field
// that nobody knows, every report is longer, and between the messages are some of a
// type that nobody knows.
type future struct{ said atomic.Int64 } // unknown messages

const unknownType protocol.Type = 99

var unknownField = []byte(`"from_the_future":{"deep":[1,null,"x"]}`)

func (u *future) greeting(_ protocol.Type, payload []byte) []byte { return withUnknownField(payload) }

func (u *future) tunnel() func(fromEdge bool, f muxFrame) []muxFrame {
	var fromEdge, fromAgent messages
	return func(isEdge bool, f muxFrame) []muxFrame {
		if !f.data() || f.stream() != controlStream {
			return []muxFrame{f}
		}
		from := &fromAgent
		if isEdge {
			from = &fromEdge
		}
		var out bytes.Buffer
		for _, m := range from.feed(f.body) {
			typ, payload := protocol.Type(m[0]), m[4:]
			switch typ {
			case protocol.TypeBeat, protocol.TypeBeatAck, protocol.TypeDrainAck:
			case protocol.TypeStreamEnd:
				payload = append(payload, "more"...)
			default:
				payload = withUnknownField(payload)
			}
			_ = protocol.WriteMessage(&out, typ, payload)
			_ = protocol.WriteMessage(&out, unknownType, []byte("\x00 what is this?"))
			u.said.Add(1)
		}
		return []muxFrame{f.with(out.Bytes())}
	}
}

func withUnknownField(object []byte) []byte {
	rest, ok := bytes.CutPrefix(object, []byte("{"))
	if !ok {
		return object
	}
	out := append([]byte("{"), unknownField...)
	if !bytes.HasPrefix(rest, []byte("}")) {
		out = append(out, ',')
	}
	return append(out, rest...)
}

// Both ends hear a newer version of the other, through drains and restarts.
func TestA9UnknownFieldsAndMessagesAreIgnored(t *testing.T) {
	s := newStage(t, 2, "--drain-delay", "300ms", "--drain-timeout", "3s")
	words := new(future)
	taps := make([]string, len(s.Edges))
	for i, e := range s.Edges {
		tap := &wiretap{greeting: words.greeting, tunnel: words.tunnel}
		tap.start(t, s.CA, e.HTTPS, s.roots)
		taps[i] = tap.addr
	}
	both := []int{0, 1}
	through := "WORMHOLE_EDGE=" + strings.Join(taps, ",")
	newer := s.app(t, "newer", host, both, through, "WORMHOLE_TRANSPORT=tls")
	s.app(t, "same", host, both)
	for _, e := range s.Edges {
		e.AwaitReady(t, 2)
	}
	front := oracle.At(s.StartHAProxy(t))
	var clients []*oracle.Client
	for range 2 {
		clients = append(clients, s.client(t, "h1", host, front), s.client(t, "h2", host, front))
	}
	l := oracle.Start(oracle.Plan{Rate: scaled(80, 200), Clients: clients, Pause: 10 * time.Millisecond})
	hold(scaled(500*time.Millisecond, 10*time.Second))
	l.Mark("the newer agent is told to stop")
	newer.Signal(syscall.SIGTERM)
	newer.Exit(t, 10*time.Second)
	s.app(t, "newer", host, both, through, "WORMHOLE_TRANSPORT=tls")
	for _, e := range s.Edges {
		e.AwaitReady(t, 2)
	}
	l.Mark("it is back; edge 0 is told to stop")
	s.Edges[0].Stop(t)
	s.Edges[0].Start(t)
	s.Edges[0].AwaitReady(t, 2)
	l.Mark("edge 0 is back")
	hold(scaled(500*time.Millisecond, 10*time.Second))
	r := s.judge(t, l.Stop())
	unknown := words.said.Load()
	oracle.Row{
		ID: "A9", Done: fmt.Sprintf("agent and edge hear newer versions (%d unknown messages, fields in all others) through a drain of each", unknown),
		Figure: r.Figure(), Limit: "0 failed, 0 duplicated", OK: r.Good() && r.Repeated == 0 && unknown > 10,
	}.Verdict(t)
}

// A fleet and its agents move from the version before to this one, one process at a
// time: every mixture of the two serves.
func TestA9RollingUpgradeFromThePreviousVersion(t *testing.T) {
	if !oracle.Long() {
		t.Log("in the long form only: it builds another version")
		return
	}
	old, err := buildAt(t, previous)
	if err != nil {
		t.Fatalf("the previous version is not in this clone; git fetch --unshallow: %v", err)
	}
	s := newStageOf(t, old, 2, "--drain-delay", "500ms", "--drain-timeout", "5s")
	both := []int{0, 1}
	agents := []*edgetest.Process{s.appOf(t, old, "app0", host, both), s.appOf(t, old, "app1", host, both)}
	ready := func() {
		for _, e := range s.Edges {
			e.AwaitReady(t, 2)
		}
	}
	ready()
	front := oracle.At(s.StartHAProxy(t))
	l := oracle.Start(oracle.Plan{Rate: 200, Pause: 10 * time.Millisecond, Clients: []*oracle.Client{
		s.client(t, "h1", host, front), s.client(t, "h2", host, front), s.client(t, "h3", host, s.anyReady()),
	}})
	hold(5 * time.Second)
	for i, e := range s.Edges {
		l.Mark("edge %d is upgraded", i)
		e.Stop(t)
		e.Upgrade(binaries)
		e.Start(t)
		ready()
		hold(5 * time.Second)
		l.Mark("agent %d is upgraded", i)
		agents[i].Signal(syscall.SIGTERM)
		agents[i].Exit(t, 10*time.Second)
		agents[i] = s.app(t, fmt.Sprint("app", i), host, both)
		ready()
		hold(5 * time.Second)
	}
	r := s.judge(t, l.Stop())
	oracle.Row{
		ID: "A9", Done: fmt.Sprintf("2 edges and 2 agents of %.7s upgraded one by one under 200/s", previous),
		Figure: r.Figure(), Limit: "0 failed, 0 duplicated", OK: r.Good() && r.Repeated == 0,
	}.Verdict(t)
}

// buildAt builds the programs of an earlier commit.
func buildAt(t *testing.T, commit string) (edgetest.Binaries, error) {
	t.Helper()
	tree := t.TempDir()
	root, err := exec.Command("git", "rev-parse", "--show-toplevel").Output()
	if err != nil {
		return edgetest.Binaries{}, fmt.Errorf("no git: %w", err)
	}
	archive := exec.Command("git", "-C", strings.TrimSpace(string(root)), "archive", commit)
	unpack := exec.Command("tar", "-x", "-C", tree)
	if unpack.Stdin, err = archive.StdoutPipe(); err != nil {
		return edgetest.Binaries{}, err
	}
	if err := unpack.Start(); err != nil {
		return edgetest.Binaries{}, err
	}
	archiveErr := archive.Run()
	if err := unpack.Wait(); err != nil || archiveErr != nil {
		return edgetest.Binaries{}, fmt.Errorf("git archive %.7s: %w", commit, errors.Join(archiveErr, err))
	}
	return edgetest.BuildIn(tree, t.TempDir())
}
