package kv

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// trio are three servers of one store, each behind an address of its own that stays
// when the server is started again.
type trio struct {
	dirs    []string
	conf    []Replica
	mu      sync.Mutex
	servers []*Server
	turn    int // of dial
}

func (r *trio) at(i int) *Server {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.servers[i]
}

// startTrio starts three servers whose routes go through forwarders, as between edges.
func startTrio(t testing.TB) *trio {
	t.Helper()
	return startTrioIn(t, t.TempDir(), t.TempDir(), t.TempDir())
}

func startTrioIn(t testing.TB, dirs ...string) *trio {
	t.Helper()
	r := &trio{servers: make([]*Server, Replicas), dirs: dirs}
	var addrs []string
	for i := range Replicas {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addrs = append(addrs, l.Addr().String())
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				wg.Go(func() {
					defer conn.Close()
					s := r.at(i)
					if s == nil || s.RouteAddr() == "" {
						return
					}
					to, err := net.Dial("tcp", s.RouteAddr())
					if err != nil {
						return
					}
					Splice(conn, to)
				})
			}
		})
		t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	}
	for i := range Replicas {
		r.conf = append(r.conf, Replica{Name: fmt.Sprintf("n%d", i), Network: "test", Secret: "secret", Routes: addrs})
	}
	t.Cleanup(func() {
		for i := range Replicas {
			r.stop(i)
		}
	})
	for i := range Replicas {
		r.start(t, i)
	}
	return r
}

func (r *trio) start(t testing.TB, i int) {
	t.Helper()
	s, err := StartReplica(r.dirs[i], r.conf[i], quiet)
	if err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	r.servers[i] = s
	r.mu.Unlock()
}

func (r *trio) stop(i int) {
	s := r.at(i)
	r.mu.Lock()
	r.servers[i] = nil
	r.mu.Unlock()
	if s != nil {
		_ = s.Close()
	}
}

// dial goes to one that runs, and to the next if it is asked again.
func (r *trio) dial() (net.Conn, error) {
	r.mu.Lock()
	r.turn++
	turn := r.turn + 2 // 0 at first
	r.mu.Unlock()
	for i := range Replicas {
		if s := r.at((turn + i) % Replicas); s != nil {
			here, there := net.Pipe()
			go s.Serve(context.Background(), there)
			return here, nil
		}
	}
	return nil, fmt.Errorf("nobody there")
}

func openTrioStore(t testing.TB, r *trio) *Store {
	t.Helper()
	s, err := Open(Config{Dial: r.dial, Mirror: filepath.Join(t.TempDir(), "m"), Timeout: 2 * time.Second}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait(); _ = s.Close() })
	return s
}

func within(t testing.TB, patience time.Duration, what string, cond func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for !cond() {
		if time.Since(began) > patience {
			t.Fatalf("not within %s: %s", patience, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return time.Since(began)
}

// A store that one server held is copied to three while it is written to, held, copied
// again, and goes on with any one of the three dead.
func TestAStoreMovesToThreeServers(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	h := &host{s: startServer(t, t.TempDir())}
	old := openStore(t, h, filepath.Join(t.TempDir(), "m"))
	awaitFresh(t, old)
	want := map[string]string{}
	put := func(s *Store, key, value string) {
		t.Helper()
		if _, err := s.Put(ctx, "b", key, []byte(value)); err != nil {
			t.Fatal(err)
		}
		want[key] = value
	}
	for i := range 200 {
		put(old, fmt.Sprint("k", i), "first")
	}
	r := startTrio(t)
	last, err := h.s.Last(ctx)
	if err != nil {
		t.Fatal(err)
	}
	floor := last + 1000
	began := time.Now()
	if err := r.at(0).Begin(ctx, floor); err != nil {
		t.Fatal(err)
	}
	t.Logf("three servers hold a bucket after %s", time.Since(began))
	var done Copied
	began = time.Now()
	if err := h.s.Copy(ctx, r.at(0), &done); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d entries copied in %s", done.Len(), time.Since(began))
	put(old, "k3", "second")
	put(old, "late", "new")
	if err := old.Delete(ctx, "b", "k4"); err != nil {
		t.Fatal(err)
	}
	delete(want, "k4")
	began = time.Now()
	h.s.Hold()
	if _, err := h.s.InProcessConn(); err == nil {
		t.Error("a store that is held takes clients")
	}
	eventually(t, "writers notice", func() bool { _, fault := old.Health(); return fault != nil })
	if _, err := old.Put(ctx, "b", "held", nil); err == nil {
		t.Error("a store that is held takes writes")
	}
	if err := h.s.Copy(ctx, r.at(0), &done); err != nil {
		t.Fatal(err)
	}
	t.Logf("held for %s", time.Since(began))
	if done.Len() != len(want) {
		t.Errorf("%d entries copied, want %d", done.Len(), len(want))
	}

	s := openTrioStore(t, r)
	within(t, 20*time.Second, "in step", func() bool { _, fault := s.Health(); return fault == nil })
	check := func(s *Store) {
		t.Helper()
		list, err := s.List(ctx, "b")
		if err != nil {
			t.Fatal(err)
		}
		if len(list) != len(want) {
			t.Errorf("%d entries, want %d", len(list), len(want))
		}
		for _, e := range list {
			if want[e.Key] != string(e.Value) || e.Revision <= floor {
				t.Errorf("%s is %q at %d", e.Key, e.Value, e.Revision)
			}
		}
	}
	check(s)
	n := 0
	for i := range Replicas {
		r.stop(i)
		took := within(t, 40*time.Second, "writes go on with two of three", func() bool {
			n++
			key := fmt.Sprint("w", n)
			_, err := s.Put(ctx, "b", key, []byte("v"))
			if err == nil {
				want[key] = "v"
			} else {
				delete(want, key)
				// What was refused may be there all the same: settle it.
				within(t, 40*time.Second, "an answer", func() bool { return s.Delete(ctx, "b", key) == nil })
			}
			return err == nil
		})
		t.Logf("writes go on %s after server %d ended", took, i)
		r.start(t, i)
		within(t, 30*time.Second, "its part is complete", func() bool { return r.at(i).Whole() })
	}
	within(t, 20*time.Second, "in step", func() bool { _, fault := s.Health(); return fault == nil })
	check(s)
	// All end and start again.
	for i := range Replicas {
		r.stop(i)
	}
	for i := range Replicas {
		r.start(t, i)
	}
	late := openTrioStore(t, r)
	within(t, 40*time.Second, "in step after all were away", func() bool { _, fault := late.Health(); return fault == nil })
	check(late)
}

// A store that is read through a server that was away is in step when it has all that
// was acknowledged meanwhile, and not when that server has told all that it has.
func TestAServerThatCatchesUpIsNotInStepBefore(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	r := startTrio(t)
	if err := r.at(0).Begin(ctx, 0); err != nil {
		t.Fatal(err)
	}
	s := openTrioStore(t, r)
	within(t, 20*time.Second, "in step", func() bool { _, fault := s.Health(); return fault == nil })
	want := 0
	put := func(n int) {
		t.Helper()
		for range n {
			key := fmt.Sprint("k", want)
			within(t, 40*time.Second, "a write", func() bool { _, err := s.Put(ctx, "b", key, make([]byte, 64<<10)); return err == nil })
			want++
		}
	}
	put(10)
	for turn := range 4 {
		i := 1 + turn%2 // the store s is connected to the first
		r.stop(i)
		put(40)
		r.start(t, i)
		late, err := Open(Config{Dial: func() (net.Conn, error) {
			here, there := net.Pipe()
			go r.at(i).Serve(context.Background(), there)
			return here, nil
		}, Mirror: filepath.Join(t.TempDir(), "m")}, quiet)
		if err != nil {
			t.Fatal(err)
		}
		run, stop := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Go(func() { _ = late.Run(run) })
		select {
		case <-late.Fresh():
		case <-time.After(40 * time.Second):
			_, fault := late.Health()
			t.Errorf("not in step after 40 s: %v", fault)
		}
		if list, err := late.List(ctx, "b"); err != nil || len(list) < want {
			t.Errorf("it is in step with %d of %d entries, %v", len(list), want, err)
		}
		stop()
		wg.Wait()
		_ = late.Close()
		within(t, 40*time.Second, "its part is complete", r.at(i).Whole)
	}
}

// One of three servers is lost for good. The other two give it up and go on taking
// writes, and a new one in its place has everything, whether or not it is there yet
// when they do.
func TestAServerOfThreeIsReplaced(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	r := startTrio(t)
	for i := range Replicas {
		if ns := r.at(i).current(); peerID(ns.Name()) != ns.NodeName() {
			t.Fatalf("%s is %s, not %s", ns.Name(), ns.NodeName(), peerID(ns.Name()))
		}
	}
	if err := r.at(0).Begin(ctx, 0); err != nil {
		t.Fatal(err)
	}
	s := openTrioStore(t, r)
	within(t, 20*time.Second, "in step", func() bool { _, fault := s.Health(); return fault == nil })
	acked := map[string]bool{}
	var mu sync.Mutex
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			key := fmt.Sprint("k", n)
			if _, err := s.Put(ctx, "b", key, []byte("v")); err == nil {
				mu.Lock()
				acked[key] = true
				mu.Unlock()
			} else {
				time.Sleep(5 * time.Millisecond)
			}
		}
	})
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(acked)
	}
	goesOn := func(what string) {
		before := count()
		within(t, 40*time.Second, "writes "+what, func() bool { return count() > before+20 })
	}
	goesOn("at first")
	names := []string{"n0", "n1", "n2"}
	for turn, i := range []int{2, 0, 1} { // in the end all are others
		r.stop(i)
		name := fmt.Sprintf("n%d-%d", i, turn)
		names[i] = name
		r.dirs[i], r.conf[i].Name = t.TempDir(), name
		if turn == 1 {
			r.start(t, i) // it is there before the lost one is given up
		}
		gone := func() bool {
			for j := range Replicas {
				if j == i {
					continue
				}
				kept, err := r.at(j).Keep(ctx, names, name)
				if err == nil && kept {
					return true
				} else if err != nil {
					t.Logf("server %d: %v", j, err)
				}
			}
			time.Sleep(200 * time.Millisecond)
			return false
		}
		took := within(t, 40*time.Second, "the lost one is given up", gone)
		goesOn("with two")
		if turn != 1 {
			r.start(t, i)
		}
		all := within(t, 60*time.Second, "the new one has everything", func() bool {
			have, err := r.at(i).Copies(ctx)
			slices.Sort(have)
			want := slices.Sorted(slices.Values(names))
			return err == nil && slices.Equal(have, want) && r.at(i).Whole()
		})
		goesOn("with three again")
		t.Logf("server %d: given up after %s, replaced after %s more", i, took, all)
	}
	close(stop)
	wg.Wait()
	late := openTrioStore(t, r)
	within(t, 20*time.Second, "in step", func() bool { _, fault := late.Health(); return fault == nil })
	list, err := late.List(ctx, "b")
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, e := range list {
		have[e.Key] = true
	}
	for key := range acked {
		if !have[key] {
			t.Errorf("%s was acknowledged and is not there", key)
		}
	}
	t.Logf("%d acknowledged writes", len(acked))
}

// Nobody speaks to one of three servers by way of its ports: not a client, and not a
// server that does not know the secret.
func TestAReplicasPortsAreForItsPeersOnly(t *testing.T) {
	r := startTrio(t)
	ns := r.at(0).current()
	for what, addr := range map[string]string{"clients": strings.TrimPrefix(ns.ClientURL(), "nats://"), "routes": r.at(0).RouteAddr()} {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		connect := `CONNECT {"verbose":false,"name":"stranger","cluster":"test","user":"store","pass":"wrong"}` + "\r\nPING\r\n"
		if _, err := conn.Write([]byte(connect)); err != nil {
			t.Fatal(err)
		}
		var said strings.Builder
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			said.Write(buf[:n])
			if err != nil {
				break
			}
		}
		if text := said.String(); !strings.Contains(text, "Authorization") || strings.Contains(text, "PONG") {
			t.Errorf("%s: it says %s", what, text)
		}
	}
}
