package proxy

// unit is what a body must have moved further until the site's usage grows. What is
// less is added when the request is over.
const unit = 1 << 20

// wholeUnits is how many bytes have become whole units by the last n of total.
func wholeUnits(total int64, n int) int64 {
	return total&^(unit-1) - (total-int64(n))&^(unit-1)
}

// account adds the request, and what is left of its bytes, to its site's usage.
func (v *visit) account() {
	if v.site == nil {
		return
	}
	in, out := v.rec.BytesIn%unit, v.rec.BytesOut%unit
	if v.joinedBytes { // each was counted when it passed
		in, out = 0, 0
	}
	v.p.cfg.Usage.Request(v.site.Usage(), v.rec.Status, in, out)
}
