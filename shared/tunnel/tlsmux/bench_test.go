//go:build unix

package tlsmux

import (
	"fmt"
	"io"
	"sync"
	"syscall"
	"testing"
	"time"

	"wormhole/shared/tunnel"
)

// cpu returns the processor time this process has used.
func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// answer reads requests of 200 bytes and answers each with 300, until the end.
func answer(st tunnel.Stream) {
	defer st.Close()
	buf := make([]byte, 300)
	for {
		if _, err := io.ReadFull(st, buf[:200]); err != nil {
			return
		}
		if _, err := st.Write(buf); err != nil {
			return
		}
	}
}

// serveAgent serves an agent's streams until the session ends.
func serveAgent(b *testing.B, agent tunnel.Session, handle func(tunnel.Stream)) {
	go func() {
		for {
			st, err := agent.Accept(b.Context())
			if err != nil {
				return
			}
			go handle(st)
		}
	}()
}

// BenchmarkExchangeKeptStream: 200 bytes out and 300 back over streams that stay
// open, both ends in this process. cpu-us/op is what both cost.
func BenchmarkExchangeKeptStream(b *testing.B) {
	for _, streams := range []struct {
		name string
		n    int
	}{{"1", 1}, {"64", 64}} {
		b.Run(streams.name, func(b *testing.B) {
			agent, edge := pair(b, Options{}, Options{})
			serveAgent(b, agent, answer)
			b.ReportAllocs()
			b.ResetTimer()
			before := cpu()
			done := make(chan struct{})
			for i := range streams.n {
				st, err := edge.Open(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				defer st.Close()
				n := (b.N + i) / streams.n
				go func() {
					buf := make([]byte, 300)
					for range n {
						st.Write(buf[:200])
						if _, err := io.ReadFull(st, buf); err != nil {
							b.Error(err)
							break
						}
					}
					done <- struct{}{}
				}()
			}
			for range streams.n {
				<-done
			}
			b.ReportMetric(float64((cpu()-before).Nanoseconds())/1e3/float64(b.N), "cpu-us/op")
		})
	}
}

// BenchmarkRelayedExchange is the same through a third party that joins two sessions,
// with short frames passed on directly and with all through the streams' queues.
func BenchmarkRelayedExchange(b *testing.B) {
	for _, streams := range []int{1, 8, 64} {
		for _, queued := range []bool{false, true} {
			b.Run(fmt.Sprintf("%d/queued=%t", streams, queued), func(b *testing.B) {
				m := newMiddle(b, unwrapped)
				m.queued = queued
				var all sync.WaitGroup
				var near []tunnel.Stream
				for range streams {
					left, right := m.stream(b)
					near = append(near, left)
					all.Go(func() { answer(right) })
				}
				b.ReportAllocs()
				b.ResetTimer()
				before := cpu()
				for i, st := range near {
					n := (b.N + i) / streams
					all.Go(func() {
						defer st.Close()
						buf := make([]byte, 300)
						for range n {
							_, _ = st.Write(buf[:200])
							if _, err := io.ReadFull(st, buf); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				all.Wait()
				b.ReportMetric(float64((cpu()-before).Nanoseconds())/1e3/float64(b.N), "cpu-us/op")
			})
		}
	}
}

// BenchmarkExchangeNewStream is the same with a stream for each exchange.
func BenchmarkExchangeNewStream(b *testing.B) {
	agent, edge := pair(b, Options{}, Options{})
	serveAgent(b, agent, func(st tunnel.Stream) {
		defer st.Close()
		buf := make([]byte, 300)
		if _, err := io.ReadFull(st, buf[:200]); err != nil {
			return
		}
		st.Write(buf)
		st.CloseWrite()
		st.Read(buf)
	})
	b.ReportAllocs()
	b.ResetTimer()
	before := cpu()
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		buf := make([]byte, 300)
		for pb.Next() {
			st, err := edge.Open(b.Context())
			if err != nil {
				b.Error(err)
				return
			}
			st.Write(buf[:200])
			st.CloseWrite()
			if _, err := io.ReadFull(st, buf); err != nil {
				b.Error(err)
			}
			st.Read(buf)
			st.Close()
		}
	})
	b.ReportMetric(float64((cpu()-before).Nanoseconds())/1e3/float64(b.N), "cpu-us/op")
}

// BenchmarkBulk moves data in one direction over one stream.
func BenchmarkBulk(b *testing.B) {
	agent, edge := pair(b, Options{}, Options{})
	serveAgent(b, agent, func(st tunnel.Stream) {
		defer st.Close()
		buf := make([]byte, 32<<10)
		for {
			if _, err := st.Write(buf); err != nil {
				return
			}
		}
	})
	st, err := edge.Open(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer st.Close()
	st.Write([]byte{1})
	b.ReportAllocs()
	b.SetBytes(1 << 20)
	b.ResetTimer()
	before := cpu()
	buf := make([]byte, 32<<10)
	for range b.N {
		for got := 0; got < 1<<20; {
			n, err := st.Read(buf[:min(len(buf), 1<<20-got)])
			if err != nil {
				b.Fatal(err)
			}
			got += n
		}
	}
	b.ReportMetric((cpu()-before).Seconds()*1024/float64(b.N), "cpu-s/GiB")
}

// BenchmarkExchangePaced is one exchange each millisecond: what a tunnel costs
// that is not saturated.
func BenchmarkExchangePaced(b *testing.B) {
	agent, edge := pair(b, Options{}, Options{})
	serveAgent(b, agent, answer)
	st, err := edge.Open(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer st.Close()
	buf := make([]byte, 300)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	b.ResetTimer()
	before := cpu()
	for range b.N {
		<-tick.C
		st.Write(buf[:200])
		if _, err := io.ReadFull(st, buf); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64((cpu()-before).Nanoseconds())/1e3/float64(b.N), "cpu-us/op")
}
