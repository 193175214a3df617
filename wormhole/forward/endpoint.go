package forward

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// Endpoint is the address of the app. The zero value is no endpoint.
type Endpoint struct {
	text    string
	network string   // "tcp" or "unix"
	addrs   []string // what to dial, first answer wins
	host    string   // for the Host header and for verifying a certificate

	tls      bool
	insecure bool // tls without verification
	h2c      bool
}

// ParseEndpoint reads an endpoint:
//
//	8080, :8080, localhost:8080   this machine, over IPv4 or IPv6
//	host:port, http://host:port   any host
//	unix:/path                    a unix socket
//	https://host:port             TLS to the app, certificate verified
//	https+insecure://host:port    TLS to the app, certificate not verified
//	h2c://host:port               HTTP/2 without TLS, as gRPC servers speak it
func ParseEndpoint(s string) (Endpoint, error) {
	e := Endpoint{text: s, network: "tcp"}
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		if strings.HasPrefix(path, "//") {
			path = "/" + strings.TrimLeft(path, "/")
		}
		if path == "" || path == "/" {
			return Endpoint{}, errors.New("unix: needs the path of a socket")
		}
		if len(path) > 107 { // sun_path, unix(7)
			return Endpoint{}, errors.New("path of the unix socket is longer than 107 bytes")
		}
		if strings.ContainsRune(path, 0) {
			return Endpoint{}, errors.New("path of the unix socket contains a NUL byte")
		}
		e.network, e.addrs, e.host = "unix", []string{path}, "localhost"
		return e, nil
	}

	hostport, defaultPort := s, ""
	if scheme, _, ok := strings.Cut(s, "://"); ok {
		switch scheme {
		case "http", "tcp":
			defaultPort = "80"
		case "https":
			e.tls, defaultPort = true, "443"
		case "https+insecure":
			e.tls, e.insecure, defaultPort = true, true, "443"
		case "h2c":
			e.h2c, defaultPort = true, "80"
		default:
			return Endpoint{}, fmt.Errorf("scheme %q is none of http, https, https+insecure, h2c, unix", scheme)
		}
		u, err := url.Parse(s)
		if err != nil {
			return Endpoint{}, errors.New("not a URL")
		}
		if u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
			return Endpoint{}, errors.New("only scheme, host and port may be given")
		}
		hostport = u.Host
	}
	host, port, err := splitHostPort(hostport, defaultPort)
	if err != nil {
		return Endpoint{}, err
	}
	e.host = host
	if host == "" || host == "localhost" {
		// Without a resolver: minimal images may have no /etc/hosts, and apps listen
		// on either family.
		e.host = "localhost"
		e.addrs = []string{net.JoinHostPort("127.0.0.1", port), net.JoinHostPort("::1", port)}
		return e, nil
	}
	e.addrs = []string{net.JoinHostPort(host, port)}
	return e, nil
}

// At is the endpoint of an app that was found listening: addrs are host:port,
// tried in turn. Everything but the address is as in e.
func (e Endpoint) At(addrs ...string) Endpoint {
	if len(addrs) == 0 {
		return Endpoint{}
	}
	e.text, e.network, e.host, e.addrs = addrs[0], "tcp", "localhost", addrs
	return e
}

func splitHostPort(s, defaultPort string) (host, port string, err error) {
	switch {
	case s != "" && strings.Trim(s, "0123456789") == "":
		port = s
	case !strings.Contains(s, ":") || strings.HasSuffix(s, "]"):
		host, port = strings.Trim(s, "[]"), defaultPort
	default:
		if host, port, err = net.SplitHostPort(s); err != nil {
			return "", "", errors.New("not host:port (an IPv6 address goes in brackets)")
		}
	}
	if port == "" {
		return "", "", errors.New("the port is missing")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", "", fmt.Errorf("port %.20q is not between 1 and 65535", port)
	}
	if _, err := netip.ParseAddr(host); err == nil || host == "" {
		return host, port, nil
	}
	for _, r := range host {
		if r <= ' ' || r == 0x7f || strings.ContainsRune(`/\:@%?#[]"<>`, r) {
			return "", "", fmt.Errorf("host %.100q contains %q", host, r)
		}
	}
	return host, port, nil
}

// IsZero reports whether there is no endpoint.
func (e Endpoint) IsZero() bool { return len(e.addrs) == 0 }

// String is the endpoint as it was written.
func (e Endpoint) String() string { return e.text }

// AppProtocol is what an agent announces for the app: "h2c", or empty for HTTP/1.1.
func (e Endpoint) AppProtocol() string {
	if e.h2c {
		return "h2c"
	}
	return ""
}

// hostHeader is the value of Host for requests of the agent itself (RFC 9110,
// section 7.2): the port is left out when it is the scheme's own.
func (e Endpoint) hostHeader() string {
	host := e.host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if e.network == "unix" {
		return host
	}
	_, port, _ := net.SplitHostPort(e.addrs[0])
	if port == "80" && !e.tls || port == "443" && e.tls {
		return host
	}
	return host + ":" + port
}
