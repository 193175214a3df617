package nameserver

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func skipUnlessCI(t *testing.T, why error) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}

func TestWhoProvesItsAddressIsNotLimited(t *testing.T) {
	s := start(t, three(), func(c *Config) { c.Rate = 5 })
	from := netip.MustParseAddr("192.0.2.1")
	cookie := func(text string) *dns.Msg {
		q := query("edge.example.com", dns.TypeA)
		q.SetEdns0(1232, false)
		q.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: text}}
		return q
	}
	told := func(m *dns.Msg) string { return m.IsEdns0().Option[0].(*dns.EDNS0_COOKIE).Cookie }
	whole := told(s.reply(cookie("0102030405060708"), from, true))
	if len(whole) != 2*(clientCookie+serverCookie) {
		t.Fatalf("the cookie is %s", whole)
	}
	count := func(q *dns.Msg, from netip.Addr) (full, slips int) {
		for range 100 {
			switch m := s.reply(q.Copy(), from, true); {
			case m == nil:
			case m.Truncated && len(m.Answer) == 0:
				slips++
			case len(m.Answer) == 3:
				full++
			}
		}
		return full, slips
	}
	if full, slips := count(query("edge.example.com", dns.TypeA), from); full < 9 || full > 11 || slips < 40 || slips > 50 {
		t.Errorf("without a cookie: %d whole answers and %d that say TCP, want about 9 and 45", full, slips)
	}
	if full, _ := count(query("edge.example.com", dns.TypeA), netip.MustParseAddr("192.0.2.200")); full != 0 {
		t.Errorf("its neighbour got %d answers more", full)
	}
	if full, _ := count(cookie(whole), from); full != 100 {
		t.Errorf("with its cookie: %d of 100", full)
	}
	if full, _ := count(cookie(whole), netip.MustParseAddr("192.0.2.2")); full != 0 {
		t.Errorf("with somebody else's cookie: %d of 100", full)
	}
	for range 100 { // TCP proves the address too
		if m := s.reply(query("edge.example.com", dns.TypeA), from, false); len(m.Answer) != 3 {
			t.Fatal("TCP is limited")
		}
	}
	// A cookie lasts an hour, and none comes from the future.
	c, now := &s.cookies, time.Now()
	for after, want := range map[time.Duration]bool{0: true, 59 * time.Minute: true, 61 * time.Minute: false, -4 * time.Minute: true, -6 * time.Minute: false} {
		if _, proven, good := c.check(whole, from, now.Add(after)); !good || proven != want {
			t.Errorf("after %s: good %t, proven %t, want %t", after, good, proven, want)
		}
	}
}

// A flood of all that can be sent costs no memory and no log lines, and leaves a
// resolver that comes by TCP its answers.
func TestAFloodIsBounded(t *testing.T) {
	var lines countingWriter
	cfg := Config{Listen: "127.0.0.1:0", Zones: []string{"edge.example.com"}}
	s, err := New(cfg, three(), slog.New(slog.NewTextHandler(&lines, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Run(ctx) })
	defer wg.Wait()
	defer cancel()

	runtime.GC()
	var before, now runtime.MemStats
	runtime.ReadMemStats(&before)
	routines := runtime.NumGoroutine()
	var sent atomic.Uint64
	stop := make(chan struct{})
	var flood sync.WaitGroup
	for i := range 4 {
		flood.Go(func() {
			conn, err := net.Dial("udp", s.Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				q := query(fmt.Sprintf("random-%d-%d.edge.example.com", i, n), dns.TypeANY)
				wire, _ := q.Pack()
				if n%3 == 0 {
					wire = bytes.Repeat([]byte{byte(n), 0}, 600)
				}
				if _, err := conn.Write(wire); err == nil {
					sent.Add(1)
				}
			}
		})
	}
	var idle []net.Conn // and somebody who opens connections and says nothing
	for range 2 * mostOfOne {
		if conn, err := net.Dial("tcp", s.Addr().String()); err == nil {
			idle = append(idle, conn)
		}
	}
	peak, most := uint64(0), 0
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		runtime.ReadMemStats(&now)
		peak, most = max(peak, now.HeapAlloc), max(most, runtime.NumGoroutine())
	}
	for _, conn := range idle {
		_ = conn.Close()
	}
	answered := false
	for end := time.Now().Add(10 * time.Second); !answered && time.Now().Before(end); {
		c := &dns.Client{Net: "tcp", Timeout: 2 * time.Second}
		m, _, err := c.Exchange(query("app.edge.example.com", dns.TypeA), s.Addr().String())
		answered = err == nil && len(m.Answer) == 3
	}
	close(stop)
	flood.Wait()
	counts := s.Counts()
	grown := float64(peak-min(peak, before.HeapAlloc)) / (1 << 20)
	t.Logf("%d datagrams sent, outcomes %v; heap grew %.1f MiB at most, goroutines from %d to %d, %d log lines", sent.Load(), counts, grown, routines, most, lines.n.Load())
	if grown > 32 {
		t.Errorf("the heap grew by %.1f MiB", grown)
	}
	if most > routines+4+mostOfOne+10 {
		t.Errorf("%d goroutines, %d before", most, routines)
	}
	if lines.n.Load() > 0 {
		t.Errorf("%d lines were logged", lines.n.Load())
	}
	if !answered {
		t.Error("a resolver over TCP got no answer")
	}
	if sent.Load() < 1000 || counts["limited"] < 500 {
		t.Errorf("this was no flood: %d sent, %v", sent.Load(), counts)
	}
	if whole := counts["nxdomain"] + counts["malformed"]; whole > 200+20*defaultRate {
		t.Errorf("%d answers were given to one network", whole)
	}
}

type countingWriter struct{ n atomic.Uint64 }

func (w *countingWriter) Write(b []byte) (int, error) {
	w.n.Add(1)
	return io.Discard.Write(b)
}

func TestOneNetworkCannotHoldAllConnections(t *testing.T) {
	d := newDoor(nil)
	one := netip.MustParsePrefix("192.0.2.0/24")
	for i := range 2 * mostOfOne {
		if got := d.enter(one); got != (i < mostOfOne) {
			t.Fatalf("connection %d: %t", i+1, got)
		}
	}
	let := mostOfOne
	for i := range mostConns {
		if d.enter(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)) {
			let++
		}
	}
	if let != mostConns {
		t.Errorf("%d connections are open, want %d", let, mostConns)
	}
	d.leave(one)
	if !d.enter(one) {
		t.Error("who left is still counted")
	}
}

func FuzzAnswer(f *testing.F) {
	for _, q := range []*dns.Msg{
		query("edge.example.com", dns.TypeA), query("*.wild.edge.example.com", dns.TypeAAAA), query("x.y.edge.example.com", dns.TypeNS),
		query(`a\.b\000.edge.example.com`, dns.TypeANY), query(".", dns.TypeSOA), query("edge.example.com", dns.TypeIXFR),
	} {
		wire, err := q.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire)
		q.SetEdns0(4096, true)
		q.IsEdns0().Option = []dns.EDNS0{
			&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"},
			&dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 2, SourceNetmask: 56, Address: net.ParseIP("2001:db8::")},
		}
		if wire, err = q.Pack(); err != nil {
			f.Fatal(err)
		}
		f.Add(wire)
	}
	s, err := New(Config{Listen: "127.0.0.1:0", Zones: []string{"edge.example.com", "test"}, Rate: 1e9, Places: []Place{place(f, "10.0.0.0/8=fra"), place(f, "2001:db8::/32=yyz/fra")}}, three(), quiet)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = s.Close() })
	from := netip.MustParseAddr("192.0.2.1")
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, udp := range []bool{true, false} {
			m := s.answer(raw, from, udp)
			if s.panics.Load() > 0 {
				t.Fatal("it panics")
			}
			if m == nil {
				continue
			}
			wire, err := m.Pack()
			if err != nil {
				t.Fatalf("%v cannot be sent: %v", m, err)
			}
			if udp && len(wire) > maxUDP {
				t.Fatalf("an answer of %d bytes", len(wire))
			}
			back := new(dns.Msg)
			if err := back.Unpack(wire); err != nil {
				t.Fatalf("%x is no message: %v", wire, err)
			}
			if !back.Response || back.RecursionAvailable || !bytes.Equal(wire[:2], raw[:2]) {
				t.Fatalf("%v is no answer", back)
			}
			if len(back.Answer) > 0 && !dns.IsSubDomain("edge.example.com.", back.Question[0].Name) {
				t.Fatalf("answered for somebody else: %v", back)
			}
		}
	})
}

func BenchmarkAnswer(b *testing.B) {
	n := three()
	s, err := New(Config{Listen: "127.0.0.1:0", Zones: []string{"edge.example.com"}, Rate: 1e9}, n, quiet)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	wire, _ := query("app.edge.example.com", dns.TypeA).Pack()
	out := make([]byte, maxUDP)
	from := netip.MustParseAddr("192.0.2.1")
	b.ReportAllocs()
	for b.Loop() {
		m := s.answer(wire, from, true)
		if _, err := m.PackBuffer(out); err != nil {
			b.Fatal(err)
		}
	}
}
