package site

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"wormhole/edge/balance"
)

func backend(id string) *balance.Backend { return balance.NewBackend(balance.Info{ID: id}, nil) }

func TestLookupPrefersTheExactHost(t *testing.T) {
	r := New(nil)
	if err := r.Remember("a.example.com", "*.example.com", "*.localhost"); err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]string{
		"a.example.com":   "a.example.com",
		"b.example.com":   "*.example.com",
		"example.com":     "",
		"x.b.example.com": "",
		"hello.localhost": "*.localhost",
		"localhost":       "",
		"":                "",
	} {
		s, ok := r.Lookup(host)
		got := ""
		if ok {
			got = s.Host()
		}
		if got != want {
			t.Errorf("Lookup(%q) found %q, want %q", host, got, want)
		}
		if pattern, ok := r.Pattern(host); pattern != want || ok != (want != "") {
			t.Errorf("Pattern(%q) = %q, %v, want %q", host, pattern, ok, want)
		}
	}
}

func TestAHostOnceServedStaysKnown(t *testing.T) {
	r := New(nil)
	detach := r.Attach("app.example.com", backend("1"))
	s, ok := r.Lookup("app.example.com")
	if !ok || len(s.Pool().Backends()) != 1 {
		t.Fatal("the attached backend is not in the pool")
	}
	detach()
	detach()
	s, ok = r.Lookup("app.example.com")
	if !ok {
		t.Fatal("the site is unknown after its backend left")
	}
	if n := len(s.Pool().Backends()); n != 0 {
		t.Fatalf("the pool has %d backends after detach", n)
	}
	if again, _ := r.Lookup("app.example.com"); again.Pool() != s.Pool() {
		t.Fatal("the pool changed")
	}
}

func TestNewHostsAreToldOnce(t *testing.T) {
	r := New(nil)
	var told []string
	r.OnNewHost(func(p string) {
		if _, ok := r.Site(p); !ok {
			t.Errorf("%s is told but cannot be looked up", p)
		}
		told = append(told, p)
	})
	_ = r.Remember("old.example.com")
	r.Attach("old.example.com", backend("1"))
	r.Attach("*.new.example.com", backend("1"))
	r.Attach("*.new.example.com", backend("2"))
	if err := r.Apply(Spec{Host: "Applied.example.com."}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"*.new.example.com", "applied.example.com"}; !slices.Equal(told, want) {
		t.Fatalf("told %q, want %q", told, want)
	}
}

func TestApplyReplacesRulesAndKeepsBackends(t *testing.T) {
	r := New(nil)
	r.Attach("app.example.com", backend("1"))
	s, _ := r.Lookup("app.example.com")
	before := s.Rules()
	no := false
	if err := r.Apply(Spec{Host: "app.example.com", RedirectHTTP: &no}); err != nil {
		t.Fatal(err)
	}
	if !before.RedirectHTTP || s.Rules().RedirectHTTP {
		t.Fatal("the rules held by a request changed, or those of the site did not")
	}
	if err := r.Apply(Spec{Host: "app.example.com", AppProtocol: "spdy"}); err == nil {
		t.Fatal("a faulty spec was applied")
	}
	if s.Rules().RedirectHTTP || len(s.Pool().Backends()) != 1 {
		t.Fatal("a refused spec changed the site")
	}
}

func TestDeleteForgetsOnlyWhatNobodyServes(t *testing.T) {
	r := New(nil)
	no := false
	if err := r.Apply(Spec{Host: "app.example.com", RedirectHTTP: &no}); err != nil {
		t.Fatal(err)
	}
	detach := r.Attach("app.example.com", backend("1"))
	if !r.Delete("app.example.com") {
		t.Fatal("Delete does not know the site")
	}
	s, ok := r.Lookup("app.example.com")
	if !ok || s.Configured() || !s.Rules().RedirectHTTP {
		t.Fatal("a served site must go on with the default rules")
	}
	detach()
	if !r.Delete("app.example.com") {
		t.Fatal("Delete does not know the site")
	}
	if _, ok := r.Lookup("app.example.com"); ok {
		t.Fatal("the site is still known")
	}
	if r.Delete("app.example.com") || r.Delete("not a host") {
		t.Fatal("Delete knows what is unknown")
	}
}

func TestListIsOrderedAndWhole(t *testing.T) {
	r := New(nil)
	var want []string
	for i := range 5000 {
		want = append(want, fmt.Sprintf("h%04d.example.com", i))
	}
	want = append([]string{"*.example.com"}, want...)
	if err := r.Remember(want...); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range r.List() {
		got = append(got, s.Host())
	}
	if !slices.Equal(got, want) {
		t.Fatalf("List has %d hosts, want %d", len(got), len(want))
	}
}

func TestRememberKeepsTheValidOnes(t *testing.T) {
	r := New(nil)
	if err := r.Remember("a.example.com", "*.com", "b.example.com"); err == nil {
		t.Fatal("a wildcard over a public suffix was remembered")
	}
	if n := len(r.List()); n != 2 {
		t.Fatalf("%d sites, want 2", n)
	}
}

func TestConcurrentChangesLoseNothing(t *testing.T) {
	r := New(nil)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 200 {
				host := fmt.Sprintf("h%d.example.com", i)
				detach := r.Attach(host, backend(fmt.Sprint(w)))
				if s, ok := r.Lookup(host); !ok || len(s.Pool().Backends()) == 0 {
					t.Errorf("%s has no backend while one is attached", host)
				}
				detach()
				_ = r.Apply(Spec{Host: fmt.Sprintf("w%d-%d.example.com", w, i)})
				r.Delete(fmt.Sprintf("w%d-%d.example.com", w, i))
			}
		})
	}
	wg.Wait()
	if n := len(r.List()); n != 200 {
		t.Fatalf("%d sites, want 200", n)
	}
}

func BenchmarkLookup(b *testing.B) {
	r := New(nil)
	hosts := make([]string, 100_000)
	for i := range hosts {
		hosts[i] = fmt.Sprintf("app-%d.tenant-%d.example.com", i, i%1000)
	}
	_ = r.Remember(hosts...)
	_ = r.Remember("*.wild.example.com")
	for name, host := range map[string]string{"exact": hosts[4711], "wildcard": "any.wild.example.com", "unknown": "nobody.example.org"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					r.Lookup(host)
				}
			})
		})
	}
	b.Run("register", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			host := fmt.Sprintf("new-%d.example.com", i)
			_ = r.Remember(host)
			r.Delete(host)
		}
	})
}

func TestLookupDoesNotAllocate(t *testing.T) {
	r := New(nil)
	_ = r.Remember("a.example.com", "*.example.com")
	if n := testing.AllocsPerRun(100, func() {
		r.Lookup("a.example.com")
		r.Lookup("b.example.com")
		r.Lookup("unknown")
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}
