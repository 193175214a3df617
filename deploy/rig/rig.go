// Package rig runs the real binaries on loopback: one edge with a certificate
// authority of its own, and agents in front of apps. The demo and the benchmarks
// stand on it. Everything it starts lives in a folder that the caller removes.
package rig

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"
)

// Binaries are the paths of the two programs.
type Binaries struct {
	Edge, Agent string
}

// FindBinaries returns bin/edge and bin/wormhole below root, as `make build`
// leaves them, and builds them into dir when they are not there.
func FindBinaries(ctx context.Context, root, dir string) (Binaries, error) {
	found := Binaries{Edge: filepath.Join(root, "bin", "edge"), Agent: filepath.Join(root, "bin", "wormhole")}
	if runnable(found.Edge) && runnable(found.Agent) {
		return found, nil
	}
	return BuildBinaries(ctx, root, dir)
}

// BuildBinaries builds both from the sources at root into dir.
func BuildBinaries(ctx context.Context, root, dir string) (Binaries, error) {
	edge, err := Build(ctx, root, "./edge", filepath.Join(dir, "edge"))
	if err != nil {
		return Binaries{}, err
	}
	agent, err := Build(ctx, root, "./wormhole", filepath.Join(dir, "wormhole"))
	return Binaries{Edge: edge, Agent: agent}, err
}

// Build compiles pkg of the module at root into out and returns out.
func Build(ctx context.Context, root, pkg, out string) (string, error) {
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", out, pkg)
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", pkg, err, output)
	}
	return out, nil
}

// Root is the module's folder, found upwards from the working directory.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("not inside the project: no go.mod found upwards of the working directory")
		}
		dir = parent
	}
}

func runnable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// Edge is one running edge.
type Edge struct {
	Addr    string // host:port of the public door
	Admin   string // host:port of the operator's API
	CAFile  string // PEM of the authority that signs its certificates
	DataDir string

	bin     Binaries
	place   Place
	process *Process
	roots   *x509.CertPool
	logFile string
}

// StartEdge starts `edge dev` on free loopback ports with its state, logs and
// access log below dir, and returns when it is ready; it waits until ctx's deadline,
// without one for 30 s. args are further flags.
func StartEdge(ctx context.Context, bin Binaries, dir string, args ...string) (*Edge, error) {
	return Place{}.StartEdge(ctx, bin, dir, args...)
}

// StartEdge is StartEdge in this place: the public door listens on the place's
// address, everything else on its loopback.
func (p Place) StartEdge(ctx context.Context, bin Binaries, dir string, args ...string) (*Edge, error) {
	door, err := p.freePorts(p.ip(), 1)
	if err != nil {
		return nil, err
	}
	ports, err := p.freePorts("127.0.0.1", 3) // the first may be the door's
	if err != nil {
		return nil, err
	}
	ports = slices.DeleteFunc(ports, func(addr string) bool { return addr == door[0] })
	e := &Edge{
		Addr: door[0], Admin: ports[0], DataDir: filepath.Join(dir, "edge-data"),
		bin: bin, place: p, logFile: filepath.Join(dir, "edge.log"),
	}
	if err := os.MkdirAll(e.DataDir, 0o700); err != nil {
		return nil, err
	}
	log, err := os.Create(e.logFile)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the program has its own descriptor
	command := exec.Command(bin.Edge, append([]string{
		"dev", "--data-dir", e.DataDir, "--https", e.Addr, "--admin", e.Admin, "--http", ports[1],
		"--access-log", filepath.Join(dir, "edge-access.log"),
	}, args...)...)
	if e.process, err = p.Start("edge", command, log); err != nil {
		return nil, err
	}
	if err := e.awaitReady(ctx); err != nil {
		_ = e.Stop()
		return nil, fmt.Errorf("%w; it said:\n%s", err, lastLines(e.logFile, 15))
	}
	return e, nil
}

func (e *Edge) awaitReady(ctx context.Context) error {
	if _, bounded := ctx.Deadline(); !bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
	}
	err := poll(ctx, e.process, func() error {
		if err := e.place.answersOK(ctx, "http://"+e.Admin+"/readyz"); err != nil {
			return err
		}
		var err error
		e.CAFile, e.roots, err = authorityIn(e.DataDir)
		return err
	})
	if err != nil {
		return fmt.Errorf("edge is not ready: %w", err)
	}
	return nil
}

// AgentEnvironment is what an agent needs to know to serve host over this edge.
func (e *Edge) AgentEnvironment(token, host string) []string {
	return []string{
		"WORMHOLE_TOKEN=" + token, "WORMHOLE_EDGE=" + net.JoinHostPort("localhost", e.Port()), "WORMHOLE_CA_FILE=" + e.CAFile, "WORMHOLE_HOST=" + host,
	}
}

// StartAgent starts the agent with args (the wrapped command, or none for the
// sidecar mode) and the environment of AgentEnvironment plus env. Its log, and
// the app's, go to logFile.
func (e *Edge) StartAgent(name, token, host, logFile string, env []string, args ...string) (*Process, error) {
	return e.StartAgentIn(Place{}, name, token, host, logFile, env, args...)
}

// StartAgentIn is StartAgent in another place, whose "localhost" must lead to the
// edge.
func (e *Edge) StartAgentIn(place Place, name, token, host, logFile string, env []string, args ...string) (*Process, error) {
	log, err := os.Create(logFile)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	command := exec.Command(e.bin.Agent, args...)
	command.Env = append(append(os.Environ(), e.AgentEnvironment(token, host)...), env...)
	return place.Start(name, command, log)
}

// Transport verifies the edge's certificate and dials the edge whatever the
// host's name resolves to. The caller may change it before use.
func (e *Edge) Transport() *http.Transport {
	return &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: e.roots, MinVersion: tls.VersionTLS13},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			return e.place.DialContext(ctx, network, e.Addr)
		},
		ForceAttemptHTTP2: true,
	}
}

// Roots are the authorities that the edge's certificates verify against.
func (e *Edge) Roots() *x509.CertPool { return e.roots }

// Process is the edge's process; end it with Stop.
func (e *Edge) Process() *Process { return e.process }

// Port is the public door's port.
func (e *Edge) Port() string {
	_, port, _ := net.SplitHostPort(e.Addr)
	return port
}

// Stop ends the edge. It is idempotent.
func (e *Edge) Stop() error { return e.process.Stop(35 * time.Second) }

// AwaitAnswer asks for url through client until it answers 200, and fails when
// process ends before.
func AwaitAnswer(ctx context.Context, client *http.Client, url string, process *Process) error {
	return poll(ctx, process, func() error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err != nil {
			return err
		}
		_ = response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("%s answers %s", url, response.Status)
		}
		return nil
	})
}

// FreePort is a loopback address that nobody listened on a moment ago.
func FreePort() (string, error) { return Place{}.FreePort() }

// poll tries until try succeeds, ctx ends or process does.
func poll(ctx context.Context, process *Process, try func() error) error {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-process.Exited():
			return fmt.Errorf("%s ended with status %d", process.name, process.ExitCode())
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-ticker.C:
		}
	}
}

func (p Place) answersOK(ctx context.Context, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: p.DialContext}, Timeout: 2 * time.Second}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	_ = response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, response.Status)
	}
	return nil
}

// authorityIn finds the certificate authority that an edge keeps below dir.
func authorityIn(dir string) (file string, roots *x509.CertPool, err error) {
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || file != "" {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return nil // some other file of the edge, gone or private
		}
		block, _ := pem.Decode(text)
		if block == nil || block.Type != "CERTIFICATE" {
			return nil
		}
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil && cert.IsCA {
			file, roots = path, x509.NewCertPool()
			roots.AddCert(cert)
		}
		return nil
	})
	if err == nil && file == "" {
		err = errors.New("no certificate authority in " + dir)
	}
	return file, roots, err
}
