//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
	"wormhole/shared/tunnel/tlsmux"
)

// patience is how long a test waits for what must come.
const patience = 15 * time.Second

// TestMain lets this test binary be the app as well: WORMHOLE_TEST_APP says what
// it does.
func TestMain(m *testing.M) {
	if what := os.Getenv("WORMHOLE_TEST_APP"); what != "" {
		testApp(what, os.Getenv("WORMHOLE_TEST_ARG"))
		return
	}
	dir, err := os.MkdirTemp("", "wormhole-test")
	if err != nil {
		panic(err)
	}
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "wormhole"), ".")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Printf("go build: %v\n%s", err, out)
		os.Exit(1)
	}
	if err := os.Setenv("WORMHOLE_TEST_BINARY", filepath.Join(dir, "wormhole")); err != nil {
		panic(err)
	}
	status := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(status)
}

// testApp is the wrapped app.
func testApp(what, arg string) {
	switch what {
	case "exit":
		code, _ := strconv.Atoi(arg)
		os.Exit(code)
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	case "env":
		for _, v := range os.Environ() {
			fmt.Println(v)
		}
	case "cat":
		_, _ = io.Copy(os.Stdout, os.Stdin)
		_, _ = fmt.Fprint(os.Stderr, "to stderr")
	case "serve", "serve-stubborn":
		term := make(chan os.Signal, 1)
		signal.Notify(term, syscall.SIGTERM)
		ln, err := net.Listen("tcp", "127.0.0.1:"+arg)
		if err != nil {
			panic(err)
		}
		fmt.Println("listening")
		go func() { // ends with the process
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go func() { // ends with its connection
					defer func() { _ = c.Close() }()
					r := bufio.NewScanner(c)
					for r.Scan() {
						_, _ = fmt.Fprintf(c, "app got %s\n", r.Text())
					}
				}()
			}
		}()
		<-term
		fmt.Println("terminated")
		if what == "serve-stubborn" {
			select {}
		}
		os.Exit(7)
	case "deaf":
		select {}
	}
}

// edge is a minimal edge that welcomes agents.
type edge struct {
	t        *testing.T
	addr     string
	caFile   string
	sessions chan *session
	wg       sync.WaitGroup

	mu     sync.Mutex // guards what follows
	reject *protocol.Reject
}

type session struct {
	tunnel.Session
	t    *testing.T
	said chan protocol.Type // beats left out
}

func startEdge(t *testing.T) *edge {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	e := &edge{t: t, caFile: filepath.Join(t.TempDir(), "ca.pem"), sessions: make(chan *session, 16)}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(e.caFile, text, 0o600); err != nil {
		t.Fatal(err)
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		NextProtos:   []string{protocol.ALPN},
	})
	if err != nil {
		t.Fatal(err)
	}
	e.addr = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	e.wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			e.wg.Go(func() { e.serve(ctx, conn.(*tls.Conn)) })
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = ln.Close()
		e.wg.Wait()
	})
	return e
}

func (e *edge) serve(ctx context.Context, conn *tls.Conn) {
	s, _, _, err := tlsmux.Accept(ctx, conn, func(context.Context, *protocol.Hello, net.Addr) (*protocol.Welcome, error) {
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.reject != nil {
			return nil, e.reject
		}
		return &protocol.Welcome{Tunnel: "t1", Node: "n1"}, nil
	}, tlsmux.Options{})
	if err != nil {
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	defer func() { _ = s.Close() }()
	ses := &session{Session: s, t: e.t, said: make(chan protocol.Type, 256)}
	e.sessions <- ses
	for {
		typ, payload, err := protocol.ReadMessage(s.Control(), protocol.MaxMessage)
		if err != nil {
			return
		}
		switch typ {
		case protocol.TypeBeat:
			_ = protocol.WriteMessage(s.Control(), protocol.TypeBeatAck, payload)
			continue
		case protocol.TypeDrain:
			_ = protocol.WriteMessage(s.Control(), protocol.TypeDrainAck, nil)
		}
		ses.said <- typ
	}
}

func (e *edge) refuse(r *protocol.Reject) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.reject = r
}

func (e *edge) next() *session {
	e.t.Helper()
	select {
	case s := <-e.sessions:
		return s
	case <-time.After(patience):
		e.t.Fatal("no agent came")
		return nil
	}
}

// hears waits for a message of type typ, passing over others.
func (s *session) hears(typ protocol.Type) {
	s.t.Helper()
	for timeout := time.After(patience); ; {
		select {
		case got := <-s.said:
			if got == typ {
				return
			}
		case <-timeout:
			s.t.Fatalf("agent did not send message %d", typ)
		}
	}
}

// open tries until the app takes a stream.
func (s *session) open() tunnel.Stream {
	s.t.Helper()
	header, err := protocol.AppendStreamHeader(nil, protocol.StreamHeader{Kind: protocol.KindHTTP})
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		stream, err := s.Open(ctx)
		if err != nil {
			s.t.Fatal(err)
		}
		_ = stream.SetDeadline(time.Now().Add(patience))
		var answer [1]byte
		if _, err := stream.Write(header); err == nil {
			_, _ = io.ReadFull(stream, answer[:])
		}
		if protocol.Answer(answer[0]) == protocol.AnswerOK {
			return stream
		}
		_ = stream.Close()
		time.Sleep(5 * time.Millisecond)
	}
}

func ask(t *testing.T, s tunnel.Stream, line string) {
	t.Helper()
	if _, err := io.WriteString(s, line+"\n"); err != nil {
		t.Fatal(err)
	}
	want := "app got " + line + "\n"
	got := make([]byte, len(want))
	if _, err := io.ReadFull(s, got); err != nil || string(got) != want {
		t.Fatalf("got %q, %v", got, err)
	}
}

// wormhole is one run of the real binary.
type wormhole struct {
	*exec.Cmd
	t      *testing.T
	stdout *buffer
	stderr *buffer
	done   chan struct{}
}

// buffer is a bytes.Buffer for several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// launch starts the binary. With what, it wraps this test binary as that app.
func launch(t *testing.T, e *edge, env []string, what, arg string, flags ...string) *wormhole {
	t.Helper()
	args := slices.Clone(flags)
	if what != "" {
		args = append(args, "--", os.Args[0])
	}
	w := &wormhole{
		Cmd: exec.Command(os.Getenv("WORMHOLE_TEST_BINARY"), args...),
		t:   t, stdout: &buffer{}, stderr: &buffer{}, done: make(chan struct{}),
	}
	w.Env = append(os.Environ(), "WORMHOLE_TEST_APP="+what, "WORMHOLE_TEST_ARG="+arg, "WORMHOLE_EDGE=127.0.0.1:1")
	if e != nil {
		w.Env = append(w.Env, "WORMHOLE_EDGE="+e.addr, "WORMHOLE_CA_FILE="+e.caFile)
	}
	w.Env = append(w.Env, env...)
	w.Stdout, w.Stderr = w.stdout, w.stderr
	w.WaitDelay = time.Second // an app that outlives its agent holds the pipes
	if err := w.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { // ends with the process, which the cleanup makes sure of
		defer close(w.done)
		_ = w.Wait()
	}()
	t.Cleanup(func() {
		// Twice: at once, the app included.
		for range 2 {
			_ = w.Process.Signal(syscall.SIGTERM)
			select {
			case <-w.done:
			case <-time.After(time.Second):
			}
		}
		_ = w.Process.Kill()
		<-w.done
		if t.Failed() {
			t.Logf("stderr:\n%s", w.stderr)
		}
	})
	return w
}

// status waits for the end and returns the exit status.
func (w *wormhole) status() int {
	w.t.Helper()
	select {
	case <-w.done:
		return w.ProcessState.ExitCode()
	case <-time.After(patience):
		w.t.Fatal("the agent does not exit")
		return 0
	}
}

// prints waits until the app has printed text.
func (w *wormhole) prints(text string) {
	w.t.Helper()
	for deadline := time.Now().Add(patience); !strings.Contains(w.stdout.String(), text); {
		if time.Now().After(deadline) {
			w.t.Fatalf("the app does not print %q", text)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// app is the process id of the app.
func (w *wormhole) app() int {
	w.t.Helper()
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", w.Process.Pid))
	for _, l := range lists {
		text, _ := os.ReadFile(l)
		for _, f := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(f); err == nil {
				return pid
			}
		}
	}
	w.t.Fatal("the agent has no child")
	return 0
}

func tokenEnv(t *testing.T) string { return "WORMHOLE_TOKEN=" + mint(t, time.Hour) }

func TestExitStatusIsTheApps(t *testing.T) {
	for _, code := range []int{0, 1, 42, 137} {
		w := launch(t, nil, []string{tokenEnv(t)}, "exit", strconv.Itoa(code))
		if got := w.status(); got != code {
			t.Errorf("exit status %d, want %d", got, code)
		}
	}
	if got := launch(t, nil, []string{tokenEnv(t)}, "kill", "").status(); got != 128+9 {
		t.Errorf("killed by signal 9: exit status %d", got)
	}
}

func TestCommandThatCannotRun(t *testing.T) {
	if got := launch(t, nil, []string{tokenEnv(t)}, "", "", "no-such-command").status(); got != 127 {
		t.Errorf("not found: exit status %d", got)
	}
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := launch(t, nil, []string{tokenEnv(t)}, "", "", path).status(); got != 126 {
		t.Errorf("not executable: exit status %d", got)
	}
}

func TestBadConfigurationStartsNothing(t *testing.T) {
	w := launch(t, nil, []string{tokenEnv(t)}, "exit", "0", "--transport=pigeon", "--drain-timeout=x")
	if got := w.status(); got != 78 {
		t.Errorf("exit status %d, want 78", got)
	}
	if text := w.stderr.String(); !strings.Contains(text, "pigeon") || !strings.Contains(text, "--drain-timeout") {
		t.Errorf("stderr: %s", text)
	}
}

func TestExpiredTokenExits77BeforeTheAppStarts(t *testing.T) {
	w := launch(t, nil, []string{"WORMHOLE_TOKEN=" + mint(t, -time.Hour)}, "env", "")
	if got := w.status(); got != 77 || w.stdout.String() != "" {
		t.Errorf("exit status %d, app printed %q", got, w.stdout)
	}
}

func TestRefusedSidecarExits77WithTheReason(t *testing.T) {
	e := startEdge(t)
	e.refuse(&protocol.Reject{Code: protocol.CodeTokenSignature, Reason: "signed by a stranger"})
	w := launch(t, e, []string{tokenEnv(t)}, "", "", "--port=1")
	if got := w.status(); got != 77 || !strings.Contains(w.stderr.String(), "signed by a stranger") {
		t.Errorf("exit status %d", got)
	}
}

func TestRefusedSupervisorLetsTheAppRun(t *testing.T) {
	e := startEdge(t)
	e.refuse(&protocol.Reject{Code: protocol.CodeTokenSignature, Reason: "signed by a stranger"})
	w := launch(t, e, []string{tokenEnv(t)}, "serve", "0")
	w.prints("listening")
	for deadline := time.Now().Add(patience); !strings.Contains(w.stderr.String(), "signed by a stranger"); {
		if time.Now().After(deadline) {
			t.Fatal("the refusal is not logged")
		}
		time.Sleep(2 * time.Millisecond)
	}
	if err := w.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := w.status(); got != 7 {
		t.Errorf("exit status %d, want the app's 7", got)
	}
}

func TestTokenIsNowhereToBeRead(t *testing.T) {
	e := startEdge(t)
	raw := mint(t, time.Hour)
	w := launch(t, e, []string{"WORMHOLE_TOKEN=" + raw, "FLY_TOKEN=" + raw, "WORMHOLE_LOG_LEVEL=debug"}, "serve", "0")
	w.prints("listening")
	e.next()
	for _, pid := range []string{strconv.Itoa(w.app()), strconv.Itoa(w.Process.Pid)} {
		for _, file := range []string{"environ", "cmdline"} {
			text, err := os.ReadFile(filepath.Join("/proc", pid, file))
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(text, []byte(raw)) {
				t.Errorf("the token is in /proc/%s/%s", pid, file)
			}
		}
	}
	if strings.Contains(w.stderr.String(), raw) || strings.Contains(w.stdout.String(), raw) {
		t.Error("the token is in the log")
	}
}

func TestEnvironmentAndStreamsPassUntouched(t *testing.T) {
	w := launch(t, nil, []string{tokenEnv(t), "ODD=a=b c", "PORT="}, "env", "")
	if got := w.status(); got != 0 {
		t.Errorf("exit status %d", got)
	}
	if out := w.stdout.String(); !strings.Contains(out, "ODD=a=b c\n") || strings.Contains(out, "WORMHOLE_TOKEN") {
		t.Errorf("the app's environment:\n%s", out)
	}
	w = launch(t, nil, []string{tokenEnv(t)}, "cat", "")
	if got := w.status(); got != 0 || w.stdout.String() != "" || !strings.Contains(w.stderr.String(), "to stderr") {
		t.Errorf("exit status %d, stdout %q", got, w.stdout)
	}
}

// The main job: the app's port is found, its requests are served, and SIGTERM
// loses none of them.
func TestAppIsServedAndDrained(t *testing.T) {
	e := startEdge(t)
	w := launch(t, e, []string{tokenEnv(t)}, "serve", "0")
	s := e.next()
	stream := s.open()
	ask(t, stream, "one")

	if err := w.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.hears(protocol.TypeDrain)
	ask(t, stream, "two") // in flight
	if strings.Contains(w.stdout.String(), "terminated") {
		t.Error("the app was stopped before its requests ended")
	}
	_ = stream.Close()
	if got := w.status(); got != 7 {
		t.Errorf("exit status %d, want the app's 7", got)
	}
	if !strings.Contains(w.stdout.String(), "terminated") {
		t.Error("the app was not asked to stop")
	}
}

func TestStubbornAppIsKilledInTime(t *testing.T) {
	e := startEdge(t)
	w := launch(t, e, []string{tokenEnv(t)}, "serve-stubborn", "0", "--drain-timeout=1s")
	stream := e.next().open() // never closed
	defer func() { _ = stream.Close() }()
	start := time.Now()
	if err := w.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := w.status(); got != 137 {
		t.Errorf("exit status %d, want 137", got)
	}
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("it took %s, want about 1s", d)
	}
}

func TestSecondSignalStopsAtOnce(t *testing.T) {
	e := startEdge(t)
	w := launch(t, e, []string{tokenEnv(t)}, "serve-stubborn", "0")
	s := e.next()
	stream := s.open()
	defer func() { _ = stream.Close() }()
	_ = w.Process.Signal(syscall.SIGTERM)
	s.hears(protocol.TypeDrain)
	start := time.Now()
	_ = w.Process.Signal(syscall.SIGTERM)
	if got := w.status(); got != 137 {
		t.Errorf("exit status %d, want 137", got)
	}
	if d := time.Since(start); d > time.Second {
		t.Errorf("it took %s", d)
	}
}

func TestTunnelIsWithdrawnWhenTheAppEnds(t *testing.T) {
	e := startEdge(t)
	w := launch(t, e, []string{tokenEnv(t)}, "serve", "0")
	s := e.next()
	stream := s.open()
	defer func() { _ = stream.Close() }()
	app := w.app()
	start := time.Now()
	if err := syscall.Kill(app, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.hears(protocol.TypeDrain)
	if d := time.Since(start); d > 200*time.Millisecond {
		t.Errorf("withdrawn after %s, want within 200ms", d)
	}
	if got := w.status(); got != 137 {
		t.Errorf("exit status %d, want 137", got)
	}
}

func TestSidecarServesAnAppOfSomebodyElse(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	go func() { // ends when ln is closed
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { // ends with its connection
				defer func() { _ = c.Close() }()
				r := bufio.NewScanner(c)
				for r.Scan() {
					_, _ = fmt.Fprintf(c, "app got %s\n", r.Text())
				}
			}()
		}
	}()
	e := startEdge(t)
	w := launch(t, e, []string{tokenEnv(t)}, "", "", "--endpoint", ln.Addr().String())
	stream := e.next().open()
	ask(t, stream, "x")
	_ = stream.Close()
	_ = w.Process.Signal(syscall.SIGTERM)
	if got := w.status(); got != 0 {
		t.Errorf("exit status %d, want 0", got)
	}
}

func TestAppThatNeverListens(t *testing.T) {
	w := launch(t, startEdge(t), []string{tokenEnv(t)}, "deaf", "", "--start-timeout=200ms")
	if got := w.status(); got != 75 || !strings.Contains(w.stderr.String(), "not ready in time") {
		t.Errorf("exit status %d, want 75", got)
	}
}

func TestNewTokenInTheFileIsPresented(t *testing.T) {
	e := startEdge(t)
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(mint(t, time.Hour)), 0o600); err != nil {
		t.Fatal(err)
	}
	launch(t, e, []string{"WORMHOLE_TOKEN_FILE=" + path}, "serve", "0")
	s := e.next()
	if err := os.WriteFile(path, []byte(mint(t, 2*time.Hour)), 0o600); err != nil {
		t.Fatal(err)
	}
	s.hears(protocol.TypeToken)
}

func TestHealthTellsWhetherTheAgentServes(t *testing.T) {
	e := startEdge(t)
	w := launch(t, e, []string{tokenEnv(t)}, "serve", "0")
	stream := e.next().open()
	_ = stream.Close()
	me := candidatesOf(t, w.Process.Pid)
	if answer, err := askAgent(me); err != nil || answer != "ok" {
		t.Errorf("a serving agent says %q, %v", answer, err)
	}

	alone := launch(t, nil, []string{tokenEnv(t)}, "deaf", "")
	var answer string
	for deadline := time.Now().Add(patience); answer == "" && time.Now().Before(deadline); {
		answer, _ = askAgent(candidatesOf(t, alone.Process.Pid))
	}
	if answer != "no tunnel is open" {
		t.Errorf("an agent without a tunnel says %q", answer)
	}
	probe := exec.Command(os.Getenv("WORMHOLE_TEST_BINARY"), "--health")
	if out, _ := probe.CombinedOutput(); probe.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), "no tunnel is open") {
		t.Errorf("--health: %d, %s", probe.ProcessState.ExitCode(), out)
	}
}

func candidatesOf(t *testing.T, pid int) candidate {
	t.Helper()
	for _, c := range agentsHere() {
		if c.pid == pid {
			return c
		}
	}
	t.Fatalf("no candidate for pid %d", pid)
	return candidate{}
}
