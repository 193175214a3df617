package nameserver

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"wormhole/shared/hostname"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var quiet = slog.New(slog.DiscardHandler)

// fixed is a network that the test sets.
type fixed struct {
	mu    sync.Mutex // guards edges, sites
	edges []Edge
	sites []string
}

func (f *fixed) Edges() []Edge {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.edges)
}

func (f *fixed) Pattern(host string) (string, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.sites {
		if hostname.Match(s, host) {
			return s, true
		}
	}
	return "", false
}

func (f *fixed) Patterns(yield func(string) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.sites {
		if !yield(s) {
			return
		}
	}
}

func addrs(texts ...string) (out []netip.Addr) {
	for _, text := range texts {
		out = append(out, netip.MustParseAddr(text))
	}
	return out
}

// three edges in three regions, and sites of three kinds.
func three() *fixed {
	return &fixed{
		edges: []Edge{
			{Region: "yyz", Hostname: "yyz.edge.example.com", Addrs: addrs("203.0.113.1", "2001:db8::1"), DNS: true, Live: true},
			{Region: "fra", Hostname: "fra.edge.example.com", Addrs: addrs("203.0.113.2", "2001:db8::2"), DNS: true, Live: true},
			{Region: "sin", Hostname: "sin.example.net", Addrs: addrs("203.0.113.3"), Live: true},
		},
		sites: []string{"app.edge.example.com", "deep.shop.edge.example.com", "*.wild.edge.example.com", "elsewhere.example.org"},
	}
}

func place(t testing.TB, text string) Place {
	t.Helper()
	p, err := ParsePlace(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// start runs a server on loopback.
func start(t testing.TB, n Network, change ...func(*Config)) *Server {
	t.Helper()
	cfg := Config{Listen: "127.0.0.1:0", Zones: []string{"edge.example.com"}}
	for _, f := range change {
		f(&cfg)
	}
	s, err := New(cfg, n, quiet)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("run: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("the server does not stop")
		}
	})
	return s
}

func query(name string, qtype uint16) *dns.Msg {
	return new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
}

// exchange asks over a real socket.
func exchange(t testing.TB, s *Server, network string, q *dns.Msg) *dns.Msg {
	t.Helper()
	c := &dns.Client{Net: network, Timeout: 5 * time.Second}
	m, _, err := c.Exchange(q, s.Addr().String())
	if err != nil {
		t.Fatalf("%v over %s: %v", q.Question, network, err)
	}
	return m
}

// said is what a message answers, in an order of its own.
func said(m *dns.Msg) string {
	var out []string
	for _, rr := range m.Answer {
		out = append(out, strings.Join(strings.Fields(strings.TrimPrefix(rr.String(), rr.Header().String())), " "))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func TestNamesAreAnsweredAsTheyAre(t *testing.T) {
	s := start(t, three())
	const all = "203.0.113.1 203.0.113.2 203.0.113.3"
	for _, c := range []struct {
		name  string
		qtype uint16
		rcode int
		want  string
	}{
		{"edge.example.com", dns.TypeA, 0, all},
		{"edge.example.com", dns.TypeAAAA, 0, "2001:db8::1 2001:db8::2"},
		{"edge.example.com", dns.TypeNS, 0, "fra.edge.example.com. yyz.edge.example.com."},
		{"edge.example.com", dns.TypeSOA, 0, "fra.edge.example.com. hostmaster.edge.example.com. 1 3600 600 86400 30"},
		{"edge.example.com", dns.TypeANY, 0, `"RFC8482" ""`},
		{"edge.example.com", dns.TypeMX, 0, ""},
		{"EdGe.eXample.COM", dns.TypeA, 0, all},
		{"fra.edge.example.com", dns.TypeA, 0, "203.0.113.2"},
		{"fra.edge.example.com", dns.TypeAAAA, 0, "2001:db8::2"},
		{"app.edge.example.com", dns.TypeA, 0, all},
		{"app.edge.example.com", dns.TypeCAA, 0, ""}, // CAs ask this before they issue
		{"a.wild.edge.example.com", dns.TypeA, 0, all},
		{"*.wild.edge.example.com", dns.TypeA, 0, all},
		{"wild.edge.example.com", dns.TypeA, 0, ""}, // only names below it exist
		{"shop.edge.example.com", dns.TypeA, 0, ""},
		{"deep.shop.edge.example.com", dns.TypeA, 0, all},
		{"b.a.wild.edge.example.com", dns.TypeA, dns.RcodeNameError, ""},
		{"*.edge.example.com", dns.TypeA, dns.RcodeNameError, ""},
		{"nobody.edge.example.com", dns.TypeA, dns.RcodeNameError, ""},
		{"_acme-challenge.edge.example.com", dns.TypeTXT, dns.RcodeNameError, ""},
		{`x\.edge.example.com`, dns.TypeA, dns.RcodeRefused, ""}, // one label, not below the zone
		{"example.com", dns.TypeA, dns.RcodeRefused, ""},
		{"notedge.example.com", dns.TypeA, dns.RcodeRefused, ""},
		{"elsewhere.example.org", dns.TypeA, dns.RcodeRefused, ""},
		{".", dns.TypeNS, dns.RcodeRefused, ""},
		{".", dns.TypeANY, dns.RcodeRefused, ""},
		{"edge.example.com", dns.TypeIXFR, dns.RcodeRefused, ""},
		{"edge.example.com", dns.TypeAXFR, dns.RcodeRefused, ""},
	} {
		for _, network := range []string{"udp", "tcp"} {
			q := query(c.name, c.qtype)
			q.RecursionDesired = true
			m := exchange(t, s, network, q)
			if m.Rcode != c.rcode || said(m) != c.want {
				t.Errorf("%s %s over %s: %s %q, want %s %q", c.name, dns.TypeToString[c.qtype], network,
					dns.RcodeToString[m.Rcode], said(m), dns.RcodeToString[c.rcode], c.want)
			}
			ours := c.rcode != dns.RcodeRefused
			if m.Authoritative != ours || m.RecursionAvailable || m.Question[0].Name != dns.Fqdn(c.name) {
				t.Errorf("%s: header %v, question %v", c.name, m.MsgHdr, m.Question)
			}
			// RFC 2308: a denial brings the zone's SOA, which says how long it holds.
			if denied := ours && c.want == ""; denied != (len(m.Ns) == 1 && m.Ns[0].Header().Rrtype == dns.TypeSOA) {
				t.Errorf("%s %s: authority section %v", c.name, dns.TypeToString[c.qtype], m.Ns)
			}
			for _, rr := range m.Answer {
				if rr.Header().Name != dns.Fqdn(c.name) {
					t.Errorf("%s: the answer is about %s", c.name, rr.Header().Name)
				}
			}
		}
	}
	glue := exchange(t, s, "udp", query("edge.example.com", dns.TypeNS)).Extra
	if len(glue) != 4 {
		t.Errorf("glue is %v, want two names with two addresses each", glue)
	}
}

func TestADeadEdgeLeavesAndComesBack(t *testing.T) {
	n := three()
	s := start(t, n)
	ask := func(name string) string { return said(exchange(t, s, "tcp", query(name, dns.TypeA))) }
	set := func(live bool) {
		n.mu.Lock()
		n.edges[1].Live = live
		n.mu.Unlock()
	}
	for _, c := range []struct {
		live bool
		want string
	}{{false, "203.0.113.1 203.0.113.3"}, {true, "203.0.113.1 203.0.113.2 203.0.113.3"}} {
		set(c.live)
		began := time.Now()
		for ask("edge.example.com") != c.want {
			if time.Since(began) > 5*time.Second {
				t.Fatalf("live %t: still %s", c.live, ask("edge.example.com"))
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Logf("live %t: told after %s", c.live, time.Since(began))
		if got := ask("fra.edge.example.com"); got != "203.0.113.2" {
			t.Errorf("its own name has %q", got)
		}
	}
}

func TestASiteStaysKnownWhileItsBackendRestarts(t *testing.T) {
	n := three()
	s := start(t, n)
	exchange(t, s, "tcp", query("app.edge.example.com", dns.TypeA))
	exchange(t, s, "tcp", query("a.wild.edge.example.com", dns.TypeA))
	n.mu.Lock()
	n.sites = nil
	n.mu.Unlock()
	for name, want := range map[string]int{
		"app.edge.example.com": 0, "b.wild.edge.example.com": 0, "deep.shop.edge.example.com": dns.RcodeNameError,
	} {
		if got := exchange(t, s, "tcp", query(name, dns.TypeA)).Rcode; got != want {
			t.Errorf("%s: %s, want %s", name, dns.RcodeToString[got], dns.RcodeToString[want])
		}
	}
	if s.known.has("app.edge.example.com", time.Now().Add(2*remembered)) {
		t.Error("a site is remembered for ever")
	}
	for i := range mostKnown + 10 {
		s.known.note(fmt.Sprint(i), time.Now())
	}
	if len(s.known.at) > mostKnown {
		t.Errorf("%d sites are remembered", len(s.known.at))
	}
}

func TestNearRegionsComeFirst(t *testing.T) {
	s := start(t, three(), func(c *Config) {
		c.Places = []Place{
			place(t, "198.51.100.0/22=sin/fra"), place(t, "198.51.100.128/25=yyz"), place(t, "2001:db8:a::/48=fra"),
			place(t, "127.0.0.0/8=fra"), place(t, "0.0.0.0/1=yyz/sin"),
		}
	})
	first := func(m *dns.Msg) string {
		if len(m.Answer) == 0 {
			return "none"
		}
		return m.Answer[0].(*dns.A).A.String()
	}
	subnet := func(m *dns.Msg) *dns.EDNS0_SUBNET {
		if opt := m.IsEdns0(); opt != nil {
			for _, o := range opt.Option {
				if o, ok := o.(*dns.EDNS0_SUBNET); ok {
					return o
				}
			}
		}
		return nil
	}
	if got := first(exchange(t, s, "udp", query("edge.example.com", dns.TypeA))); got != "203.0.113.2" {
		t.Errorf("a resolver in fra is sent to %s first", got)
	}
	for _, c := range []struct {
		client string
		first  string // empty: any
		second string
		scope  uint8
	}{
		{"198.51.100.0/25", "203.0.113.3", "203.0.113.2", 25}, // beside the special network
		{"198.51.100.192/26", "203.0.113.1", "", 25},
		{"198.51.101.0/24", "203.0.113.3", "203.0.113.2", 24},
		{"198.51.96.0/24", "", "", 22},
		{"10.1.2.0/24", "203.0.113.1", "203.0.113.3", 2}, // 64.0.0.0/2 has 127/8 in it
		{"2001:db8:a:1::/64", "203.0.113.2", "", 48},
		{"2001:db8:b::/48", "", "", 48},
		{"0.0.0.0/0", "203.0.113.2", "", 0}, // who wants no subnet used gets the resolver's place
	} {
		p := netip.MustParsePrefix(c.client)
		q := query("edge.example.com", dns.TypeA)
		q.SetEdns0(1232, false)
		family := uint16(1)
		if p.Addr().Is6() {
			family = 2
		}
		q.IsEdns0().Option = append(q.IsEdns0().Option, &dns.EDNS0_SUBNET{
			Code: dns.EDNS0SUBNET, Family: family, SourceNetmask: uint8(p.Bits()), Address: net.IP(p.Addr().AsSlice()),
		})
		m := exchange(t, s, "udp", q)
		if c.first != "" && first(m) != c.first || c.second != "" && m.Answer[1].(*dns.A).A.String() != c.second || len(m.Answer) != 3 {
			t.Errorf("a client in %s is sent to %v", c.client, m.Answer)
		}
		if o := subnet(m); o == nil || o.SourceScope != c.scope || o.SourceNetmask != uint8(p.Bits()) || !o.Address.Equal(net.IP(p.Addr().AsSlice())) {
			t.Errorf("a client in %s: the answer holds for %v, want scope %d", c.client, o, c.scope)
		}
	}
	bad := query("edge.example.com", dns.TypeA)
	bad.SetEdns0(1232, false)
	bad.IsEdns0().Option = append(bad.IsEdns0().Option, &dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 24, SourceScope: 3, Address: net.IPv4(10, 0, 0, 0)})
	if m := exchange(t, s, "udp", bad); m.Rcode != dns.RcodeFormatError {
		t.Errorf("a query with a scope gets %s", dns.RcodeToString[m.Rcode])
	}
}

// The scope promises the same answer for every address of the prefix; here that is
// checked address by address.
func TestTheScopeIsTrue(t *testing.T) {
	places := []Place{place(t, "10.0.0.0/28=a"), place(t, "10.0.0.4/30=b"), place(t, "10.0.0.9/32=c"), place(t, "10.0.0.64/26=d")}
	for i := range 256 {
		addr := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
		regions, scope := locate(places, addr)
		around, err := addr.Prefix(scope)
		if err != nil {
			t.Fatal(err)
		}
		for j := range 256 {
			other := netip.AddrFrom4([4]byte{10, 0, 0, byte(j)})
			if got, _ := locate(places, other); around.Contains(other) && !slices.Equal(got, regions) {
				t.Fatalf("%s is in %v, and %s in the same /%d in %v", addr, regions, other, scope, got)
			}
		}
	}
	for _, text := range []string{"", "=", "10.0.0.0/8", "10.0.0.1/8=fra", "10.0.0.0/8=", "10.0.0.0/8=a//b", "::ffff:10.0.0.0/104=a", "fra=10.0.0.0/8"} {
		if _, err := ParsePlace(text); err == nil {
			t.Errorf("%q is taken for a place", text)
		}
	}
}

func TestAnswersFitAndTheRestComesByTCP(t *testing.T) {
	n := &fixed{}
	for i := range 40 {
		n.edges = append(n.edges, Edge{
			Hostname: fmt.Sprintf("a-rather-long-name-for-edge-number-%d.edge.example.com", i), DNS: true, Live: true,
			Addrs: addrs(fmt.Sprintf("203.0.113.%d", i), fmt.Sprintf("2001:db8::%x", i)),
		})
	}
	s := start(t, n)
	for _, c := range []struct {
		qtype     uint16
		edns      uint16 // 0: none
		fits      int    // bytes
		truncated bool
		answers   int // over TCP
	}{
		{dns.TypeA, 0, 512, false, maxAnswers},
		{dns.TypeAAAA, 0, 512, false, maxAnswers},
		{dns.TypeAAAA, 1232, 1232, false, maxAnswers},
		{dns.TypeNS, 1232, 1232, true, maxServers}, // the glue does not fit
		{dns.TypeNS, 65535, 1232, true, maxServers},
		{dns.TypeNS, 100, 512, true, maxServers},
	} {
		q := query("edge.example.com", c.qtype)
		if c.edns > 0 {
			q.SetEdns0(c.edns, false)
		}
		conn, err := net.Dial("udp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		wire, _ := q.Pack()
		_, _ = conn.Write(wire)
		_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		buf := make([]byte, 65535)
		size, err := conn.Read(buf)
		_ = conn.Close()
		m := new(dns.Msg)
		if err != nil || m.Unpack(buf[:size]) != nil {
			t.Fatalf("no answer: %v", err)
		}
		if size > c.fits || m.Truncated != c.truncated {
			t.Errorf("%s with EDNS %d: %d bytes, truncated %t", dns.TypeToString[c.qtype], c.edns, size, m.Truncated)
		}
		if opt := m.IsEdns0(); (opt != nil) != (c.edns > 0) || opt != nil && opt.UDPSize() != 1232 {
			t.Errorf("%s with EDNS %d: the answer's own is %v", dns.TypeToString[c.qtype], c.edns, opt)
		}
		whole := exchange(t, s, "tcp", q)
		if whole.Truncated || len(whole.Answer) != c.answers {
			t.Errorf("%s over TCP: %d answers, truncated %t", dns.TypeToString[c.qtype], len(whole.Answer), whole.Truncated)
		}
	}
	// Every edge has its turn.
	seen := map[string]bool{}
	for range 50 {
		for _, rr := range exchange(t, s, "tcp", query("edge.example.com", dns.TypeA)).Answer {
			seen[rr.(*dns.A).A.String()] = true
		}
	}
	if len(seen) != 40 {
		t.Errorf("%d of 40 edges were named in 50 answers", len(seen))
	}
}

func TestADatagramThatIsNoQueryIsToldSoOrIgnored(t *testing.T) {
	s := start(t, three())
	good := query("edge.example.com", dns.TypeA)
	good.Id = 7
	pack := func(change func(*dns.Msg)) []byte {
		m := good.Copy()
		change(m)
		wire, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return wire
	}
	plain := pack(func(*dns.Msg) {})
	for what, c := range map[string]struct {
		wire  []byte
		rcode int // -1: no answer
	}{
		"nothing":         {[]byte{}, -1},
		"half a header":   {plain[:11], -1},
		"a response":      {pack(func(m *dns.Msg) { m.Response = true }), -1},
		"an update":       {pack(func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }), dns.RcodeNotImplemented},
		"a notify":        {pack(func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }), dns.RcodeNotImplemented},
		"two questions":   {pack(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), dns.RcodeFormatError},
		"no question":     {pack(func(m *dns.Msg) { m.Question = nil }), dns.RcodeFormatError},
		"an answer in it": {pack(func(m *dns.Msg) { m.Answer = []dns.RR{&dns.A{Hdr: header(".", dns.TypeA, 1), A: net.IPv4zero}} }), dns.RcodeFormatError},
		"cut":             {plain[:len(plain)-3], dns.RcodeFormatError},
		"another class":   {pack(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), dns.RcodeRefused},
		"EDNS of later":   {pack(func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }), dns.RcodeBadVers},
		"EDNS twice":      {pack(func(m *dns.Msg) { m.SetEdns0(1232, false); m.SetEdns0(1232, false) }), dns.RcodeFormatError},
		"a short cookie": {pack(func(m *dns.Msg) {
			m.SetEdns0(1232, false)
			m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0011"}}
		}), dns.RcodeFormatError},
		"a query": {plain, dns.RcodeSuccess},
	} {
		got := -1
		if m := s.answer(c.wire, netip.MustParseAddr("192.0.2.1"), true); m != nil {
			wire, err := m.Pack()
			back := new(dns.Msg)
			if err != nil || back.Unpack(wire) != nil || !back.Response || back.Id != 7 {
				t.Fatalf("%s: the answer %v is none (%v)", what, m, err)
			}
			got = back.Rcode
		}
		if got != c.rcode {
			t.Errorf("%s: %d, want %d", what, got, c.rcode)
		}
	}
}

// dig is what operators try it with. It also sends what a resolver sends: EDNS, a
// cookie, the AD bit.
func TestDigUnderstandsTheAnswers(t *testing.T) {
	if _, err := exec.LookPath("dig"); err != nil {
		if testing.Verbose() {
			t.Log("apt-get install bind9-dnsutils")
		}
		skipUnlessCI(t, err)
	}
	s := start(t, three())
	host, port, _ := net.SplitHostPort(s.Addr().String())
	dig := func(args ...string) string {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, "dig", append([]string{"@" + host, "-p", port}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("dig %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	for _, c := range []struct{ args, want string }{
		{"app.edge.example.com A", "status: NOERROR"},
		{"app.edge.example.com A", "ANSWER: 3, AUTHORITY: 0"},
		{"app.edge.example.com A", "(good)"}, // the cookie came back as RFC 7873 wants it
		{"+tcp app.edge.example.com A", "ANSWER: 3"},
		{"+short fra.edge.example.com AAAA", "2001:db8::2"},
		{"nobody.edge.example.com A", "status: NXDOMAIN"},
		{"example.org A", "status: REFUSED"},
		{"edge.example.com ANY", "RFC8482"},
		{"+subnet=198.51.100.0/24 edge.example.com A", "CLIENT-SUBNET: 198.51.100.0/24/0"},
		{"edge.example.com AXFR", "Transfer failed"},
	} {
		if out := dig(strings.Fields(c.args)...); !strings.Contains(out, c.want) || strings.Contains(out, "WARNING: Message parser reports") {
			t.Errorf("dig %s: no %q in\n%s", c.args, c.want, out)
		}
	}
}
