package bus

import (
	"crypto/ed25519"
	"fmt"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// What messages and rows cost, for docs/scaling.md and deploy/simulate:
//
//	go test -run '^$' -bench Cost ./edge/cluster/bus ./edge/cluster/relay
//
// cpu-ns is time of the processor and not of the clock, so that it can be measured
// on a machine that does other things.

// cpu is what this process has used of the processor.
func cpu() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// report runs f b.N times and reports its processor time.
func report(b *testing.B, per int, f func()) {
	before := cpu()
	for b.Loop() {
		f()
	}
	b.ReportMetric(float64(cpu()-before)/float64(b.N)/float64(per), "cpu-ns/op")
}

func manyRows(n int) []row {
	rows := make([]row, n)
	for i := range rows {
		rows[i] = row{fmt.Sprintf("customer-%d.apps.example.com", i), Ready}
	}
	return rows
}

// hearer is a bus without a mesh, and what another edge signs.
func hearer(b testing.TB) (*Bus, func(m *message) []byte) {
	ca := newCA(b)
	id, other := newID(b, ca, nodeID(1)), newID(b, ca, nodeID(2))
	bus := &Bus{
		id: id, allow: anybody, hear: deaf(), logger: quiet, table: newTable(), start: time.Now(), peers: map[string]*peer{},
	}
	return bus, func(m *message) []byte {
		m.cert, m.epoch = other.Certificate(), 1
		raw, err := encode(m, other.Sign)
		if err != nil {
			b.Fatal(err)
		}
		return raw
	}
}

// BenchmarkCostSend is encoding and signing a change, for messages of several sizes.
func BenchmarkCostSend(b *testing.B) {
	for _, n := range []int{1, 100, maxChunk} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			_, sign := hearer(b)
			m := &message{kind: kindDelta, seq: 1, rows: manyRows(n)}
			report(b, 1, func() { sign(m) })
			b.ReportMetric(float64(len(sign(m))), "B/message")
		})
	}
}

// BenchmarkCostReceive is decoding, verifying and taking in a change.
func BenchmarkCostReceive(b *testing.B) {
	for _, n := range []int{1, 100, maxChunk} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			bus, sign := hearer(b)
			rows, gone := manyRows(n), manyRows(n)
			for i := range gone {
				gone[i].state = Gone
			}
			come := sign(&message{kind: kindDelta, seq: 1, rows: rows})
			leave := sign(&message{kind: kindDelta, seq: 1, rows: gone})
			report(b, 2, func() { // there and back, so that each is a change
				for _, raw := range [][]byte{come, leave} {
					bus.receive(raw)
					bus.peer(nodeID(2)).seq = 0
				}
			})
			if bus.malformed.Load() > 0 {
				b.Fatal("a message was refused")
			}
		})
	}
}

// BenchmarkCostDigest is what a digest of an edge that hears n others costs whoever
// hears it.
func BenchmarkCostDigest(b *testing.B) {
	for _, n := range []int{2, 19, 199, 1999} {
		b.Run(strconv.Itoa(n+1), func(b *testing.B) {
			bus, sign := hearer(b)
			sees := map[string]int64{}
			for i := range n {
				sees[nodeID(i)] = 1000
			}
			m := &message{kind: kindDigest, info: Info{Region: "fra", Addr: "fra1.example.com:443", Mesh: "fra1.example.com:7443", Version: "v1.0.0", Sees: sees}}
			raw := sign(m)
			report(b, 1, func() { bus.receive(raw) })
			b.ReportMetric(float64(len(raw)), "B/message")
			if bus.malformed.Load() > 0 {
				b.Fatal("a message was refused")
			}
		})
	}
}

// BenchmarkCostRow is the memory of rows: those of others with one and with two
// edges that have the site, and one's own.
func BenchmarkCostRow(b *testing.B) {
	const n = 100_000
	heap := func() float64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc)
	}
	for _, edges := range []int{1, 2} {
		b.Run(fmt.Sprintf("%d-edges", edges), func(b *testing.B) {
			grown := 0.0
			for b.Loop() {
				before := heap()
				bus := &Bus{table: newTable(), hear: deaf()}
				peers := make([]*peer, edges)
				for e := range peers {
					peers[e] = &peer{node: nodeID(e), rows: map[string]State{}}
					for _, r := range manyRows(n) {
						bus.set(peers[e], r.pattern, r.state)
					}
				}
				grown = (heap() - before) / n
				runtime.KeepAlive(peers)
				runtime.KeepAlive(bus)
			}
			b.ReportMetric(grown, "B/site")
		})
	}
}

// BenchmarkCostPeer is the memory of one more edge in the mesh: its route, and what
// is known of it.
func BenchmarkCostPeer(b *testing.B) {
	const n = 6
	var single, perPeer float64
	for b.Loop() {
		var before, after runtime.MemStats
		ca := newCA(b)
		runtime.GC()
		runtime.ReadMemStats(&before)
		alone := start(b, ca, 100, 1, deaf())
		runtime.GC()
		runtime.ReadMemStats(&after)
		single = float64(after.HeapAlloc + after.StackInuse - before.HeapAlloc - before.StackInuse)
		members := []*member{alone}
		for i := range n - 1 {
			members = append(members, start(b, ca, i, 1, deaf(), alone.Addr()))
		}
		for _, m := range members {
			eventually(b, "all hear all", func() bool { return len(m.Heard()) == n-1 })
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		all := float64(after.HeapAlloc + after.StackInuse - before.HeapAlloc - before.StackInuse)
		perPeer = (all - n*single) / (n * (n - 1))
		for _, m := range members {
			m.stop()
		}
	}
	b.ReportMetric(single, "B/edge")
	b.ReportMetric(perPeer, "B/peer")
}

// The sizes in docs/scaling.md and deploy/simulate hold.
func TestMessagesAreAsLongAsTheModelSays(t *testing.T) {
	_, sign := hearer(t)
	one := len(sign(&message{kind: kindDelta, seq: 1, rows: manyRows(1)}))
	hundred := len(sign(&message{kind: kindDelta, seq: 1, rows: manyRows(101)[1:]}))
	row := float64(hundred-one) / 99
	t.Logf("a message of one row has %d bytes, each further row %.1f; signature %d", one, row, ed25519.SignatureSize)
	if one < 300 || one > 800 || row < 20 || row > 60 {
		t.Errorf("a message of one row has %d bytes and each further row %.1f: measure anew for deploy/simulate", one, row)
	}
}

// BenchmarkCostCarry is all that a message of one row costs, sender, mesh and
// receivers together, for each of two receivers.
func BenchmarkCostCarry(b *testing.B) {
	const receivers = 2
	ca := newCA(b)
	a := start(b, ca, 1, 1, deaf())
	members := []*member{a}
	for i := range receivers {
		members = append(members, start(b, ca, 2+i, 1, deaf(), a.Addr()))
	}
	for _, m := range members {
		eventually(b, "all hear all", func() bool { return len(m.Heard()) == receivers })
	}
	rows := manyRows(1)
	before, n := cpu(), uint64(0)
	for b.Loop() {
		n++
		rows[0].state = State(1 + n%2)
		a.own.Lock()
		a.own.seq++
		a.publish(&message{kind: kindDelta, seq: a.own.seq, rows: rows})
		a.own.Unlock()
	}
	for _, m := range members[1:] {
		eventually(b, "all has come", func() bool {
			m.apply.Lock()
			defer m.apply.Unlock()
			return m.peer(nodeID(1)).seq == n
		})
	}
	b.ReportMetric(float64(cpu()-before)/float64(n)/receivers, "cpu-ns/receiver")
}

func TestChangesWaitLongerInLargeMeshes(t *testing.T) {
	for others, want := range map[int]time.Duration{0: 5, 2: 5, 20: 5, 39: 5, 199: 45, 1999: 495} {
		if got := GatherFor(others); got != want*time.Millisecond {
			t.Errorf("with %d others %s, want %d ms", others, got, want)
		}
	}
}
