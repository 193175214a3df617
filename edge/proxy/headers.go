package proxy

import (
	"net/http"
	"net/netip"
	"strings"

	"wormhole/edge/upstream"
)

// The header law: what an app is told about the client comes from the edge alone.
//
// Names that say who the client is or how it came are dropped from the request and
// written anew, as are the names that other edges and CDNs use, and whatever an app
// could take for one of them: CGI and its heirs turn "-", "_" and "." into one and
// the same. The edge's fields are written apart from the client's, so a client
// cannot remove them by naming them in Connection. Fields of a trusted proxy are
// believed and continued.

// keepFromClient reports whether a field of a request, in canonical form, may pass
// to the app.
func keepFromClient(name string) bool {
	if strings.IndexByte(name, '_') >= 0 || strings.IndexByte(name, '.') >= 0 {
		return keepLookAlike(name)
	}
	return !identity(name)
}

// keepFromProxy is keepFromClient for a request that came from a trusted proxy. What
// the edge writes anew is dropped, because it has been taken into account.
func keepFromProxy(name string) bool {
	if strings.IndexByte(name, '_') >= 0 || strings.IndexByte(name, '.') >= 0 {
		return keepLookAlike(name)
	}
	switch name {
	case "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Real-Ip", "X-Request-Id", "Proxy":
		return false
	}
	return true
}

// keepLookAlike decides on a name with "_" or ".", by what an app may make of it.
func keepLookAlike(name string) bool {
	plain := http.CanonicalHeaderKey(strings.NewReplacer("_", "-", ".", "-").Replace(name))
	switch plain {
	case "Host", "Connection", "Content-Length", "Transfer-Encoding", "Upgrade", "Te", "Trailer", "Expect",
		"Keep-Alive", "Authorization", "Cookie", "Content-Type":
		return false
	}
	return !identity(plain)
}

// identity reports whether a field, in canonical form, speaks for the client or for
// an edge.
func identity(name string) bool {
	switch name[0] {
	case 'X':
		switch name {
		case "X-Real-Ip", "X-Request-Id", "X-Client-Ip", "X-Cluster-Client-Ip", "X-Original-Forwarded-For",
			"X-Envoy-External-Address", "X-Forwarded":
			return true
		}
		return strings.HasPrefix(name, "X-Forwarded-") || strings.HasPrefix(name, "X-Wormhole-")
	case 'F':
		return name == "Forwarded" || name == "Forwarded-For" || name == "Fastly-Client-Ip" || strings.HasPrefix(name, "Fly-")
	case 'C':
		return name == "Client-Ip" || name == "Cluster-Client-Ip" || strings.HasPrefix(name, "Cf-")
	case 'T':
		return name == "True-Client-Ip"
	case 'P':
		return name == "Proxy" // becomes HTTP_PROXY in CGI
	case 'W':
		return strings.HasPrefix(name, "Wormhole-")
	}
	return false
}

// identify writes what the app is told about the client into the request.
func (v *visit) identify(out *upstream.Request) {
	h := v.r.Header
	ip := clientIP(v.r.RemoteAddr)
	chain, client, proto, host := ip, ip, "http", out.Host
	if v.r.TLS != nil {
		proto = "https"
	}
	out.Keep = keepFromClient
	if len(v.rules.TrustedProxies) > 0 && contains(v.rules.TrustedProxies, ip) {
		out.Keep = keepFromProxy
		if before := strings.Join(h["X-Forwarded-For"], ", "); before != "" {
			chain = before + ", " + ip
			client = firstUntrusted(before, ip, v.rules.TrustedProxies)
		}
		proto = firstOf(h["X-Forwarded-Proto"], proto)
		host = firstOf(h["X-Forwarded-Host"], host)
	}
	out.Set = append(v.set[:0],
		upstream.Field{Name: "X-Forwarded-For", Value: chain},
		upstream.Field{Name: "X-Forwarded-Proto", Value: proto},
		upstream.Field{Name: "X-Forwarded-Host", Value: host},
		upstream.Field{Name: "X-Real-IP", Value: client},
		upstream.Field{Name: "X-Request-ID", Value: v.rec.RequestID},
	)
	if c := &v.rules.RequestHeaders; !c.Empty() {
		for _, name := range c.Remove {
			delete(h, name)
		}
		for _, f := range c.Set {
			delete(h, f.Name)
			out.Set = append(out.Set, upstream.Field{Name: f.Name, Value: f.Value})
		}
	}
}

// clientIP is the address of host:port without the port, zone and brackets.
func clientIP(remote string) string {
	if i := strings.LastIndexByte(remote, ':'); i >= 0 {
		remote = remote[:i]
	}
	remote = strings.TrimSuffix(strings.TrimPrefix(remote, "["), "]")
	if i := strings.IndexByte(remote, '%'); i >= 0 {
		remote = remote[:i]
	}
	return remote
}

// firstUntrusted walks an X-Forwarded-For chain from the edge outwards and returns
// the first address that is not a trusted proxy: the last one that anybody can vouch
// for. peer is who the request came from.
func firstUntrusted(chain, peer string, trusted []netip.Prefix) string {
	hops := strings.Split(chain, ",")
	last := peer
	for i := len(hops) - 1; i >= 0; i-- {
		hop := strings.TrimSpace(hops[i])
		if _, err := netip.ParseAddr(hop); err != nil {
			return last
		}
		last = hop
		if !contains(trusted, hop) {
			return last
		}
	}
	return last
}

func contains(networks []netip.Prefix, ip string) bool {
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return false
	}
	addr = addr.Unmap()
	for _, n := range networks {
		if n.Contains(addr) {
			return true
		}
	}
	return false
}

func firstOf(values []string, otherwise string) string {
	if len(values) > 0 && values[0] != "" {
		return values[0]
	}
	return otherwise
}
