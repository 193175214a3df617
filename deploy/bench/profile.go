package main

import (
	"context"
	_ "embed" // the profiler
	"encoding/json"
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

	"github.com/google/pprof/profile"

	"wormhole/deploy/rig"
)

// profilerSource serves profiles on a unix socket. It is in no binary but those that
// buildProfiled makes.
//
//go:embed profiler.go.txt
var profilerSource []byte

var profiledWorkloads = []string{"h1", "download", "upload"}

// profileTime is how long each workload is profiled.
const profileTime = 5 * time.Second

// buildProfiled builds both programs with the profiler linked in.
func buildProfiled(ctx context.Context, root, dir string) (bin rig.Binaries, err error) {
	source := filepath.Join(dir, "profiler.go")
	if err := os.WriteFile(source, profilerSource, 0o600); err != nil {
		return bin, err
	}
	build := func(pkg, out string) (string, error) {
		overlay := map[string]map[string]string{"Replace": {filepath.Join(root, pkg, "bench_profiler.go"): source}}
		text, err := json.Marshal(overlay)
		if err != nil {
			return "", err
		}
		file := filepath.Join(dir, pkg+"-overlay.json")
		if err := os.WriteFile(file, text, 0o600); err != nil {
			return "", err
		}
		out = filepath.Join(dir, out)
		command := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-overlay", file, "-o", out, "./"+pkg)
		command.Dir = root
		command.Env = append(os.Environ(), "CGO_ENABLED=0")
		if output, err := command.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build %s with a profiler: %w\n%s", pkg, err, output)
		}
		return out, nil
	}
	if bin.Edge, err = build("edge", "profiled-edge"); err != nil {
		return bin, err
	}
	bin.Agent, err = build("wormhole", "profiled-wormhole")
	return bin, err
}

// profileColumn is what one program did in one workload.
type profileColumn struct {
	workload workload
	program  string
	stages   map[string]float64 // CPU seconds per unit of the workload
}

// measureProfile runs some workloads against programs with a profiler, and sorts
// what they did into stages.
func measureProfile(ctx context.Context, s *site) (columns []profileColumn, err error) {
	dir, err := os.MkdirTemp(s.dir, "profile-")
	if err != nil {
		return nil, err
	}
	bin, err := buildProfiled(ctx, s.root, dir)
	if err != nil {
		return nil, err
	}
	sockets := map[string]string{"edge": filepath.Join(dir, "edge.sock"), "agent": filepath.Join(dir, "agent.sock")}
	edge, err := rig.Place{Env: []string{"BENCH_PROFILE=" + sockets["edge"]}}.StartEdge(ctx, bin, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, edge.Stop()) }()
	token, err := edge.Token(ctx, host)
	if err != nil {
		return nil, err
	}
	agent, err := edge.StartAgent("agent", token, host, filepath.Join(dir, "agent.log"),
		[]string{"WORMHOLE_ENDPOINT=" + s.appAddr, "BENCH_PROFILE=" + sockets["agent"]})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, agent.Stop(15*time.Second)) }()
	t := &target{name: "wormhole", addr: edge.Addr, roots: edge.Roots(), processes: []*rig.Process{agent, edge.Process()}}
	if err := s.awaitTarget(ctx, t); err != nil {
		return nil, err
	}
	for _, w := range workloads() {
		if !slices.Contains(profiledWorkloads, w.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "%-10s profile\n", w.name)
		found, err := profileOne(ctx, t, w, sockets)
		if err != nil {
			return nil, fmt.Errorf("profile of %s: %w", w.name, err)
		}
		columns = append(columns, found...)
	}
	return columns, nil
}

// profileOne profiles both programs while w runs; the workload goes on for a little
// longer, so that its end is not in the profile.
func profileOne(ctx context.Context, t *target, w workload, sockets map[string]string) ([]profileColumn, error) {
	if err := w.warm(ctx, t); err != nil {
		return nil, err
	}
	programs := []string{"edge", "agent"}
	profiles := make([]*profile.Profile, len(programs))
	var done outcome
	var took time.Duration
	err := inParallel(len(programs)+1, func(i int) (err error) {
		if i == len(programs) {
			began := time.Now()
			done, err = w.run(ctx, t, profileTime+2*time.Second)
			took = time.Since(began)
			return err
		}
		if err := pause(ctx, time.Second); err != nil {
			return err
		}
		profiles[i], err = fetchProfile(ctx, sockets[programs[i]], profileTime)
		return err
	})
	if err != nil {
		return nil, err
	}
	units := done.units * profileTime.Seconds() / took.Seconds()
	if units <= 0 {
		return nil, errors.New("nothing was done")
	}
	var columns []profileColumn
	for i, program := range programs {
		stages, err := stagesOf(profiles[i])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", program, err)
		}
		for stage := range stages {
			stages[stage] /= units
		}
		columns = append(columns, profileColumn{w, program, stages})
	}
	return columns, nil
}

func fetchProfile(ctx context.Context, socket string, d time.Duration) (*profile.Profile, error) {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	url := fmt.Sprintf("http://profiler/debug/pprof/profile?seconds=%d", int(d.Seconds()))
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 512))
		return nil, fmt.Errorf("%s: %s", response.Status, text)
	}
	return profile.Parse(response.Body)
}

// stagesOf is the CPU seconds of each stage.
func stagesOf(p *profile.Profile) (map[string]float64, error) {
	value := -1
	for i, kind := range p.SampleType {
		if kind.Type == "cpu" && kind.Unit == "nanoseconds" {
			value = i
		}
	}
	if value < 0 {
		return nil, errors.New("a profile without CPU time")
	}
	stages := map[string]float64{}
	for _, sample := range p.Sample {
		var stack []string // innermost first
		for _, location := range sample.Location {
			for _, line := range location.Line {
				if line.Function != nil {
					stack = append(stack, line.Function.Name)
				}
			}
		}
		stages[stageOf(stack)] += float64(sample.Value[value]) / 1e9
	}
	return stages, nil
}

// stageNames are the rows of the table, in order.
var stageNames = []string{
	stagePublicTLS, stageTunnelTLS, stageKernel, stageHTTP, stageProxy, stageLog, stageMux, stageAgent, stageMemory, stageScheduler, stageOther,
}

const (
	stagePublicTLS = "public TLS"
	stageTunnelTLS = "the tunnel's TLS"
	stageKernel    = "kernel: network and files"
	stageHTTP      = "HTTP: parse and write"
	stageProxy     = "proxy: route, choose, rules"
	stageLog       = "access log and metrics"
	stageMux       = "multiplexer"
	stageAgent     = "agent: splice"
	stageMemory    = "allocation and collector"
	stageScheduler = "scheduler, timers, locks"
	stageOther     = "other"
)

// wholeStack are functions that decide wherever they stand in a stack: what the
// runtime does, it does for itself.
var wholeStack = []stageRule{
	{stageMemory, []string{"runtime.gcBgMarkWorker", "runtime.gcAssistAlloc", "runtime.mallocgc", "runtime.bgsweep", "runtime.bgscavenge", "runtime.gcStart", "runtime.growslice", "runtime.newobject", "runtime.makeslice", "runtime.wbBufFlush", "runtime.gcWriteBarrier"}},
	{stageScheduler, []string{"runtime.mcall", "runtime.park_m", "runtime.schedule", "runtime.findRunnable", "runtime.netpoll", "runtime.goready", "runtime.ready", "runtime.futex", "runtime.mstart", "runtime.sysmon", "runtime.morestack", "runtime.newproc", "runtime.goexit0", "runtime.lock", "runtime.unlock", "runtime.selectgo", "runtime.chansend", "runtime.chanrecv", "runtime.semacquire", "runtime.semrelease", "runtime.exitsyscall", "runtime.entersyscall", "runtime.reentersyscall"}},
}

// innermost rules are tried on each function of a stack, from the one that ran
// outwards; the first that matches decides. A runtime function matches none, so that
// copying belongs to whoever copies.
var innermost = []stageRule{
	{stageKernel, []string{"syscall.", "internal/runtime/syscall.", "internal/poll.", "golang.org/x/sys/unix."}},
	{stagePublicTLS, []string{"crypto/", "vendor/golang.org/x/crypto/", "golang.org/x/crypto/"}}, // or the tunnel's, by the rest of the stack
	{stageLog, []string{"log/slog.", "wormhole/edge/middleware.LogTo", "wormhole/edge/middleware.(*AccessLog)", "wormhole/edge/middleware.append", "github.com/prometheus/", "wormhole/edge/node.(*metrics)"}},
	{stageMux, []string{"wormhole/shared/tunnel/", "github.com/hashicorp/yamux."}},
	{stageHTTP, []string{"net/http.", "net/http/", "net/textproto.", "golang.org/x/net/http", "bufio.", "wormhole/edge/ingress.", "wormhole/edge/upstream."}},
	{stageProxy, []string{"wormhole/edge/"}},
	{stageAgent, []string{"wormhole/wormhole/", "wormhole/shared/pipe."}},
}

type stageRule struct {
	stage    string
	prefixes []string
}

func (r stageRule) matches(function string) bool {
	for _, prefix := range r.prefixes {
		if strings.HasPrefix(function, prefix) {
			return true
		}
	}
	return false
}

// stageOf says where a sample with this stack, innermost function first, belongs.
func stageOf(stack []string) string {
	for _, function := range stack {
		for _, rule := range wholeStack {
			if rule.matches(function) {
				return rule.stage
			}
		}
	}
	for i, function := range stack {
		for _, rule := range innermost {
			if !rule.matches(function) {
				continue
			}
			for _, caller := range stack[i:] {
				switch {
				case rule.stage == stageKernel && strings.HasPrefix(caller, "wormhole/edge/middleware.(*AccessLog)"):
					return stageLog
				case rule.stage == stagePublicTLS && strings.HasPrefix(caller, "wormhole/shared/tunnel/tlsmux."):
					return stageTunnelTLS
				}
			}
			return rule.stage
		}
	}
	return stageOther
}

// profileMarkdown is the table of stages.
func profileMarkdown(columns []profileColumn) string {
	var b strings.Builder
	b.WriteString("\n## Where the time goes\n\nCPU by stage, of one profile each: µs for a request, ms for a MB.\n\n| stage |")
	for _, c := range columns {
		fmt.Fprintf(&b, " %s, %s |", c.workload.name, c.program)
	}
	b.WriteString("\n|---|" + strings.Repeat("---:|", len(columns)) + "\n")
	row := func(stage string, value func(profileColumn) float64) {
		fmt.Fprintf(&b, "| %s |", stage)
		for _, c := range columns {
			// CPU seconds for 1,000 requests are milliseconds each; for a GB, ms for a MB.
			unit, v := "ms", value(c)
			if c.workload.unit == perThousand {
				unit, v = "µs", 1000*v
			}
			fmt.Fprintf(&b, " %.2f %s |", v, unit)
		}
		b.WriteString("\n")
	}
	for _, stage := range stageNames {
		row(stage, func(c profileColumn) float64 { return c.stages[stage] })
	}
	row("**all**", func(c profileColumn) (sum float64) {
		for _, v := range c.stages {
			sum += v
		}
		return sum
	})
	return b.String()
}
