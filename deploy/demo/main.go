// Command demo is `make demo`: one edge, two copies of an app behind it, requests
// over verified HTTPS, a third copy that joins and one that leaves while requests
// run. It exits 0 only if not one of them failed. With --stay it leaves everything
// up until Ctrl-C.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"wormhole/deploy/rig"
)

const (
	host    = "demo.localhost"
	askers  = 4                      // concurrent clients while copies come and go
	leadIn  = 700 * time.Millisecond // requests before a copy is stopped
	leadOut = 700 * time.Millisecond // and after it is gone
)

func main() {
	stay := flag.Bool("stay", false, "keep everything running until Ctrl-C")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, rig.FindBinaries, *stay); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// stage is what the demo runs on.
type stage struct {
	out    io.Writer
	dir    string
	app    string
	token  string
	edge   *rig.Edge
	client *http.Client
	copies map[string]*rig.Process
}

// binaries gets the edge and the agent for the module at root; dir is for what it
// has to build.
type binaries func(ctx context.Context, root, dir string) (rig.Binaries, error)

func run(ctx context.Context, out io.Writer, get binaries, stay bool) (err error) {
	root, err := rig.Root()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "wormhole-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s := &stage{out: out, dir: dir, copies: map[string]*rig.Process{}}
	defer func() { err = errors.Join(err, s.clear()) }()

	if err := s.open(ctx, root, get); err != nil {
		return err
	}
	for _, name := range []string{"statler", "waldorf"} {
		if err := s.add(ctx, name); err != nil {
			return err
		}
	}
	s.say("")
	if err := s.askSome(ctx, 20); err != nil {
		return err
	}
	if err := s.changeUnderLoad(ctx); err != nil {
		return err
	}
	if stay {
		s.explain()
		<-ctx.Done()
		s.say("\nstopping")
	}
	return nil
}

// open starts the edge and issues the token.
func (s *stage) open(ctx context.Context, root string, get binaries) error {
	programs, err := get(ctx, root, s.dir)
	if err != nil {
		return err
	}
	if s.app, err = rig.Build(ctx, root, "./deploy/demo/app", filepath.Join(s.dir, "app")); err != nil {
		return err
	}
	if s.edge, err = rig.StartEdge(ctx, programs, s.dir); err != nil {
		return err
	}
	if s.token, err = s.edge.Token(ctx, host); err != nil {
		return err
	}
	transport := s.edge.Transport()
	transport.MaxIdleConnsPerHost = askers
	s.client = &http.Client{Transport: transport, Timeout: 5 * time.Second}
	s.say("an edge serves %s", s.url())
	return nil
}

// add starts a copy of the app behind an agent and waits for its first answer.
func (s *stage) add(ctx context.Context, name string) error {
	addr, err := rig.FreePort()
	if err != nil {
		return err
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	began := time.Now()
	process, err := s.edge.StartAgent(name, s.token, host, s.log(name), []string{"SERVER_NAME=" + name, "PORT=" + port}, s.app)
	if err != nil {
		return err
	}
	s.copies[name] = process
	if err := s.awaitCopy(ctx, name); err != nil {
		log, _ := os.ReadFile(s.log(name))
		return fmt.Errorf("%s did not join: %w; its agent said:\n%s", name, err, log)
	}
	s.say("%s answers %.1f s after its start", name, time.Since(began).Seconds())
	return nil
}

func (s *stage) awaitCopy(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	for {
		who, err := s.ask(ctx)
		if err == nil && who == name {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-s.copies[name].Exited():
			return fmt.Errorf("it ended with status %d", s.copies[name].ExitCode())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// ask makes one request and returns the name of the copy that answered.
func (s *stage) ask(ctx context.Context) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url(), nil)
	if err != nil {
		return "", err
	}
	response, err := s.client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<10))
	if err != nil {
		return "", err
	}
	who, ok := strings.CutPrefix(strings.TrimSpace(string(body)), "You have reached ")
	if response.StatusCode != http.StatusOK || !ok {
		return "", fmt.Errorf("%s: %s", response.Status, strings.TrimSpace(string(body)))
	}
	return who, nil
}

func (s *stage) askSome(ctx context.Context, n int) error {
	answers := rig.Tally{}
	for range n {
		began := time.Now()
		who, err := s.ask(ctx)
		answers.Count(began, who, err)
	}
	s.say("%s", answers.String())
	return answers.Verdict()
}

// changeUnderLoad adds a third copy and stops one of the first while clients ask
// without a pause.
func (s *stage) changeUnderLoad(ctx context.Context) error {
	s.say("\nfozzie joins and waldorf is stopped while %d clients ask:", askers)
	loading, endLoad := context.WithCancel(ctx)
	results := make(chan rig.Tally, askers)
	var clients sync.WaitGroup
	for range askers {
		clients.Go(func() {
			answers := rig.Tally{}
			for loading.Err() == nil {
				began := time.Now()
				who, err := s.ask(ctx)
				answers.Count(began, who, err)
			}
			results <- answers
		})
	}
	err := func() error {
		if err := s.add(ctx, "fozzie"); err != nil {
			return err
		}
		if err := rig.Wait(ctx, leadIn); err != nil {
			return err
		}
		began := time.Now()
		if err := s.copies["waldorf"].Stop(12 * time.Second); err != nil {
			return err
		}
		s.say("waldorf was stopped and gone after %.1f s", time.Since(began).Seconds())
		return rig.Wait(ctx, leadOut)
	}()
	endLoad()
	clients.Wait()
	close(results)
	if err != nil {
		return err
	}
	total := rig.Tally{}
	for answers := range results {
		total.Merge(answers)
	}
	s.say("%s; slowest %d ms", total.String(), total.Slowest.Milliseconds())
	if err := total.Verdict(); err != nil {
		return err
	}
	who, err := s.ask(ctx)
	if err == nil && who == "waldorf" {
		err = errors.New("waldorf answered after it was stopped")
	}
	return err
}

func (s *stage) explain() {
	s.say("\nAll of it stays up until Ctrl-C. Try:\n")
	s.say("  curl --cacert %s %s", s.edge.CAFile, s.url())
	s.say("  open http://%s/ (the edge's own page)", s.edge.Admin)
	s.say("\nand one more copy, in another terminal:\n")
	s.say("  %s SERVER_NAME=gonzo PORT=8001 \\\n    bin/wormhole go run ./deploy/demo/app",
		strings.Join(s.edge.AgentEnvironment(s.token, host), " \\\n    "))
}

// clear ends everything in the order that loses nothing: apps first, then the edge.
func (s *stage) clear() error {
	var faults []error
	var stopping sync.WaitGroup
	var mu sync.Mutex // guards faults
	for _, process := range s.copies {
		stopping.Go(func() {
			if err := process.Stop(12 * time.Second); err != nil {
				mu.Lock()
				defer mu.Unlock()
				faults = append(faults, err)
			}
		})
	}
	stopping.Wait()
	if s.client != nil {
		s.client.CloseIdleConnections()
	}
	if s.edge != nil {
		faults = append(faults, s.edge.Stop())
	}
	return errors.Join(faults...)
}

func (s *stage) url() string { return "https://" + net.JoinHostPort(host, s.edge.Port()) + "/" }

func (s *stage) log(name string) string { return filepath.Join(s.dir, name+".log") }

func (s *stage) say(format string, args ...any) { fmt.Fprintf(s.out, format+"\n", args...) }
