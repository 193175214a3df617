package rawtcp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"wormhole/edge/balance"
	"wormhole/edge/site"
	"wormhole/edge/upstream"
	"wormhole/edge/upstream/upstreamtest"
	"wormhole/shared/protocol"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	host     = "db.example.com"
	patience = 10 * time.Second
)

// reporting is an opener whose streams come with the agent's report, or without one.
type reporting struct {
	upstream.Opener
	end  protocol.StreamEnd
	late time.Duration
	none bool
}

func (r reporting) OpenStream(ctx context.Context, h protocol.StreamHeader) (upstream.Stream, error) {
	if h.Kind != protocol.KindTCP {
		return nil, fmt.Errorf("stream of kind %d", h.Kind)
	}
	s, err := r.Opener.OpenStream(ctx, h)
	if err != nil || r.none {
		return s, err
	}
	return reported{s, r}, nil
}

type reported struct {
	upstream.Stream
	by reporting
}

func (r reported) Ended(context.Context) (protocol.StreamEnd, bool) {
	time.Sleep(r.by.late)
	return r.by.end, true
}

// rig is a server with one site, whose app answers with what it got and ends.
type rig struct {
	*Server
	sites  *site.Registry
	opener *upstreamtest.Opener
}

func newRig(t *testing.T, cfg Config, spec string, report reporting) *rig {
	t.Helper()
	r := &rig{sites: site.New(nil)}
	r.opener = upstreamtest.New(t, func(c net.Conn) { _, _ = io.Copy(c, c) })
	report.Opener = r.opener
	up := upstream.New(report, upstream.Config{})
	t.Cleanup(func() { _ = up.Close() })
	r.sites.Attach(host, balance.NewBackend(balance.Info{ID: "1", Name: "app", Kinds: []string{"tcp"}}, up))
	cfg.Host = "127.0.0.1"
	r.Server = New(cfg, r.sites, r.sites, slog.New(slog.DiscardHandler))
	r.sites.OnRules(r.Sync)
	r.apply(t, spec)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = r.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return r
}

func (r *rig) apply(t *testing.T, tcp string) {
	t.Helper()
	spec, err := site.Parse([]byte("host: " + host + "\nparking: {wait: 200ms}\n" + tcp))
	if err == nil {
		err = r.sites.Apply(spec)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (r *rig) dial(t *testing.T) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", r.Status()[0].Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("did not happen: %s", what)
		}
	}
}

func TestAnEndNeedsTheAgentsWord(t *testing.T) {
	for name, c := range map[string]struct {
		report reporting
		whole  bool
	}{
		"clean":        {reporting{end: protocol.StreamEnd{Clean: true}}, true},
		"clean, late":  {reporting{end: protocol.StreamEnd{Clean: true}, late: 300 * time.Millisecond}, true},
		"not clean":    {reporting{end: protocol.StreamEnd{Clean: false}}, false},
		"not reported": {reporting{none: true}, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Config{}, "tcp: 0", c.report)
			conn := r.dial(t)
			if _, err := io.WriteString(conn, "hello"); err != nil {
				t.Fatal(err)
			}
			_ = conn.CloseWrite()
			began := time.Now()
			got, err := io.ReadAll(conn)
			if c.whole && (err != nil || string(got) != "hello" || time.Since(began) < c.report.late) {
				t.Errorf("got %q, %v after %s, want a proper end", got, err, time.Since(began))
			}
			if !c.whole && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("got %q, %v, want a reset", got, err)
			}
			eventually(t, "it is counted", func() bool {
				ended, cut, _ := r.Counts()
				return (ended == 1) == c.whole && (cut == 1) != c.whole && r.Open() == 0
			})
		})
	}
}

func TestADeadTunnelResets(t *testing.T) {
	r := newRig(t, Config{}, "tcp: 0", reporting{end: protocol.StreamEnd{Clean: true}})
	conn := r.dial(t)
	if _, err := io.WriteString(conn, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	r.opener.Kill()
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client sees %v, want a reset", err)
	}
}

func TestALimitOfAllSitesHolds(t *testing.T) {
	r := newRig(t, Config{MaxConnections: 1}, "tcp: 0", reporting{})
	first := r.dial(t)
	eventually(t, "one is open", func() bool { return r.Open() == 1 })
	second, err := net.Dial("tcp", first.RemoteAddr().String())
	if err == nil {
		defer second.Close()
		_ = second.SetDeadline(time.Now().Add(patience))
		_, err = second.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("one more than the limit sees %v, want a reset", err)
	}
}

func TestNoBackendResets(t *testing.T) {
	r := newRig(t, Config{}, "tcp: 0", reporting{})
	r.opener.Refuse(&upstream.Refused{Answer: protocol.AnswerAppDown})
	began := time.Now()
	if _, err := r.dial(t).Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client sees %v, want a reset", err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("after %s, want little more than the parking's 200 ms", took)
	}
}

func TestPortsThatAreSomebodysAreRefused(t *testing.T) {
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	taken := port(other.Addr().String())
	r := newRig(t, Config{Own: map[int]string{7080: "--admin"}}, "tcp: 0", reporting{})
	mine := r.Status()[0].Address
	for listen, want := range map[string]string{
		":7080": "the edge's own (--admin)", ":" + taken: "taken by another program", ":" + port(mine): "taken by the site " + host,
		"192.0.2.1:5432": "no address of this machine",
	} {
		if _, err := r.Claim("other.example.com", site.TCPRules{Listen: listen}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", listen, err, want)
		}
	}
	release, err := r.Claim("other.example.com", site.TCPRules{Listen: ":0"})
	if err != nil {
		t.Fatal(err)
	}
	release()
	release()
	if _, err := r.Claim(host, site.TCPRules{Listen: ":0"}); err != nil {
		t.Errorf("the same again: %v", err)
	}
}

func port(addr string) string {
	_, p, _ := net.SplitHostPort(addr)
	return p
}

func TestAPortThatIsTakenIsTriedAgain(t *testing.T) {
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, Config{}, "tcp: "+port(other.Addr().String()), reporting{end: protocol.StreamEnd{Clean: true}})
	if st := r.Status()[0]; st.Err == nil {
		t.Errorf("status %+v, want an error", st)
	}
	_ = other.Close()
	eventually(t, "the port opens", func() bool { return r.Status()[0].Err == nil })
	// Its rules go, and with them the port; a connection stays.
	conn := r.dial(t)
	eventually(t, "one is open", func() bool { return r.Open() == 1 })
	r.sites.Delete(host)
	if c, err := net.Dial("tcp", conn.RemoteAddr().String()); err == nil {
		_ = c.Close()
		t.Error("the port is still open")
	}
	if _, err := io.WriteString(conn, "x"); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Errorf("the connection: %v", err)
	}
	_ = conn.CloseWrite()
	eventually(t, "nothing is left of it", func() bool { return len(r.Status()) == 0 })
}

func TestShutdownWaitsUntilItsDeadline(t *testing.T) {
	r := newRig(t, Config{}, "tcp: 0", reporting{end: protocol.StreamEnd{Clean: true}})
	conn := r.dial(t)
	eventually(t, "one is open", func() bool { return r.Open() == 1 })
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	began := time.Now()
	if left := r.Shutdown(ctx); left != 1 {
		t.Errorf("%d left, want 1", left)
	}
	if took := time.Since(began); took < 300*time.Millisecond || took > 2*time.Second {
		t.Errorf("took %s, want 300 ms", took)
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client sees %v, want a reset", err)
	}
	if c, err := net.Dial("tcp", conn.RemoteAddr().String()); err == nil {
		_ = c.Close()
		t.Error("somebody is still accepted")
	}
	r.apply(t, "tcp: 0") // changes nothing any more
}
