package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"wormhole/deploy/rig"
)

// host is the name that every target serves; nothing resolves it, all clients
// dial the target's address.
const host = "bench.localhost"

// target is one way from a client to the app.
type target struct {
	name      string
	addr      string // host:port of its TLS door
	roots     *x509.CertPool
	processes []*rig.Process
	place     rig.Place // where its clients are
}

func (t *target) pids() []int {
	var pids []int
	for _, p := range t.processes {
		pids = append(pids, p.PID())
	}
	return pids
}

func (t *target) url(path string) string {
	_, port, _ := net.SplitHostPort(t.addr)
	return "https://" + net.JoinHostPort(host, port) + path
}

func (t *target) tlsConfig(protocols ...string) *tls.Config {
	return &tls.Config{RootCAs: t.roots, ServerName: host, MinVersion: tls.VersionTLS13, NextProtos: protocols}
}

// client speaks HTTP/1.1 over at most conns kept connections.
func (t *target) client(conns int) *http.Client {
	return &http.Client{
		Timeout: 30 * time.Second,
		Transport: &http.Transport{
			TLSClientConfig: t.tlsConfig("http/1.1"),
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
				defer cancel()
				return t.place.DialContext(ctx, network, t.addr)
			},
			MaxIdleConnsPerHost: conns,
			MaxConnsPerHost:     conns,
			ReadBufferSize:      64 << 10,
			WriteBufferSize:     64 << 10,
			DisableCompression:  true,
		},
	}
}

// check asks for everything the workloads ask for, once, and compares: a target
// that answers wrongly must not look fast.
func (t *target) check(ctx context.Context) error {
	client := t.client(1)
	defer client.CloseIdleConnections()
	for path, size := range map[string]int{smallPath: smallSize, kibPath: kibSize, bulkPath: bulkSize} {
		body, err := exchange(ctx, client, http.MethodGet, t.url(path), nil)
		if err != nil {
			return err
		}
		if !bytes.Equal(body, pattern(size)) {
			return fmt.Errorf("%s: %d bytes, not the %d expected", path, len(body), size)
		}
	}
	body, err := exchange(ctx, client, http.MethodPost, t.url(uploadPath), bytes.NewReader(make([]byte, 1<<20)))
	if err != nil {
		return err
	}
	if got := strings.TrimSpace(string(body)); got != "1048576" {
		return fmt.Errorf("the app received %q bytes of 1048576", got)
	}
	return nil
}

func exchange(ctx context.Context, client *http.Client, method, url string, body io.Reader) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, response.Status)
	}
	return answer, nil
}

// site is the app and all targets in front of it.
type site struct {
	root, dir string
	binaries  rig.Binaries
	app       *rig.Process
	appAddr   string
	identity  *identity
	targets   []*target
	tunnel    *tunnelled // nil when not chosen
}

// openSite starts the app.
func openSite(ctx context.Context, root, dir string) (*site, error) {
	s := &site{root: root, dir: dir}
	var err error
	if s.identity, err = newIdentity(dir); err != nil {
		return nil, err
	}
	if s.binaries, err = rig.FindBinaries(ctx, root, dir); err != nil {
		return nil, err
	}
	if s.appAddr, err = rig.FreePort(); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if s.app, err = rig.Start("app", exec.Command(self, "--serve-app", s.appAddr), os.Stderr); err != nil {
		return nil, err
	}
	ready, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := rig.AwaitAnswer(ready, http.DefaultClient, "http://"+s.appAddr+smallPath, s.app); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// addTargets starts those that opt chooses. nginx always runs: it is the measure.
func (s *site) addTargets(ctx context.Context, opt options) error {
	chosen := func(name string) bool {
		return opt.targets == "" || slices.Contains(strings.Split(opt.targets, ","), name)
	}
	starts := []struct {
		name  string
		start func(context.Context) (*target, error)
	}{
		{"nginx", s.startNginx},
		{"haproxy", s.startHAProxy},
		{"wormhole", s.startTunnel},
	}
	for _, a := range opt.add {
		starts = append(starts, struct {
			name  string
			start func(context.Context) (*target, error)
		}{a.name, func(ctx context.Context) (*target, error) { return s.startAdded(ctx, a) }})
	}
	for _, start := range starts {
		if start.name != "nginx" && !chosen(start.name) {
			continue
		}
		t, err := start.start(ctx)
		if t != nil {
			s.targets = append(s.targets, t)
		}
		if errors.Is(err, exec.ErrNotFound) && start.name != "wormhole" {
			fmt.Fprintf(os.Stderr, "%s is not installed, left out\n", start.name)
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", start.name, err)
		}
		if err := s.awaitTarget(ctx, t); err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
	}
	return nil
}

func (s *site) awaitTarget(ctx context.Context, t *target) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	client := t.client(1)
	defer client.CloseIdleConnections()
	return rig.AwaitAnswer(ctx, client, t.url(smallPath), t.processes[0])
}

// start runs one program of a target with its output in a file.
func (s *site) start(name string, command *exec.Cmd) (*rig.Process, error) {
	log, err := os.Create(filepath.Join(s.dir, name+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	return rig.Start(name, command, log)
}

func (s *site) close() error {
	var faults []error
	for _, t := range s.targets {
		for _, p := range slices.Backward(t.processes) {
			faults = append(faults, p.Stop(15*time.Second))
		}
	}
	if s.tunnel != nil {
		faults = append(faults, s.tunnel.edge.Stop())
	}
	return errors.Join(append(faults, s.app.Stop(5*time.Second))...)
}
