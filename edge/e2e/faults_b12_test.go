package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wormhole/certs"
	"wormhole/edge/edgetest"
	"wormhole/edge/edgetest/oracle"
)

// B12: by a clock that differs from the CA's nothing is ordered, be it by five
// minutes or by a day. The name that is new is a good reason to order, so that the
// clock alone holds it back; the one that has a certificate keeps it.
func TestB12AWrongClockOrdersNothing(t *testing.T) {
	p := startPebble(t, edgetest.PebbleConfig{})
	r := newRig(t, p, filepath.Join(t.TempDir(), "store"), "", func(c *certs.ACMEConfig) { c.MaxSkew = 0 })
	r.plain(t, p)
	r.serve("good.example.com") // the rig orders while its clock is right
	good := r.await(t, "good.example.com", certs.StateValid)
	orders, told := p.Orders(), 0
	skews := []time.Duration{-24 * time.Hour, -5 * time.Minute, 5 * time.Minute, 24 * time.Hour}
	for i, skew := range skews {
		r.now.Store(int64(skew))
		name := fmt.Sprintf("skew%d.example.com", i)
		r.serve(name)
		edgetest.Eventually(t, "the order is put off", func() bool { return r.host(name).Error != "" })
		if strings.Contains(r.host(name).Error, "clock differs") {
			told++
		} else {
			t.Errorf("%s: it says %q", skew, r.host(name).Error)
		}
	}
	ordered := p.Orders() - orders
	kept := r.host("good.example.com").Serial == good.Serial
	oracle.Row{
		ID: "B12", Done: "an edge whose clock differs from the CA's by 5 minutes and by a day, either way, is asked for a new name each time",
		Figure: fmt.Sprintf("%d orders, %d of %d put off because of the clock, the certificate it had is kept: %v", ordered, told, len(skews), kept),
		Limit:  "0 orders, all told, kept", OK: ordered == 0 && told == len(skews) && kept,
	}.Verdict(t)
}
