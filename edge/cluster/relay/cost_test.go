package relay

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"wormhole/edge/cluster/identity"
	"wormhole/edge/site"
)

// BenchmarkCostSession is what a kept session between two edges costs both together:
// memory, and processor time of a second in which nothing is relayed. See
// docs/scaling.md.
func BenchmarkCostSession(b *testing.B) {
	const n, watch = 50, 2 * time.Second
	quiet := slog.New(slog.DiscardHandler)
	ca, err := identity.NewCA("test")
	if err != nil {
		b.Fatal(err)
	}
	newID := func(i int) *identity.Identity {
		public, key, err := ed25519.GenerateKey(nil)
		if err != nil {
			b.Fatal(err)
		}
		der, err := ca.Issue(fmt.Sprintf("%016x", i), public)
		if err != nil {
			b.Fatal(err)
		}
		id, err := identity.New(key, der, ca.Certificate())
		if err != nil {
			b.Fatal(err)
		}
		return id
	}
	memory := func() float64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc + m.StackInuse)
	}
	cpu := func() time.Duration {
		var u syscall.Rusage
		_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	host := newID(0)
	server := NewServer(host, site.New(nil), quiet)
	var grown, used float64
	for b.Loop() {
		l, err := tls.Listen("tcp", "127.0.0.1:0", host.Server(ALPN, func(string) error { return nil }))
		if err != nil {
			b.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				wg.Go(func() {
					if secure := conn.(*tls.Conn); secure.HandshakeContext(ctx) == nil {
						server.Serve(ctx, secure)
					}
				})
			}
		})
		before := memory()
		peers := make([]*Peer, n)
		for i := range peers {
			peers[i] = NewPeer(PeerConfig{
				Node: host.Node(), Addr: func() string { return l.Addr().String() },
				Changed: func(Health) {}, Refused: func(string) {},
			}, newID(i+1), quiet)
			wg.Go(func() { peers[i].Run(ctx) })
		}
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			up := 0
			for _, p := range peers {
				if p.Health() == Up {
					up++
				}
			}
			if up == n {
				break
			}
			if time.Now().After(deadline) {
				b.Fatalf("%d of %d sessions", up, n)
			}
		}
		grown = (memory() - before) / n
		was := cpu()
		time.Sleep(watch)
		used = float64(cpu()-was) / n / watch.Seconds()
		cancel()
		_ = l.Close()
		wg.Wait()
	}
	b.ReportMetric(grown, "B/session")
	b.ReportMetric(used, "cpu-ns/s/session")
}
