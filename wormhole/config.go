package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"

	"wormhole/shared/hostname"
	"wormhole/shared/tunnel/tlsmux"
	"wormhole/wormhole/agent"
	"wormhole/wormhole/forward"
)

// config is everything a person can set, checked.
type config struct {
	token     string
	tokenFile string
	edges     []string
	endpoint  forward.Endpoint // zero: find the app's port
	fallback  int              // PORT, tried until the app's port is found; 0 if not set
	hosts     []string
	rootCAs   *x509.CertPool
	transport agent.Transport

	connections int
	congestion  string

	readyPath       string
	healthInterval  time.Duration
	healthTimeout   time.Duration
	healthThreshold int
	startTimeout    time.Duration
	drainTimeout    time.Duration
	maxStreams      int
	edgesMin        int
	edgesMax        int
	edgeRegion      string

	name    string
	tags    map[string]string
	release release

	metrics   string // address to serve metrics on, empty for none
	logLevel  slog.Level
	logFormat string // "text", "json" or empty for what fits stderr

	proxy func(addr string) (*url.URL, error)

	command []string // the app; empty in sidecar mode
}

// setting is one thing a person can set: a flag, its environment variables, and
// how its text is read.
type setting struct {
	flag   string   // empty: no flag, because argv is readable by everybody
	env    []string // the first is its own name, the others are aliases
	arg    string   // stands for the value in --help
	def    string   // default, as text
	shown  string   // default in --help, if def does not say it
	usage  string
	secret bool
	set    func(c *config, text string) error
}

// name is how faults and --show-config call the setting.
func (s setting) name() string {
	if s.flag != "" {
		return s.flag
	}
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(s.env[0], "WORMHOLE_")), "_", "-")
}

// settings lists all of them, in the order of --help.
func settings() []setting {
	return []setting{
		{
			env: []string{"WORMHOLE_TOKEN", "FLY_TOKEN"}, arg: "TOKEN", secret: true, shown: "required",
			usage: "what the agent may serve; not a flag, because everybody can read argv",
			set:   func(c *config, s string) error { c.token = strings.TrimSpace(s); return nil },
		},
		{
			flag: "token-file", env: []string{"WORMHOLE_TOKEN_FILE"}, arg: "FILE",
			usage: "file with the token; read again when it changes",
			set:   func(c *config, s string) error { c.tokenFile = s; return nil },
		},
		{
			flag: "edge", env: []string{"WORMHOLE_EDGE", "FLY_REMOTE_ENDPOINT"}, arg: "HOST[:PORT],...", shown: "required",
			usage: "edges to connect to; a name stands for all its addresses; port 443 unless given",
			set:   func(c *config, s string) (err error) { c.edges, err = parseEdges(s); return err },
		},
		{
			flag: "endpoint", env: []string{"WORMHOLE_ENDPOINT", "FLY_LOCAL_ENDPOINT"}, arg: "ADDRESS", shown: "the port",
			usage: "the app: host:port, unix:/path, https://host:port, https+insecure://host:port, h2c://host:port",
			set:   func(c *config, s string) (err error) { c.endpoint, err = forward.ParseEndpoint(s); return err },
		},
		{
			flag: "port", env: []string{"WORMHOLE_PORT", "FLY_PORT"}, arg: "PORT", shown: "$PORT, else the port the app is found listening on, else 5000",
			usage: "the app's port on this machine",
			set: func(c *config, s string) error {
				port, err := parsePort(s)
				if err == nil {
					c.endpoint, err = forward.ParseEndpoint(strconv.Itoa(port))
				}
				return err
			},
		},
		{
			flag: "host", env: []string{"WORMHOLE_HOST", "VIRTUAL_HOST"}, arg: "NAME,...", shown: "all exact host names of the token",
			usage: "host names to serve, within what the token allows; *.parent for a wildcard",
			set:   func(c *config, s string) (err error) { c.hosts, err = parseHosts(s); return err },
		},
		{
			flag: "ca-file", env: []string{"WORMHOLE_CA_FILE"}, arg: "FILE", shown: "the system's roots",
			usage: "PEM of a private CA that signs the edges' certificates",
			set:   func(c *config, s string) (err error) { c.rootCAs, err = readRoots(s); return err },
		},
		{
			flag: "transport", env: []string{"WORMHOLE_TRANSPORT"}, arg: "auto|quic|tls", def: "auto",
			usage: "how to reach edges; auto is TLS, and QUIC where TCP does not get through",
			set: func(c *config, s string) error {
				c.transport = agent.Transport(s)
				return oneOf(s, string(agent.Auto), string(agent.OnlyQUIC), string(agent.OnlyTLS))
			},
		},
		{
			flag: "connections", env: []string{"WORMHOLE_CONNECTIONS"}, arg: "N", def: "4",
			usage: "most TCP connections of one tunnel; more than one are opened only while bulk would delay short requests",
			set:   func(c *config, s string) (err error) { c.connections, err = parseCount(s, 16); return err },
		},
		{
			flag: "congestion", env: []string{"WORMHOLE_CONGESTION"}, arg: "NAME", def: "bbr",
			usage: "TCP congestion control for tunnels, where the system offers it; system leaves what the system has",
			set:   func(c *config, s string) error { c.congestion = s; return tlsmux.CheckCongestion(s) },
		},
		{
			flag: "ready-path", env: []string{"WORMHOLE_READY_PATH"}, arg: "PATH", shown: "accepting a connection is enough",
			usage: "the app is ready when a GET of this path answers 2xx",
			set:   func(c *config, s string) error { c.readyPath = s; return checkPath(s) },
		},
		{
			flag: "health-interval", env: []string{"WORMHOLE_HEALTH_INTERVAL"}, arg: "TIME", def: "5s",
			usage: "time between two checks of a ready app",
			set: func(c *config, s string) (err error) {
				c.healthInterval, err = parseDuration(s, 100*time.Millisecond)
				return err
			},
		},
		{
			flag: "health-timeout", env: []string{"WORMHOLE_HEALTH_TIMEOUT"}, arg: "TIME", def: "2s",
			usage: "time that one check may take",
			set: func(c *config, s string) (err error) {
				c.healthTimeout, err = parseDuration(s, 10*time.Millisecond)
				return err
			},
		},
		{
			flag: "health-threshold", env: []string{"WORMHOLE_HEALTH_THRESHOLD"}, arg: "N", def: "3",
			usage: "checks that fail in a row before a ready app counts as not ready",
			set:   func(c *config, s string) (err error) { c.healthThreshold, err = parseCount(s, 1000); return err },
		},
		{
			flag: "start-timeout", env: []string{"WORMHOLE_START_TIMEOUT"}, arg: "TIME", def: "0s", shown: "0s: for ever, with a warning every minute",
			usage: "stop with status 75 if the app is not ready within this time of its start",
			set:   func(c *config, s string) (err error) { c.startTimeout, err = parseDuration(s, 0); return err },
		},
		{
			flag: "drain-timeout", env: []string{"WORMHOLE_DRAIN_TIMEOUT"}, arg: "TIME", def: "8s",
			usage: "time from SIGTERM until the app is killed; requests in flight and the app's own stop share it",
			set:   func(c *config, s string) (err error) { c.drainTimeout, err = parseDuration(s, 0); return err },
		},
		{
			flag: "max-streams", env: []string{"WORMHOLE_MAX_STREAMS"}, arg: "N", def: "10000",
			usage: "most connections to the app at once; more are refused and go elsewhere",
			set:   func(c *config, s string) (err error) { c.maxStreams, err = parseCount(s, 1_000_000); return err },
		},
		{
			flag: "edges-min", env: []string{"WORMHOLE_EDGES_MIN"}, arg: "N", def: "2",
			usage: "edges of a network to hold tunnels to, the nearest, in different regions if there are several",
			set:   func(c *config, s string) (err error) { c.edgesMin, err = parseCount(s, 64); return err },
		},
		{
			flag: "edges-max", env: []string{"WORMHOLE_EDGES_MAX"}, arg: "N", def: "8",
			usage: "most edges to hold tunnels to; beyond edges-min those that are as near as the nearest",
			set:   func(c *config, s string) (err error) { c.edgesMax, err = parseCount(s, 64); return err },
		},
		{
			flag: "edge-region", env: []string{"WORMHOLE_EDGE_REGION"}, arg: "REGION", shown: "the nearest, by measured round trips",
			usage: "prefer the edges of this region, however near others are",
			set:   func(c *config, s string) error { c.edgeRegion = s; return checkText(s, 64) },
		},
		{
			flag: "name", env: []string{"WORMHOLE_NAME"}, arg: "NAME", shown: "the machine's host name",
			usage: "the backend's name, shown to people and usable in rules",
			set:   func(c *config, s string) error { c.name = s; return checkText(s, 128) },
		},
		{
			flag: "tags", env: []string{"WORMHOLE_TAGS"}, arg: "KEY=VALUE,...",
			usage: "tags of the backend, usable in rules",
			set:   func(c *config, s string) (err error) { c.tags, err = parseTags(s); return err },
		},
		{
			flag: "release", env: []string{"WORMHOLE_RELEASE"}, arg: "ID", shown: "from the environment or the VCS",
			usage: "the app's release",
			set:   func(c *config, s string) error { c.release.id = s; return checkText(s, 256) },
		},
		{
			flag: "branch", env: []string{"WORMHOLE_BRANCH"}, arg: "NAME", shown: "from the environment or the VCS",
			usage: "the branch the release was built from",
			set:   func(c *config, s string) error { c.release.branch = s; return checkText(s, 256) },
		},
		{
			flag: "metrics", env: []string{"WORMHOLE_METRICS"}, arg: "ADDRESS", shown: "off",
			usage: "serve Prometheus metrics at http://ADDRESS/metrics, such as 127.0.0.1:9090 or :9090",
			set:   func(c *config, s string) error { c.metrics = s; return checkListen(s) },
		},
		{
			flag: "log-level", env: []string{"WORMHOLE_LOG_LEVEL", "FLY_LOG_LEVEL"}, arg: "debug|info|warn|error", def: "info",
			usage: "least severity to log, on stderr",
			set:   func(c *config, s string) (err error) { c.logLevel, err = parseLevel(s); return err },
		},
		{
			flag: "log-format", env: []string{"WORMHOLE_LOG_FORMAT"}, arg: "text|json", shown: "text on a terminal, else json",
			usage: "form of the log",
			set:   func(c *config, s string) error { c.logFormat = s; return oneOf(s, "text", "json") },
		},
	}
}

// value is what a setting has, and where from.
type value struct {
	setting setting
	text    string
	source  string // "default", the flag or the variable
}

// environment looks up a variable; os.LookupEnv outside tests.
type environment func(name string) (string, bool)

// get returns the variable's value; an empty one counts as not set.
func (env environment) get(name string) string {
	v, _ := env(name)
	return v
}

// resolve finds each setting's text: flag before environment before default.
func resolve(flags map[string]string, env environment) []value {
	var values []value
	for _, s := range settings() {
		v := value{setting: s, text: s.def, source: "default"}
		for _, name := range slices.Backward(s.env) {
			if text := env.get(name); text != "" && !isServiceLink(name, text) {
				v.text, v.source = text, name
			}
		}
		if text, ok := flags[s.flag]; ok && s.flag != "" {
			v.text, v.source = text, "--"+s.flag
		}
		values = append(values, v)
	}
	return values
}

// isServiceLink recognises what Kubernetes puts into every container of a
// namespace that has a Service called "wormhole": WORMHOLE_PORT=tcp://10.0.0.1:80.
// Nobody means that as a setting.
func isServiceLink(name, text string) bool {
	return name == "WORMHOLE_PORT" && (strings.HasPrefix(text, "tcp://") || strings.HasPrefix(text, "udp://"))
}

// load reads and checks every setting. It returns all faults, not the first.
func load(values []value, env environment, command []string) (*config, []error) {
	c := &config{command: command}
	var faults []error
	fault := func(source, format string, args ...any) {
		faults = append(faults, fmt.Errorf("%s: %w", source, fmt.Errorf(format, args...)))
	}
	by := map[string]value{}
	for _, v := range values {
		by[v.setting.name()] = v
		if v.text == "" {
			if strings.HasPrefix(v.source, "--") {
				fault(v.source, "must not be empty")
			}
			continue
		}
		if v.setting.name() == "endpoint" || v.setting.name() == "port" || v.setting.secret {
			continue // below, where they meet
		}
		if err := v.setting.set(c, v.text); err != nil {
			for _, e := range each(err) {
				fault(v.source, "%q: %w", v.text, e)
			}
		}
	}

	loadEndpoint(c, by["endpoint"], by["port"], env, fault)
	loadToken(c, by["token"], by["token-file"], fault)
	if by["edge"].text == "" {
		fault("WORMHOLE_EDGE", "is required: the edges to connect to, such as edge.example.com")
	}
	if c.readyPath != "" && c.endpoint.AppProtocol() == "h2c" {
		fault(by["ready-path"].source, "cannot be used with an h2c endpoint, which is ready when it accepts a connection")
	}
	if c.edgesMin > c.edgesMax && c.edgesMax != 0 {
		fault(by["edges-min"].source, "%d is more than edges-max %d", c.edgesMin, c.edgesMax)
	}
	if c.name == "" {
		c.name, _ = os.Hostname()
	}
	var err error
	if c.proxy, err = loadProxy(env); err != nil {
		faults = append(faults, err)
	}
	c.release.complete(env)
	return c, faults
}

// each takes apart what errors.Join has joined.
func each(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	return []error{err}
}

// loadEndpoint decides where the app is: the endpoint or the port, whichever was
// said nearer to the command line, else PORT.
func loadEndpoint(c *config, endpoint, port value, env environment, fault func(string, string, ...any)) {
	chosen := endpoint
	switch {
	case port.text == "":
	case endpoint.text == "", isFlag(port.source) && !isFlag(endpoint.source):
		chosen = port
	case isFlag(endpoint.source) == isFlag(port.source):
		fault(endpoint.source, "says where the app is, and so does %s; keep one of them", port.source)
		return
	}
	if chosen.text != "" {
		if err := chosen.setting.set(c, chosen.text); err != nil {
			fault(chosen.source, "%q: %w", chosen.text, err)
		}
		return
	}
	if text := env.get("PORT"); text != "" {
		p, err := parsePort(text)
		if err != nil {
			fault("PORT", "%q: %w", text, err)
		}
		c.fallback = p
	}
}

// loadToken reads the token from where it was said nearer to the command line.
func loadToken(c *config, token, file value, fault func(string, string, ...any)) {
	switch {
	case token.text == "" && file.text == "":
		fault("WORMHOLE_TOKEN", "is required, or WORMHOLE_TOKEN_FILE: `edge token issue` makes tokens")
	case file.text == "":
		_ = token.setting.set(c, token.text)
	case token.text != "" && !isFlag(file.source):
		fault(file.source, "and %s are both set; keep one of them", token.source)
	default:
		text, err := readToken(file.text)
		if err != nil {
			fault(file.source, "%w", err)
		}
		c.token = text
	}
}

func isFlag(source string) bool { return strings.HasPrefix(source, "--") }

// loadProxy honours HTTPS_PROXY and NO_PROXY, in either case.
func loadProxy(env environment) (func(string) (*url.URL, error), error) {
	either := func(name string) string {
		if v := env.get(name); v != "" {
			return v
		}
		return env.get(strings.ToLower(name))
	}
	conf := httpproxy.Config{HTTPSProxy: either("HTTPS_PROXY"), NoProxy: either("NO_PROXY")}
	if conf.HTTPSProxy == "" {
		return nil, nil
	}
	text := conf.HTTPSProxy
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	if u, err := url.Parse(text); err != nil || u.Host == "" || oneOf(u.Scheme, "http", "https") != nil {
		// Without the text, which may hold a password.
		return nil, errors.New("HTTPS_PROXY: is not http://host:port or https://host:port of a proxy")
	}
	find := conf.ProxyFunc()
	return func(addr string) (*url.URL, error) {
		return find(&url.URL{Scheme: "https", Host: addr})
	}, nil
}

func parseEdges(s string) ([]string, error) {
	var edges []string
	var faults []error
	for _, e := range splitList(s) {
		edge, err := parseEdge(e)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		if !slices.Contains(edges, edge) {
			edges = append(edges, edge)
		}
	}
	if len(edges) == 0 && len(faults) == 0 {
		faults = append(faults, errors.New("names no edge"))
	}
	return edges, errors.Join(faults...)
}

// parseEdge turns host, host:port or an IP address into host:port.
func parseEdge(s string) (string, error) {
	s = strings.TrimPrefix(s, "https://")
	s = strings.TrimSuffix(s, "/")
	if ip, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return net.JoinHostPort(ip.String(), "443"), nil
	}
	host, port := s, "443"
	if strings.Contains(s, ":") {
		var err error
		if host, port, err = net.SplitHostPort(s); err != nil {
			return "", fmt.Errorf("%q is not host or host:port", s)
		}
	}
	if _, err := parsePort(port); err != nil {
		return "", fmt.Errorf("%q: %w", s, err)
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return net.JoinHostPort(ip.String(), port), nil
	}
	name, err := hostname.Canonical(host)
	if err != nil {
		return "", err
	}
	return net.JoinHostPort(name, port), nil
}

func parseHosts(s string) ([]string, error) {
	var hosts []string
	var faults []error
	for _, h := range splitList(s) {
		pattern, err := hostname.CanonicalPattern(h)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		if !slices.Contains(hosts, pattern) {
			hosts = append(hosts, pattern)
		}
	}
	return hosts, errors.Join(faults...)
}

func parseTags(s string) (map[string]string, error) {
	tags := map[string]string{}
	for _, t := range splitList(s) {
		k, v, ok := strings.Cut(t, "=")
		if k = strings.TrimSpace(k); !ok || k == "" {
			return nil, fmt.Errorf("%q is not key=value", t)
		}
		if err := errors.Join(checkText(k, 64), checkText(v, 256)); err != nil {
			return nil, fmt.Errorf("%q: %w", t, err)
		}
		if _, twice := tags[k]; twice {
			return nil, fmt.Errorf("key %q is given twice", k)
		}
		tags[k] = strings.TrimSpace(v)
	}
	if len(tags) > 64 {
		return nil, errors.New("more than 64 tags")
	}
	return tags, nil
}

// splitList splits at commas and drops empty items.
func splitList(s string) []string {
	var out []string
	for _, item := range strings.Split(s, ",") {
		if item = strings.TrimSpace(item); item != "" {
			out = append(out, item)
		}
	}
	return out
}

func parsePort(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, errors.New("port is not a number between 1 and 65535")
	}
	return int(n), nil
}

func parseCount(s string, most int) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > most {
		return 0, fmt.Errorf("is not a number between 1 and %d", most)
	}
	return n, nil
}

func parseDuration(s string, least time.Duration) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	switch {
	case err != nil:
		return 0, errors.New("is not a time such as 500ms, 8s or 2m")
	case d < least:
		return 0, fmt.Errorf("is less than %s", least)
	case d > 24*time.Hour:
		return 0, errors.New("is more than 24h")
	}
	return d, nil
}

func parseLevel(s string) (slog.Level, error) {
	switch strings.ToLower(s) {
	case "debug", "trace":
		return slog.LevelDebug, nil
	case "info":
		return slog.LevelInfo, nil
	case "warn", "warning":
		return slog.LevelWarn, nil
	case "error", "fatal", "panic":
		return slog.LevelError, nil
	}
	return 0, errors.New("is none of debug, info, warn, error")
}

func readRoots(path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New("holds no certificate in PEM form")
	}
	return pool, nil
}

func checkListen(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return errors.New("is not host:port or :port")
	}
	if host != "" && host != "localhost" {
		if _, err := netip.ParseAddr(host); err != nil {
			return errors.New("the host is neither an IP address nor localhost")
		}
	}
	if port != "0" {
		_, err = parsePort(port)
	}
	return err
}

func checkPath(s string) error {
	if !strings.HasPrefix(s, "/") {
		return errors.New("does not begin with /")
	}
	for _, r := range s {
		if r <= ' ' || r > '~' {
			return errors.New("contains a space or a character outside ASCII; write it with %")
		}
	}
	return nil
}

func checkText(s string, most int) error {
	if len(s) > most {
		return fmt.Errorf("is longer than %d bytes", most)
	}
	for _, r := range s {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return errors.New("contains a control character or is not UTF-8")
		}
	}
	return nil
}

func oneOf(s string, allowed ...string) error {
	if !slices.Contains(allowed, s) {
		return errors.New("is none of " + strings.Join(allowed, ", "))
	}
	return nil
}
