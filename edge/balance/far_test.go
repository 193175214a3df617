package balance

import "testing"

func TestNearBackendsComeFirst(t *testing.T) {
	p := NewPool(nil)
	near, far := NewBackend(Info{ID: "near"}, nil), NewBackend(Info{ID: "far", Far: true}, nil)
	changes := 0
	p.OnChange(func() { changes++ })
	p.Add(far)
	remove := p.Add(near)
	pick := func(want *Backend, tried ...*Backend) {
		t.Helper()
		for range 50 {
			got := p.Pick(tried...)
			if got != want {
				t.Fatalf("picked %v, want %v", got, want)
			}
			if got != nil {
				got.Release()
			}
		}
	}
	pick(near)
	pick(far, near)
	near.SetSuspect(true)
	pick(far) // a fit far one before a near one in doubt
	far.SetSuspect(true)
	if b := p.Pick(); b == nil {
		t.Fatal("all in doubt: want one tried all the same")
	} else {
		b.Release()
	}
	near.SetSuspect(false)
	near.SetReady(false)
	far.SetSuspect(false)
	pick(far)
	if b := p.PickNear(); b != nil {
		t.Fatalf("PickNear = %s, want none", b.ID())
	}
	near.SetReady(true)
	for range spill {
		near.take()
	}
	pick(far) // spilled over
	remove()
	if len(p.Near()) != 0 || len(p.Backends()) != 1 {
		t.Fatalf("%d near of %d", len(p.Near()), len(p.Backends()))
	}
	if changes < 8 {
		t.Fatalf("told of %d changes", changes)
	}
}
