// Package link joins two network namespaces by a link with a round trip, a rate
// and loss, for tests and benchmarks of what crosses real networks. The link lives
// in this process: each namespace has a TUN device, and a thread for each direction
// carries packets from one to the other. Both ends are the kernel's own TCP and UDP.
//
// # Guarantees
//
//   - A direction sends one packet after another at Rate, holds what waits for that in
//     a queue that drops what does not fit, loses packets at random, and delivers the
//     rest in order half of RTT after they were sent.
//   - Which packets are lost follows from Seed and the packets' order alone, of those
//     up to half of MTU and of larger ones separately: short requests beside bulk do
//     not change what bulk loses. [Link.Reseed] begins again.
//   - Packets are delivered at most a tenth of a millisecond early. How late they are
//     depends on the machine; [Stats] says it, and a measurement should look. In a
//     process that is busy itself, a GOMAXPROCS above the number of cores helps.
//   - The namespaces and devices have no names outside of this process, and are gone
//     with it, however it ends. [Link.Close] removes them before, once the programs
//     started inside have ended.
//
// It needs Linux, root and /dev/net/tun, and about 15 % of a core for 200 Mbit/s.
package link

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

// MTU is the largest packet of a link, in bytes, IP header included.
const MTU = 1500

// Config describes a link; both directions are alike. Rate is required.
type Config struct {
	// RTT is how long a packet and its answer take where nothing queues.
	RTT time.Duration
	// Rate is what each direction carries, in bits a second, IP headers included.
	Rate int64
	// Loss is the share of packets that are lost at random, from 0 to below 1.
	Loss float64
	// Queue is how many bytes may wait to be sent in each direction. 0 means as many
	// as one round trip carries, and at least 64 KiB.
	Queue int
	// Seed makes another choice of lost packets.
	Seed uint64
	// Congestion is TCP's congestion control for sockets that choose none, as in
	// tcp_available_congestion_control; empty means cubic.
	Congestion string
}

// withDefaults fills in what is zero, and refuses what cannot be.
func (c Config) withDefaults() (Config, error) {
	var faults []error
	if c.Rate < 8*MTU {
		faults = append(faults, fmt.Errorf("link: a rate of %d bit/s does not carry one packet a second", c.Rate))
	}
	if c.Loss < 0 || c.Loss >= 1 {
		faults = append(faults, fmt.Errorf("link: loss of %v is not a share from 0 to below 1", c.Loss))
	}
	if c.RTT < 0 || c.RTT > 10*time.Second {
		faults = append(faults, fmt.Errorf("link: a round trip of %v is not within 0 to 10s", c.RTT))
	}
	if c.Queue < 0 {
		faults = append(faults, fmt.Errorf("link: a queue of %d bytes", c.Queue))
	}
	if c.Queue == 0 {
		c.Queue = max(64<<10, int(float64(c.Rate)/8*c.RTT.Seconds()))
	}
	if c.Congestion == "" {
		c.Congestion = "cubic"
	}
	return c, errors.Join(faults...)
}

// Link is two namespaces and what joins them. Close it. Its methods may be called
// concurrently.
type Link struct {
	A, B *Side

	cfg       Config
	toA, toB  *direction
	running   sync.WaitGroup
	closeOnce sync.Once
	closed    error
}

// New makes the namespaces and starts the link.
func New(cfg Config) (*Link, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	l := &Link{cfg: cfg}
	if l.A, err = openSide("10.77.0.1", cfg.Congestion); err != nil {
		return nil, err
	}
	if l.B, err = openSide("10.77.0.2", cfg.Congestion); err != nil {
		return nil, errors.Join(err, l.A.close())
	}
	l.toB = newDirection(cfg, 1)
	l.toA = newDirection(cfg, 2)
	l.running.Go(func() { carry(l.toB, l.A, l.B) }) // both end with Close
	l.running.Go(func() { carry(l.toA, l.B, l.A) })
	return l, nil
}

// Stats is what happened to the packets sent from A to B, and from B to A.
func (l *Link) Stats() (aToB, bToA Stats) { return l.toB.stats(), l.toA.stats() }

// Reseed makes the choice of lost packets begin again, as on a new link with that
// seed: of what enters the link from now on the same packets are lost as after another
// Reseed with it.
func (l *Link) Reseed(seed uint64) {
	l.toA.seed(seed)
	l.toB.seed(seed)
}

// Close ends the link and waits for its threads. It is idempotent. What is on its
// way is lost.
func (l *Link) Close() error {
	l.closeOnce.Do(func() {
		l.A.interrupt()
		l.B.interrupt()
		l.running.Wait()
		l.closed = errors.Join(l.A.close(), l.B.close())
	})
	return l.closed
}
