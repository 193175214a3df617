package proxy

import (
	"net/http"
	"time"
)

// Refuse answers a request that something in front of the proxy turns away, as the
// proxy answers its own refusals: same page, same log, same metrics. Text is for
// clients. The request must have had no answer yet.
func (p *Proxy) Refuse(w http.ResponseWriter, r *http.Request, status int, code, text string, retryAfter time.Duration) {
	v := &visit{p: p, w: w, r: r}
	v.rec.Start = time.Now()
	v.rec.describe(r)
	if p.cfg.RequestID != nil {
		v.rec.RequestID = p.cfg.RequestID(r)
	}
	if v.rec.RequestID == "" {
		v.rec.RequestID = newRequestID()
	}
	defer v.finish()
	seconds := int((retryAfter + time.Second - 1) / time.Second)
	v.refuse(&fault{status, code, "client", text, seconds})
}
