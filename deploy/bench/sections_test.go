package main

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"
)

func TestStagesOfStacks(t *testing.T) {
	for want, stacks := range map[string][]string{
		stagePublicTLS: {"crypto/internal/fips140/aes/gcm.gcmAesEnc crypto/tls.(*Conn).Write wormhole/edge/ingress.(*conn).Write net/http.(*conn).serve runtime.goexit"},
		stageTunnelTLS: {
			"crypto/internal/fips140/aes/gcm.gcmAesEnc crypto/tls.(*Conn).Write wormhole/shared/tunnel/tlsmux.(*outbox).write runtime.goexit",
			"runtime.memmove crypto/tls.(*Conn).Read wormhole/shared/tunnel/tlsmux.(*wire).Read github.com/hashicorp/yamux.(*Session).recv runtime.goexit",
		},
		stageKernel: {"internal/runtime/syscall.Syscall6 syscall.write internal/poll.(*FD).Write net.(*conn).Write crypto/tls.(*Conn).Write wormhole/shared/tunnel/tlsmux.(*outbox).write"},
		stageLog: {
			"internal/runtime/syscall.Syscall6 syscall.write internal/poll.(*FD).Write os.(*File).Write wormhole/edge/middleware.(*AccessLog).Run",
			"runtime.memmove wormhole/edge/middleware.appendText wormhole/edge/middleware.(*AccessLog).Log wormhole/edge/proxy.(*Proxy).ServeHTTP",
			"github.com/prometheus/client_golang/prometheus.(*counter).Inc wormhole/edge/node.(*metrics).RequestDone wormhole/edge/proxy.(*Proxy).ServeHTTP",
		},
		stageHTTP:  {"bytes.IndexByte wormhole/edge/upstream.parseHead wormhole/edge/proxy.(*Proxy).carry net/http.(*conn).serve"},
		stageProxy: {"math/rand/v2.IntN wormhole/edge/balance.(*Pool).Pick wormhole/edge/proxy.(*Proxy).carry net/http.(*conn).serve"},
		stageMux:   {"sync.(*Mutex).Lock github.com/hashicorp/yamux.(*Stream).Read wormhole/shared/tunnel/tlsmux.(*stream).Read wormhole/edge/upstream.(*Conn).fill"},
		stageAgent: {"time.Now wormhole/wormhole/forward.join runtime.goexit"},
		stageMemory: {
			"runtime.mallocgc runtime.newobject net/textproto.readMIMEHeader net/http.(*conn).serve",
			"runtime.scanobject runtime.gcDrain runtime.gcBgMarkWorker.func2 runtime.systemstack runtime.gcBgMarkWorker",
		},
		stageScheduler: {
			"internal/runtime/syscall.EpollWait runtime.netpoll runtime.findRunnable runtime.schedule runtime.park_m runtime.mcall",
			"runtime.futex runtime.notewakeup runtime.wakep runtime.ready wormhole/shared/tunnel/tlsmux.(*outbox).kick",
		},
		stageOther: {"runtime.memmove runtime.goexit", ""},
	} {
		for _, stack := range stacks {
			if got := stageOf(strings.Fields(stack)); got != want {
				t.Errorf("%s\n is %q, want %q", stack, got, want)
			}
		}
	}
	if _, err := stagesOf(&profile.Profile{SampleType: []*profile.ValueType{{Type: "space", Unit: "bytes"}}}); err == nil {
		t.Error("a profile of memory was taken for one of CPU")
	}
}

func TestVerdictsOfGoals(t *testing.T) {
	less := goal{must: 3, want: 2}
	more := goal{must: 85, want: 95, more: true}
	for _, c := range []struct {
		goal  goal
		value float64
		want  string
	}{
		{less, 1.9, "goal met"},
		{less, 2, "goal met"},
		{less, 2.1, "must met"},
		{less, 3, "must met"},
		{less, 3.01, "**missed**"},
		{more, 96, "goal met"},
		{more, 90, "must met"},
		{more, 84.9, "**missed**"},
	} {
		if got := c.goal.verdict(c.value); got != c.want {
			t.Errorf("%v of %g to %g is %q, want %q", c.value, c.goal.must, c.goal.want, got, c.want)
		}
	}
}

func TestGoalsSayWhatWasReachedMissedAndNotMeasured(t *testing.T) {
	w := workloads()[0]
	r := &report{targets: []string{"nginx", ours}, results: map[cell]*series{}, faults: map[string]error{}}
	if text := r.goals(); text != "" {
		t.Errorf("goals of a run that measured nothing:\n%s", text)
	}
	r.add(w, "nginx", 0, measurement{cost: 0.01, rate: 50}, nil)
	r.add(w, ours, 0, measurement{cost: 0.025, rate: 50}, nil)
	r.add(workload{name: "upload"}, ours, 0, measurement{}, io.ErrUnexpectedEOF)
	r.faults["idle"] = errors.New("no memory")
	r.network = &networkReport{
		bulk: bulkResult{plain: []float64{0.96}, tunnel: []float64{0.9}},
		// Quick enough, but slower than without a tunnel.
		beside: besideResult{plain: []float64{1e6, 1e6}, tunnel: []float64{0.5e6, 0.5e6}, p99: []time.Duration{100 * time.Millisecond}},
	}
	text := r.goals()
	for _, want := range []string{
		"| HTTP/1.1 small, CPU as a ratio to nginx | 3 | 2 | 2.50 | must met |",
		"| upload 10 MiB | 2.8 | 2.2 | | **failed** |",
		"| HTTP/2 small | 4 | 3 | | not measured |",
		"| agent's binary | 10 | 8 | | **failed** |",
		"| 100 ms | **missed**, bulk 0.500 MB/s, one plain connection 1.000 (medians); 2 pairs, ratio 0.500, 95 % 0.500 to 0.500: lower |",
		"| 85 | 95 | 90.0 % | must met |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

func TestScaleTellsCostsOfEach(t *testing.T) {
	curves := []scaleCurve{{
		name: "idle tunnels, agents in one process", bare: scalePoint{memory: 20 << 10},
		points: []scalePoint{{n: 1000, memory: 60 << 10, idle: 0.01, took: time.Second}, {n: 2000, memory: 100 << 10, idle: 0.02, took: time.Second}},
	}}
	text := scaleMarkdown(curves, "x.svg")
	for _, want := range []string{"|  | 2,000 | 100.0 | 40.96 | 2.0 | 1.0 |", "](x.svg)"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	r := &report{scale: curves}
	if kib, found := idleTunnelKiB(r); !found || kib != 40.96 {
		t.Errorf("an idle tunnel is %v KiB (%v), want 40.96", kib, found)
	}
}

func TestDrawingIsWellFormedAndInside(t *testing.T) {
	svg := draw(scalePanels([]scaleCurve{
		{name: "sites <with> rules", bare: scalePoint{memory: 1}, points: []scalePoint{{n: 10, memory: 5000}, {n: 100_000, memory: 250_000, idle: 0.5}}},
		{name: "one point is no curve", points: []scalePoint{{n: 1, memory: 1}}},
	}))
	decoder := xml.NewDecoder(strings.NewReader(string(svg)))
	circles := 0
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, svg)
		}
		if start, ok := token.(xml.StartElement); ok && start.Name.Local == "circle" {
			circles++
		}
	}
	if circles != 6 {
		t.Errorf("%d points are drawn, want 3 in each of 2 panels", circles)
	}
	for _, c := range []struct {
		values    []float64
		step, end float64
	}{
		{nil, 1, 1}, {[]float64{0}, 1, 1}, {[]float64{9}, 1, 9}, {[]float64{5000}, 1000, 5000}, {[]float64{100_000}, 20_000, 100_000}, {[]float64{2.5}, 0.5, 2.5}, {[]float64{0.12}, 0.02, 0.12},
	} {
		step, end := scale(c.values)
		if diff := step - c.step; diff > 1e-9 || diff < -1e-9 || end-c.end > 1e-9 || c.end-end > 1e-9 {
			t.Errorf("scale(%v) is %v to %v, want %v to %v", c.values, step, end, c.step, c.end)
		}
	}
}

func TestThousands(t *testing.T) {
	for n, want := range map[int]string{0: "0", 999: "999", 1000: "1,000", 100_000: "100,000", 1_234_567: "1,234,567"} {
		if got := thousands(n); got != want {
			t.Errorf("thousands(%d) = %q, want %q", n, got, want)
		}
	}
}
