package edgetest

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Probe asks for one URL at a fixed rate, each request on its own time, so that a
// slow answer delays nobody.
type Probe struct {
	client *http.Client
	url    string
	wg     sync.WaitGroup
	stop   chan struct{}

	mu    sync.Mutex // guards asked
	asked []Asked
}

// Asked is one request of a Probe.
type Asked struct {
	At, Took time.Duration // since the probe began; until the end of the answer
	Status   int           // 0 if there was no answer
	Backend  string        // the answer's X-Backend
	Err      error         // no whole answer
}

// OK reports whether the app answered as it should.
func (a Asked) OK() bool { return a.Err == nil && a.Status == http.StatusOK }

// StartProbe begins to ask. Stop must be called.
func StartProbe(client *http.Client, url string, every time.Duration) *Probe {
	p := &Probe{client: client, url: url, stop: make(chan struct{})}
	began := time.Now()
	p.wg.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-p.stop:
				return
			case <-tick.C:
			}
			at := time.Since(began)
			p.wg.Go(func() {
				a := p.ask()
				a.At, a.Took = at, time.Since(began)-at
				p.mu.Lock()
				defer p.mu.Unlock()
				p.asked = append(p.asked, a)
			})
		}
	})
	return p
}

func (p *Probe) ask() Asked {
	resp, err := p.client.Get(p.url)
	if err != nil {
		return Asked{Err: err}
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return Asked{Status: resp.StatusCode, Backend: resp.Header.Get("X-Backend"), Err: err}
}

// Stop asks no more, waits for the answers and returns them in the order of asking.
func (p *Probe) Stop() Answers {
	close(p.stop)
	p.wg.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	slices.SortFunc(p.asked, func(a, b Asked) int { return int(a.At - b.At) })
	return p.asked
}

// Answers are what a Probe saw.
type Answers []Asked

// Since are those asked from a moment of the probe on.
func (a Answers) Since(at time.Duration) Answers {
	i, _ := slices.BinarySearchFunc(a, at, func(x Asked, at time.Duration) int { return int(x.At - at) })
	return a[i:]
}

// FailedAround counts those that were not answered well, apart those that were under
// way at a moment of the probe and those that were not.
func (a Answers) FailedAround(at time.Duration) (underWay, others int) {
	for _, x := range a {
		switch {
		case x.OK():
		case x.At <= at && x.At+x.Took >= at:
			underWay++
		default:
			others++
		}
	}
	return underWay, others
}

// Failed counts those that were not answered well.
func (a Answers) Failed() int {
	n := 0
	for _, x := range a {
		if !x.OK() {
			n++
		}
	}
	return n
}

// From counts those that a backend answered.
func (a Answers) From(backend string) int {
	n := 0
	for _, x := range a {
		if x.Backend == backend {
			n++
		}
	}
	return n
}

// P99 is the time that 99 of 100 took at most.
func (a Answers) P99() time.Duration {
	took := make([]time.Duration, 0, len(a))
	for _, x := range a {
		took = append(took, x.Took)
	}
	return Quantile(took, 0.99)
}

// Faults are the first failures as text.
func (a Answers) Faults() string {
	s := ""
	n := 0
	for _, x := range a {
		if !x.OK() && n < 5 {
			n++
			s += fmt.Sprintf("\n  at %s after %s: status %d, %v", x.At.Round(time.Millisecond), x.Took.Round(time.Millisecond), x.Status, x.Err)
		}
	}
	return s
}

// Quantile is the q-th quantile of some durations, 0 of none. It sorts them.
func Quantile(took []time.Duration, q float64) time.Duration {
	if len(took) == 0 {
		return 0
	}
	slices.Sort(took)
	return took[min(len(took)-1, int(q*float64(len(took))))]
}
