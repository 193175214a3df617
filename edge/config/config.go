// Package config turns defaults, a YAML file, the environment and flags into one
// value, in that order of precedence, and refuses a bad one with every fault
// listed. It knows words and shapes only; parts have Config types of their own.
package config

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/mail"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/net/publicsuffix"

	"wormhole/edge/cluster/kv"
	"wormhole/edge/site"
	"wormhole/shared/hostname"
	"wormhole/shared/tunnel/tlsmux"
)

// TLSMode says where the certificates of the public door come from.
type TLSMode string

// The modes.
const (
	TLSAuto     TLSMode = ""         // TLSACME if Hostname is a public name, else TLSInternal
	TLSACME     TLSMode = "acme"     // Let's Encrypt, or the CA of ACMEDirectory
	TLSInternal TLSMode = "internal" // a certificate authority in the data directory
	TLSFiles    TLSMode = "files"    // --cert and --key
)

// Config is everything an operator may set for one node. A flag `--some-name` is
// the key `some_name` in the file and the variable EDGE_SOME_NAME.
type Config struct {
	File string // the YAML file, or empty; not a key of the file itself

	DataDir  string // keys, certificates, sites; created with mode 0700
	StoreDir string // the durable store; "" is a folder of DataDir. Edges of one machine may share one
	Hostname string // this edge's own public name: what agents dial
	Region   string // where this edge is, such as "fra"

	HTTP  string // address of the plain door that redirects; "" switches it off
	HTTPS string // address of the public door, TCP and UDP
	Admin string // address of the operator's API
	QUIC  bool   // whether the UDP side of HTTPS is open, for HTTP/3 and agents

	TLS   TLSMode  // Validate resolves TLSAuto
	Certs []string // PEM files, with TLSFiles; with TLSACME they win for the names they hold
	Keys  []string // PEM files, one for each of Certs

	ACMEDirectory string // URL of the CA's directory; "" is Let's Encrypt
	ACMEStaging   bool   // Let's Encrypt's staging directory, whose certificates nobody trusts
	ACMEEmail     string // where the CA may write to; "" is nowhere
	ACMECAFile    string // PEM of the authority that signs the CA's own server; "" is the system's

	TrustedProxies []string      // CIDRs whose X-Forwarded-* are believed
	BackendHeader  string        // response header that names the backend; "" is off
	DrainDelay     time.Duration // between failing readiness and accepting no more, so that balancers in front notice
	DrainTimeout   time.Duration // how long requests in flight have when the node stops
	ParkTimeout    time.Duration // how long a request waits for a site's first backend
	MaxConnections int           // open client connections; 0 derives it from the descriptor limit

	TunnelConnections int    // most TCP connections of one tunnel; more than one are open only while there is bulk
	TunnelCongestion  string // TCP's congestion control for tunnels: a name, or "system"

	LogLevel  string // debug, info, warn, error
	LogFormat string // text, json; "" is text on a terminal, else json
	AccessLog string // "-" is standard error among the other lines, "off", or a file

	ClusterListen string // address of the mesh between edges; "" runs alone
	Advertise     string // host or host:port under which other edges and agents reach HTTPS; "" is Hostname
	Join          string // public door of a member of the cluster to join, host:port
	JoinTokenFile string // what `edge cluster join-token` printed

	NATS          []string // URLs of an external NATS cluster for bus and store, in place of the four above
	NATSCredsFile string   // NATS credentials for it
	NATSCAFile    string   // PEM of who certifies its servers; "" is the system's

	DNS          string        // address that answers DNS queries, UDP and TCP; "" is off
	DNSZones     []string      // names shared by the edges, answered for with all below them; they get certificates
	DNSAddresses []string      // public addresses of this edge, for answers; see PublicAddresses
	DNSPlaces    []string      // PREFIX=REGION[/REGION…]: which regions are near to whom
	DNSTTL       time.Duration // of addresses in answers

	UsageInterval time.Duration // about the time between two writes of usage totals

	Sites []site.Spec // key `sites` of the file only
}

// DefaultDataDir is /var/lib/wormhole for root, else the user's state directory.
func DefaultDataDir() string {
	if os.Geteuid() == 0 {
		return "/var/lib/wormhole"
	}
	if dir := os.Getenv("XDG_STATE_HOME"); dir != "" {
		return filepath.Join(dir, "wormhole")
	}
	if home, err := os.UserHomeDir(); err == nil {
		return filepath.Join(home, ".local", "state", "wormhole")
	}
	return "wormhole-data"
}

// Register defines the flags of c on fs with c's present values as defaults, so
// that `edge dev` differs from `edge serve` in values only.
func (c *Config) Register(fs *pflag.FlagSet) {
	fs.StringVar(&c.File, "config", c.File, "YAML `file` with the same keys as the flags (some-name is some_name) and a list of sites")
	fs.StringVar(&c.DataDir, "data-dir", c.DataDir, "`directory` for keys, certificates and sites")
	fs.StringVar(&c.StoreDir, "store-dir", c.StoreDir, "`directory` of the durable store, which edges on one machine may share; empty is inside --data-dir")
	fs.StringVar(&c.Hostname, "hostname", c.Hostname, "this edge's own public `name`: what agents dial")
	fs.StringVar(&c.ClusterListen, "cluster-listen", c.ClusterListen, "`address` for the mesh between edges, reachable by other edges only; empty runs alone")
	fs.StringVar(&c.Advertise, "advertise", c.Advertise, "`host` or host:port under which other edges and agents reach --https; empty is --hostname")
	fs.StringVar(&c.Join, "join", c.Join, "public `host:port` of a member of the cluster to join; ignored once joined")
	fs.StringVar(&c.JoinTokenFile, "join-token-file", c.JoinTokenFile, "`file` with what `edge cluster join-token` printed on a member")
	fs.StringVar(&c.DNS, "dns", c.DNS, "`address` that answers DNS queries for --dns-zone, UDP and TCP, such as :53; empty is off")
	fs.StringSliceVar(&c.DNSZones, "dns-zone", c.DNSZones, "`name` shared by the edges, delegated to them: DNS answers it, and the sites below it, with the edges that live; may be repeated")
	fs.StringSliceVar(&c.DNSAddresses, "dns-address", c.DNSAddresses, "public `IP` of this edge for DNS answers, also of other edges; may be repeated; empty is --advertise or --https if that is an IP")
	fs.StringSliceVar(&c.DNSPlaces, "dns-place", c.DNSPlaces, "`PREFIX=REGION`, or PREFIX=REGION/REGION with the nearest first: whose answers begin with which regions; may be repeated")
	fs.DurationVar(&c.DNSTTL, "dns-ttl", c.DNSTTL, "how long resolvers may keep the addresses, in whole seconds")
	fs.StringSliceVar(&c.NATS, "nats", c.NATS, "`URLs` of an external NATS cluster with JetStream that carries what edges tell each other and their store; takes the place of --cluster-listen and --join")
	fs.StringVar(&c.NATSCredsFile, "nats-creds-file", c.NATSCredsFile, "`file` of NATS credentials for --nats")
	fs.StringVar(&c.NATSCAFile, "nats-ca-file", c.NATSCAFile, "PEM `file` of the authority that signs the servers of --nats")
	fs.StringVar(&c.Region, "region", c.Region, "`name` of where this edge is, such as fra")
	fs.StringVar(&c.HTTP, "http", c.HTTP, "`address` of the plain HTTP door that redirects to HTTPS; empty switches it off")
	fs.StringVar(&c.HTTPS, "https", c.HTTPS, "`address` of the public door, TCP and UDP: visitors and agents")
	fs.StringVar(&c.Admin, "admin", c.Admin, "`address` of health, metrics and the operator's API")
	fs.BoolVar(&c.QUIC, "quic", c.QUIC, "open the UDP side of --https, for HTTP/3 and for agents over QUIC")
	fs.StringVar((*string)(&c.TLS), "tls", string(c.TLS), "`source` of certificates: acme, internal or files; empty is acme if --hostname is a public name, else internal")
	fs.StringSliceVar(&c.Certs, "cert", c.Certs, "PEM `file` of a certificate chain, with --tls files, or for some names with --tls acme; may be repeated")
	fs.StringSliceVar(&c.Keys, "key", c.Keys, "PEM `file` of the private key for each --cert")
	fs.StringVar(&c.ACMEEmail, "acme-email", c.ACMEEmail, "`address` that the CA may write to about the account")
	fs.StringVar(&c.ACMEDirectory, "acme-directory", c.ACMEDirectory, "`URL` of the directory of a CA other than Let's Encrypt")
	fs.StringVar(&c.ACMECAFile, "acme-ca-file", c.ACMECAFile, "PEM `file` of the authority that signs the CA's own server")
	fs.BoolVar(&c.ACMEStaging, "acme-staging", c.ACMEStaging, "order from Let's Encrypt's staging CA, for trying; browsers do not trust it")
	fs.StringSliceVar(&c.TrustedProxies, "trusted-proxies", c.TrustedProxies, "`CIDRs` of proxies in front whose X-Forwarded-* are believed")
	fs.StringVar(&c.BackendHeader, "backend-header", c.BackendHeader, "response `header` that names the backend that answered; empty is off")
	fs.DurationVar(&c.DrainDelay, "drain-delay", c.DrainDelay, "how long the edge goes on accepting after /readyz has turned false")
	fs.DurationVar(&c.DrainTimeout, "drain-timeout", c.DrainTimeout, "how long requests in flight have when the edge stops")
	fs.DurationVar(&c.ParkTimeout, "park-timeout", c.ParkTimeout, "how long a request waits when its site has no live backend")
	fs.IntVar(&c.MaxConnections, "max-connections", c.MaxConnections, "most open client `connections`; 0 derives it from the descriptor limit")
	fs.IntVar(&c.TunnelConnections, "tunnel-connections", c.TunnelConnections, "most TCP `connections` of one tunnel; an agent opens more than one only while bulk would delay short requests")
	fs.StringVar(&c.TunnelCongestion, "tunnel-congestion", c.TunnelCongestion, "TCP congestion control `name` for tunnels, where the system offers it; system leaves what the system has")
	fs.DurationVar(&c.UsageInterval, "usage-interval", c.UsageInterval, "how often, about, what sites use is added to the totals in the store; a killed edge loses what it counted since")
	fs.StringVar(&c.LogLevel, "log-level", c.LogLevel, "least `severity` to log: debug, info, warn or error")
	fs.StringVar(&c.LogFormat, "log-format", c.LogFormat, "`form` of the log: text or json; empty is text on a terminal, else json")
	fs.StringVar(&c.AccessLog, "access-log", c.AccessLog, "one line a request: a `file`, - for standard error, or off")
}

// Default is the configuration of `edge serve` with nothing set.
func Default() Config {
	return Config{
		DataDir:      DefaultDataDir(),
		HTTP:         ":80",
		HTTPS:        ":443",
		Admin:        "127.0.0.1:7080",
		QUIC:         true,
		TLS:          TLSAuto,
		DrainDelay:   3 * time.Second,
		DrainTimeout: 30 * time.Second,
		ParkTimeout:  5 * time.Second,
		DNSTTL:       30 * time.Second,
		LogLevel:     "info",
		AccessLog:    "-",

		UsageInterval: time.Minute,

		TunnelConnections: 4,
		TunnelCongestion:  "bbr",
	}
}

// Validate returns every fault of c joined, or nil. It reads no file but checks
// that those named can be read.
func (c *Config) Validate() error {
	var faults []error
	bad := func(key, format string, args ...any) {
		faults = append(faults, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
	}
	if c.DataDir == "" {
		bad("data_dir", "must not be empty")
	}
	if c.Hostname != "" {
		if name, err := hostname.Canonical(c.Hostname); err != nil {
			bad("hostname", "%v", err)
		} else {
			c.Hostname = name
		}
	}
	checkAddr := func(key, addr string, optional bool) {
		if addr == "" {
			if !optional {
				bad(key, "must not be empty")
			}
			return
		}
		if _, err := net.ResolveTCPAddr("tcp", addr); err != nil {
			bad(key, "%q is not host:port: %v", addr, err)
		}
	}
	checkAddr("http", c.HTTP, true)
	checkAddr("https", c.HTTPS, false)
	checkAddr("admin", c.Admin, false)
	checkAddr("cluster_listen", c.ClusterListen, true)
	// A name is looked up when it is dialed: an edge that is a member restarts while
	// the one it once joined at, and its name, are gone.
	if _, port, err := net.SplitHostPort(c.Join); c.Join != "" && err != nil {
		bad("join", "%q is not host:port: %v", c.Join, err)
	} else if n, err := strconv.ParseUint(port, 10, 16); c.Join != "" && (err != nil || n == 0) {
		bad("join", "%q is not host:port: %q is not a port", c.Join, port)
	}
	external := len(c.NATS) > 0
	if err := (&kv.External{URLs: c.NATS, CredsFile: c.NATSCredsFile, CAFile: c.NATSCAFile}).Check(); err != nil {
		bad("nats", "%v", err)
	}
	switch {
	case external && c.ClusterListen != "":
		bad("nats", "a NATS cluster carries bus and store: leave out cluster_listen")
	case external && c.Join != "":
		bad("nats", "edges on one NATS cluster need not join: leave out join")
	case !external && c.NATSCredsFile+c.NATSCAFile != "":
		bad("nats_creds_file", "needs nats, and so does nats_ca_file")
	}
	if c.ClusterListen == "" && !external {
		for key, value := range map[string]string{"advertise": c.Advertise, "join": c.Join, "join_token_file": c.JoinTokenFile} {
			if value != "" {
				bad(key, "needs cluster_listen or nats")
			}
		}
	} else if c.StoreDir != "" {
		bad("store_dir", "a cluster keeps its state itself")
	} else if c.Advertise == "" && c.Hostname == "" {
		bad("advertise", "say how other edges reach this one, here or with hostname")
	}
	if (c.Join == "") != (c.JoinTokenFile == "") {
		bad("join", "join and join_token_file need each other")
	}

	checkAddr("dns", c.DNS, true)
	c.checkDNS(bad)
	c.checkTLS(bad)
	for _, p := range c.TrustedProxies {
		if _, err := netip.ParsePrefix(p); err != nil {
			if _, err := netip.ParseAddr(p); err != nil {
				bad("trusted_proxies", "%q is neither an address nor a CIDR", p)
			}
		}
	}
	if c.DrainDelay < 0 {
		bad("drain_delay", "must not be negative")
	}
	if c.DrainTimeout < 0 {
		bad("drain_timeout", "must not be negative")
	}
	if c.ParkTimeout < 0 {
		bad("park_timeout", "must not be negative")
	}
	if c.UsageInterval < time.Second {
		bad("usage_interval", "must be at least 1s")
	}
	if c.TunnelConnections < 0 || c.TunnelConnections > 16 {
		bad("tunnel_connections", "%d is not from 1 to 16", c.TunnelConnections)
	}
	if c.TunnelCongestion != "" {
		if err := tlsmux.CheckCongestion(c.TunnelCongestion); err != nil {
			bad("tunnel_congestion", "%v", err)
		}
	}
	if c.MaxConnections < 0 {
		bad("max_connections", "must not be negative")
	}
	if !validHeaderName(c.BackendHeader) {
		bad("backend_header", "%q is not a header name", c.BackendHeader)
	}
	if _, err := c.Level(); err != nil {
		bad("log_level", "%q is none of debug, info, warn, error", c.LogLevel)
	}
	switch c.LogFormat {
	case "", "text", "json":
	default:
		bad("log_format", "%q is none of text, json", c.LogFormat)
	}
	if c.AccessLog == "" {
		bad("access_log", "must be -, off or a file")
	}
	return errors.Join(faults...)
}

// checkTLS resolves TLSAuto and checks what belongs to each mode.
func (c *Config) checkTLS(bad func(key, format string, args ...any)) {
	if c.TLS == TLSAuto {
		c.TLS = TLSInternal
		if publicName(c.Hostname) {
			c.TLS = TLSACME
		}
	}
	switch c.TLS {
	case TLSACME:
		c.checkACME(bad)
	case TLSInternal:
		if len(c.Certs)+len(c.Keys) > 0 {
			bad("cert", "certificate files need tls: files, or tls: acme")
		}
	case TLSFiles:
		if len(c.Certs) == 0 {
			bad("cert", "tls: files needs at least one certificate and key")
		}
	default:
		bad("tls", "%q is none of acme, internal, files", c.TLS)
	}
	if len(c.Certs) != len(c.Keys) {
		bad("key", "%d certificates but %d keys", len(c.Certs), len(c.Keys))
	}
	for _, f := range append(append([]string{}, c.Certs...), c.Keys...) {
		if file, err := os.Open(f); err != nil {
			bad("cert", "%v", err)
		} else {
			_ = file.Close()
		}
	}
}

func (c *Config) checkACME(bad func(key, format string, args ...any)) {
	if c.ACMEStaging && c.ACMEDirectory != "" {
		bad("acme_staging", "names another directory than acme_directory")
	}
	if c.ACMEDirectory != "" {
		if u, err := url.Parse(c.ACMEDirectory); err != nil || u.Scheme != "https" || u.Host == "" {
			bad("acme_directory", "%q is not an https:// URL", c.ACMEDirectory)
		}
	}
	if c.ACMEEmail != "" {
		if a, err := mail.ParseAddress(c.ACMEEmail); err != nil || a.Address != c.ACMEEmail {
			bad("acme_email", "%q is not an e-mail address", c.ACMEEmail)
		}
	}
	if c.ACMECAFile != "" {
		if _, err := c.ACMERoots(); err != nil {
			bad("acme_ca_file", "%v", err)
		}
	}
}

// ACMERoots are the authorities of ACMECAFile, nil for those of the system.
func (c *Config) ACMERoots() (*x509.CertPool, error) {
	if c.ACMECAFile == "" {
		return nil, nil
	}
	text, err := os.ReadFile(c.ACMECAFile)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s holds no certificate", c.ACMECAFile)
	}
	return pool, nil
}

// publicName reports whether host is below a suffix of the public registries, so
// that a public CA can issue for it.
func publicName(host string) bool {
	suffix, icann := publicsuffix.PublicSuffix(host)
	return icann && strings.HasSuffix(host, "."+suffix)
}

// Level is LogLevel as slog knows it.
func (c *Config) Level() (slog.Level, error) {
	var l slog.Level
	err := l.UnmarshalText([]byte(strings.ToUpper(c.LogLevel)))
	return l, err
}

// Prefixes is TrustedProxies parsed; c must be valid.
func (c *Config) Prefixes() []netip.Prefix {
	out := make([]netip.Prefix, 0, len(c.TrustedProxies))
	for _, s := range c.TrustedProxies {
		if p, err := netip.ParsePrefix(s); err == nil {
			out = append(out, p.Masked())
		} else if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return out
}

func validHeaderName(s string) bool {
	for _, r := range s {
		ok := r == '-' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z'
		if !ok {
			return false
		}
	}
	return true
}
