package main

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"
)

func TestParseStatSurvivesNamesWithParentheses(t *testing.T) {
	line := "4242 (od) (name)) S 17 4242 4242 0 -1 4194304 2000 30 0 0 120 30 7 3 20 0 5 0 123456 1000000 500"
	got, err := parseStat([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	if want := (stat{parent: 17, cpu: 1600 * time.Millisecond}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for _, bad := range []string{"", "1 (x", "1 (x) S 1", "1 (x) S one 2 3 4 5 6 7 8 9 10 11 12 13 14 15"} {
		if _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("parseStat(%q) found nothing wrong", bad)
		}
	}
}

func TestCPUCountsThisProcess(t *testing.T) {
	before, err := cpuOf([]int{os.Getpid()})
	if err != nil {
		t.Fatal(err)
	}
	for began := time.Now(); time.Since(began) < 200*time.Millisecond; {
		_ = pattern(1 << 16)
	}
	after, err := cpuOf([]int{os.Getpid()})
	if err != nil {
		t.Fatal(err)
	}
	if after <= before {
		t.Errorf("200 ms of work used %v of CPU", after-before)
	}
	if _, err := cpuOf([]int{1 << 30}); err == nil {
		t.Error("a process that is gone was no error")
	}
}

func TestDescendantsAreCountedOnceAndStrangersNever(t *testing.T) {
	all := map[int]stat{10: {parent: 1}, 11: {parent: 10}, 12: {parent: 11}, 20: {parent: 1}, 30: {parent: 31}, 31: {parent: 30}}
	for pid, want := range map[int]bool{10: true, 11: true, 12: true, 20: false, 30: false, 99: false} {
		if got := descends(all, pid, []int{10}); got != want {
			t.Errorf("descends(%d) = %v, want %v", pid, got, want)
		}
	}
}

func TestLoadGeneratorsTroubleIsNotSpeed(t *testing.T) {
	const wrkGood = "Running 5s test @ https://x\n  1 threads and 64 connections\n  2500 requests in 5.00s, 1.2MB read\nRequests/sec: 500\n"
	const h2Good = "Application protocol: h2\nfinished in 5.00s\nrequests: 2600 total, 2600 started, 2500 done, 2500 succeeded, 0 failed, 0 errored, 0 timeout\n"
	for _, c := range []struct {
		name   string
		parse  func(string) (outcome, error)
		output string
		want   float64 // 0: an error
	}{
		{"wrk", parseWrk, wrkGood, 2.5},
		{"wrk with refusals", parseWrk, wrkGood + "  Non-2xx or 3xx responses: 7\n", 0},
		{"wrk with socket errors", parseWrk, wrkGood + "  Socket errors: connect 0, read 3, write 0, timeout 0\n", 0},
		{"wrk silent", parseWrk, "unable to connect", 0},
		{"h2load", parseH2load, h2Good, 2.5},
		{"h2load with failures", parseH2load, strings.Replace(h2Good, "0 failed", "1 failed", 1), 0},
		{"h2load over HTTP/1.1", parseH2load, strings.Replace(h2Good, "h2\n", "http/1.1\n", 1), 0},
		{"h2load silent", parseH2load, "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := c.parse(c.output)
			if (err != nil) != (c.want == 0) || got.units != c.want {
				t.Errorf("got %v, %v; want %v", got.units, err, c.want)
			}
		})
	}
}

func TestMedianAndSpread(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   string
	}{
		{nil, "-"},
		{[]float64{2}, "2.0"},
		{[]float64{9, 1, 2}, "2.0 (1.0-9.0)"},
		{[]float64{4, 1, 2, 3}, "2.5 (1.0-4.0)"},
	} {
		if got := spread("%.1f", c.values); got != c.want {
			t.Errorf("spread(%v) = %q, want %q", c.values, got, c.want)
		}
	}
}

func TestAFailedTargetShowsNoFigures(t *testing.T) {
	w := workloads()[0]
	r := &report{targets: []string{"nginx", "other"}, results: map[cell]*series{}}
	r.add(w, "nginx", 0, measurement{cost: 0.01, rate: 50}, nil)
	r.add(w, "other", 0, measurement{cost: 0.001, rate: 500}, nil)
	r.add(w, "other", 1, measurement{}, io.ErrUnexpectedEOF)
	text := r.markdown("")
	if !strings.Contains(text, "| other | **failed**: unexpected EOF |") || strings.Contains(text, "0.0010") {
		t.Errorf("the failure is not shown as one:\n%s", text)
	}
}

func TestAddReadsCommandsWithCommas(t *testing.T) {
	var a added
	if err := a.Set("caddy=caddy run --a x,y,https://localhost:9443"); err != nil {
		t.Fatal(err)
	}
	if want := (addition{name: "caddy", command: "caddy run --a x,y", addr: "127.0.0.1:9443"}); a[0] != want {
		t.Errorf("got %+v, want %+v", a[0], want)
	}
	for _, bad := range []string{"", "name", "=x,https://a:1", "n=,https://a:1", "n=x,http://a:1", "n=x,https://a"} {
		if err := a.Set(bad); err == nil {
			t.Errorf("Set(%q) found nothing wrong", bad)
		}
	}
}

func TestAppAnswersWhatTheCheckExpects(t *testing.T) {
	server := httptest.NewServer(appHandler())
	defer server.Close()
	for path, size := range map[string]int{smallPath: smallSize, kibPath: kibSize, bulkPath: bulkSize} {
		body, err := exchange(t.Context(), server.Client(), http.MethodGet, server.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(body, pattern(size)) {
			t.Errorf("%s: %d bytes that are not the pattern", path, len(body))
		}
	}
}

func TestSocketsOfTheTunnelAreTold(t *testing.T) {
	const output = `0      0         10.77.0.2:40000 10.77.0.1:35129
	 cubic wscale:9,9 rto:252 rtt:51.5/0.6 cwnd:10 bytes_sent:1417 segs_out:12
0      4096      10.77.0.2:40002 [::ffff:10.77.0.1]:35129
	 bbr wscale:9,9 rto:252 bbr:(bw:1Mbps,mrtt:50) rtt:51.5/0.6 cwnd:10
0      0         10.77.0.2:40004 10.77.0.1:99
	 reno wscale:9,9
`
	count, controls := parseSockets(output, "10.77.0.1:35129")
	if got := strings.Join(controls, " "); count != 2 || got != "bbr cubic" {
		t.Errorf("got %d connections with %q, want 2 with bbr and cubic", count, got)
	}
	if count, controls := parseSockets("", "10.77.0.1:35129"); count != 0 || controls != nil {
		t.Errorf("nothing said is %d connections with %v", count, controls)
	}
}

func TestShortageOfTCPsMemoryIsTold(t *testing.T) {
	const text = "TcpExt: SyncookiesSent TCPMemoryPressures TCPBacklogDrop\nTcpExt: 5 11 6\nIpExt: TCPMemoryPressures\nIpExt: 7\n"
	if n, err := parseNetstat(text, "TCPMemoryPressures"); n != 11 || err != nil {
		t.Errorf("got %d, %v; want 11", n, err)
	}
	for _, bad := range []string{"", "TcpExt: TCPMemoryPressures\n", "TcpExt: A TCPMemoryPressures\nTcpExt: 1\n", "TcpExt: TCPMemoryPressures\nTcpExt: x\n"} {
		if _, err := parseNetstat(bad, "TCPMemoryPressures"); err == nil {
			t.Errorf("parseNetstat(%q) found nothing wrong", bad)
		}
	}
	r := &networkReport{congestion: "cubic"}
	if text := r.markdown(); strings.Contains(text, "short of memory") {
		t.Errorf("a shortage that was none is told:\n%s", text)
	}
	r.pressed = 2
	if text := r.markdown(); !strings.Contains(text, "short of memory 2 times") {
		t.Errorf("nothing says that TCP was short of memory:\n%s", text)
	}
}

func TestOnlyWhatIsNamedIsMeasured(t *testing.T) {
	p, err := chosen("upload,network")
	if err != nil || len(p.workloads) != 1 || p.workloads[0].name != "upload" || !p.network || p.idle {
		t.Errorf("got %+v, %v", p, err)
	}
	if p, err = chosen(""); err != nil || len(p.workloads) != len(workloads()) || !p.network || !p.idle {
		t.Errorf("nothing named is not everything: %+v, %v", p, err)
	}
	if _, err = chosen("upload,nonsense"); err == nil {
		t.Error("a workload that does not exist was taken")
	}
}
