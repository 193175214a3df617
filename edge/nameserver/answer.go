package nameserver

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"wormhole/shared/hostname"
)

// outcome is what became of a query, for the metrics.
type outcome int

const (
	answered outcome = iota
	noData
	noName
	refused
	malformed
	limited
	outcomes
)

// String names the outcome as the metrics do.
func (o outcome) String() string {
	return [...]string{"answered", "nodata", "nxdomain", "refused", "malformed", "limited"}[o]
}

// Counts is how many queries had each outcome, by its name.
func (s *Server) Counts() map[string]uint64 {
	out := make(map[string]uint64, outcomes)
	for o := range outcomes {
		out[o.String()] = s.counts[o].Load()
	}
	return out
}

// Bits of a header (RFC 1035, section 4.1.1).
const (
	flagResponse = 1 << 15
	opcodeShift  = 11
)

// faultOf is the answer to what a header alone shows to be no query for us.
func faultOf(h dns.Header) int {
	switch {
	case int(h.Bits>>opcodeShift)&0xF != dns.OpcodeQuery:
		return dns.RcodeNotImplemented
	case h.Qdcount != 1 || h.Ancount != 0 || h.Nscount > 1 || h.Arcount > 2: // one more for TSIG; IXFR brings a SOA
		return dns.RcodeFormatError
	}
	return dns.RcodeSuccess
}

// answer is the answer to a datagram, nil for none.
func (s *Server) answer(raw []byte, from netip.Addr, udp bool) *dns.Msg {
	if len(raw) < headerSize {
		return nil
	}
	h := dns.Header{
		Id: binary.BigEndian.Uint16(raw), Bits: binary.BigEndian.Uint16(raw[2:]), Qdcount: binary.BigEndian.Uint16(raw[4:]),
		Ancount: binary.BigEndian.Uint16(raw[6:]), Nscount: binary.BigEndian.Uint16(raw[8:]), Arcount: binary.BigEndian.Uint16(raw[10:]),
	}
	if h.Bits&flagResponse != 0 {
		return nil // two servers must not talk for ever
	}
	q := new(dns.Msg)
	rcode := faultOf(h)
	if rcode == dns.RcodeSuccess {
		if q.Unpack(raw) == nil {
			return s.reply(q, from, udp)
		}
		rcode = dns.RcodeFormatError
	}
	if udp {
		if ok, _ := s.limit.allow(from, time.Now()); !ok {
			s.counts[limited].Add(1)
			return nil
		}
	}
	s.counts[malformed].Add(1)
	m := new(dns.Msg)
	m.Id, m.Response, m.Opcode, m.Rcode = h.Id, true, int(h.Bits>>opcodeShift)&0xF, rcode
	return m
}

// reply is the answer to a query whose header was accepted, nil for none. No query
// may bring the process down: other things than DNS live in it.
func (s *Server) reply(q *dns.Msg, from netip.Addr, udp bool) (m *dns.Msg) {
	defer func() {
		if r := recover(); r != nil {
			if n := s.panics.Add(1); n&(n-1) == 0 { // 1, 2, 4, 8…
				s.logger.Error("dns query not answered because of a bug", "count", n, "err", fmt.Sprint(r))
			}
			m = new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
		}
	}()
	if len(q.Question) != 1 {
		return new(dns.Msg).SetRcodeFormatError(q)
	}
	a := &asked{server: s, query: q, from: from, now: time.Now(), view: s.view.Load()}
	rcode := a.readOptions()
	size := dns.MaxMsgSize
	if udp {
		size = dns.MinMsgSize
		if a.opt != nil {
			size = min(max(int(a.opt.UDPSize()), dns.MinMsgSize), maxUDP)
		}
		if ok, slip := a.proven, false; !ok {
			if ok, slip = s.limit.allow(from, a.now); !ok {
				s.counts[limited].Add(1)
				if !slip {
					return nil
				}
				m = a.begin(dns.RcodeSuccess)
				m.Truncated = true
				return a.end(m, size)
			}
		}
	}
	if rcode != dns.RcodeSuccess {
		s.counts[malformed].Add(1)
		return a.end(a.begin(rcode), size)
	}
	m, o := a.resolve()
	s.counts[o].Add(1)
	return a.end(m, size)
}

// asked is one query on its way.
type asked struct {
	server *Server
	query  *dns.Msg
	from   netip.Addr
	now    time.Time
	view   *view

	opt    *dns.OPT
	subnet *dns.EDNS0_SUBNET
	cookie string // for the answer
	proven bool   // the client is where it says
}

// readOptions looks at EDNS (RFC 6891) and returns what is wrong with it.
func (a *asked) readOptions() (rcode int) {
	for _, rr := range a.query.Extra {
		if opt, ok := rr.(*dns.OPT); ok {
			if a.opt != nil {
				return dns.RcodeFormatError
			}
			a.opt = opt
		}
	}
	if a.opt == nil {
		return dns.RcodeSuccess
	}
	if a.opt.Version() != 0 {
		return dns.RcodeBadVers
	}
	for _, o := range a.opt.Option {
		switch o := o.(type) {
		case *dns.EDNS0_SUBNET:
			// RFC 7871, section 7.1.2: no scope in a query, no bits beyond the length.
			addr, _ := netip.AddrFromSlice(o.Address)
			if o.Family == 1 {
				addr = addr.Unmap()
			}
			prefix, err := addr.Prefix(int(o.SourceNetmask))
			if o.SourceScope != 0 || o.Family != 0 && (err != nil || prefix.Addr() != addr) || a.subnet != nil {
				return dns.RcodeFormatError
			}
			a.subnet = o
		case *dns.EDNS0_COOKIE:
			if a.cookie != "" {
				continue // the first counts
			}
			var good bool
			if a.cookie, a.proven, good = a.server.cookies.check(o.Cookie, a.from, a.now); !good {
				return dns.RcodeFormatError
			}
		}
	}
	return dns.RcodeSuccess
}

func (a *asked) begin(rcode int) *dns.Msg {
	m := new(dns.Msg)
	m.SetRcode(a.query, rcode)
	m.RecursionAvailable = false
	return m
}

// end adds what EDNS wants and makes m fit.
func (a *asked) end(m *dns.Msg, size int) *dns.Msg {
	if a.opt != nil {
		opt := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
		opt.SetUDPSize(maxUDP)
		if a.opt.Do() {
			opt.SetDo()
		}
		if a.cookie != "" {
			opt.Option = append(opt.Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: a.cookie})
		}
		if a.subnet != nil {
			opt.Option = append(opt.Option, a.subnet)
		}
		m.Extra = append(m.Extra, opt)
	}
	m.Truncate(size)
	return m
}

// resolve finds what is asked for.
func (a *asked) resolve() (*dns.Msg, outcome) {
	question := a.query.Question[0]
	zone := a.zone(question.Name)
	if zone == "" || question.Qclass != dns.ClassINET || question.Qtype == dns.TypeAXFR || question.Qtype == dns.TypeIXFR {
		return a.begin(dns.RcodeRefused), refused
	}
	name := strings.ToLower(strings.TrimSuffix(question.Name, "."))
	edges, exists := a.edgesOf(name, zone)
	if !exists {
		a.server.missed.Store(true)
		m := a.begin(dns.RcodeNameError)
		m.Authoritative = true
		m.Ns = []dns.RR{a.soa(zone)}
		return m, noName
	}
	m := a.begin(dns.RcodeSuccess)
	m.Authoritative = true
	switch {
	case question.Qtype == dns.TypeA || question.Qtype == dns.TypeAAAA:
		m.Answer = a.addresses(question.Name, question.Qtype, edges, a.server.ttl)
	case question.Qtype == dns.TypeANY:
		m.Answer = []dns.RR{&dns.HINFO{Hdr: header(question.Name, dns.TypeHINFO, steadyTTL), Cpu: "RFC8482"}}
	case name == zone && question.Qtype == dns.TypeSOA:
		m.Answer = []dns.RR{a.soa(zone)}
	case name == zone && question.Qtype == dns.TypeNS:
		for _, server := range a.servers(zone) {
			m.Answer = append(m.Answer, &dns.NS{Hdr: header(question.Name, dns.TypeNS, steadyTTL), Ns: dns.Fqdn(server)})
			for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
				if a.zone(dns.Fqdn(server)) != "" {
					m.Extra = append(m.Extra, a.addresses(dns.Fqdn(server), qtype, a.serving(server, zone), a.server.ttl)...)
				}
			}
		}
	}
	if len(m.Answer) == 0 {
		m.Ns = []dns.RR{a.soa(zone)}
		return m, noData
	}
	return m, answered
}

// zone is the longest zone that a name as written in a query is in, empty if none.
func (a *asked) zone(name string) (zone string) {
	for _, z := range a.server.cfg.Zones {
		if len(z) > len(zone) && dns.IsSubDomain(dns.Fqdn(z), name) {
			zone = z
		}
	}
	return zone
}

// edgesOf are the edges that serve a name of zone, in lower case; exists says whether
// there is such a name at all.
func (a *asked) edgesOf(name, zone string) (edges []Edge, exists bool) {
	if name == zone {
		return a.view.live, true
	}
	if own := a.view.hosts[name]; len(own) > 0 {
		return livingOf(own), true
	}
	s := a.server
	host, wild := strings.CutPrefix(name, "*.")
	if canonical, err := hostname.Canonical(host); err != nil || canonical != host {
		return nil, false
	}
	if wild {
		// The asterisk itself: any name below stands for it.
		host = "asterisk." + host
	}
	if pattern, ok := s.network.Pattern(host); ok && (!wild || pattern == name) {
		s.known.note(pattern, a.now)
		return a.view.live, true
	}
	if s.known.has(name, a.now) || !wild && s.known.has("*."+hostname.Parent(name), a.now) {
		return a.view.live, true
	}
	_, between := (*s.between.Load())[name]
	if between {
		s.missed.Store(true) // it may be gone by now
	}
	return nil, between
}

// livingOf are those of edges that live, all if none does.
func livingOf(edges []Edge) []Edge {
	live := slices.Collect(func(yield func(Edge) bool) {
		for _, e := range edges {
			if e.Live && !yield(e) {
				return
			}
		}
	})
	if len(live) == 0 {
		return edges
	}
	return live
}

// serving is the edges that a name server's name stands for.
func (a *asked) serving(server, zone string) []Edge {
	if own := a.view.hosts[server]; server != zone && len(own) > 0 {
		return own
	}
	var out []Edge
	for _, e := range a.view.live {
		if e.DNS {
			out = append(out, e)
		}
	}
	return out
}

// servers are the names of the zone's servers; there is always one.
func (a *asked) servers(zone string) []string {
	if len(a.view.servers) == 0 {
		return []string{zone}
	}
	return a.view.servers
}

func (a *asked) soa(zone string) dns.RR {
	negative := min(a.server.ttl, uint32(defaultTTL/time.Second))
	return &dns.SOA{
		Hdr: header(dns.Fqdn(zone), dns.TypeSOA, negative),
		Ns:  dns.Fqdn(a.servers(zone)[0]), Mbox: dns.Fqdn("hostmaster." + zone),
		Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: negative, // nobody copies the zone
	}
}

// addresses are the records of one family, those of the nearest regions first and in
// random order otherwise. If the client's subnet was told, its scope is set.
func (a *asked) addresses(name string, qtype uint16, edges []Edge, ttl uint32) []dns.RR {
	edges = slices.Clone(edges)
	rand.Shuffle(len(edges), func(i, j int) { edges[i], edges[j] = edges[j], edges[i] })
	regions := a.near()
	rank := func(e Edge) int {
		if i := slices.Index(regions, e.Region); i >= 0 {
			return i
		}
		return len(regions)
	}
	slices.SortStableFunc(edges, func(x, y Edge) int { return cmp.Compare(rank(x), rank(y)) })
	var out []dns.RR
	for _, e := range edges {
		for _, addr := range e.Addrs {
			if addr.Is4() != (qtype == dns.TypeA) || len(out) == maxAnswers {
				continue
			}
			if addr.Is4() {
				out = append(out, &dns.A{Hdr: header(name, qtype, ttl), A: net.IP(addr.AsSlice())})
			} else {
				out = append(out, &dns.AAAA{Hdr: header(name, qtype, ttl), AAAA: net.IP(addr.AsSlice())})
			}
		}
	}
	return out
}

// near are the regions next to whom the answer is for: the client's subnet if the
// resolver tells it, else the resolver.
func (a *asked) near() []string {
	if a.subnet == nil || a.subnet.SourceNetmask == 0 {
		regions, _ := locate(a.server.cfg.Places, a.from)
		return regions
	}
	addr, _ := netip.AddrFromSlice(a.subnet.Address)
	if a.subnet.Family == 1 {
		addr = addr.Unmap()
	}
	regions, scope := locate(a.server.cfg.Places, addr)
	a.subnet.SourceScope = uint8(scope)
	return regions
}

func header(name string, rrtype uint16, ttl uint32) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}
