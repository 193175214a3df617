package proxy

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"wormhole/edge/balance"
	"wormhole/edge/upstream"
)

// carriage is the part of a visit that the attempts share.
type carriage struct {
	out      upstream.Request
	set      [8]upstream.Field // memory of out.Set
	tried    []*balance.Backend
	memory   [maxAttempts]*balance.Backend // of tried
	budgeted bool
	queue    bool            // all backends were at their limit: wait for a stream of one
	last     *upstream.Error // of the attempt before

	stall sync.Mutex // guards over, and is held by the interrupts
	over  bool       // the ResponseWriter may not be touched any more
}

// carry brings the request to a backend, tries again where that is safe, and
// answers.
func (v *visit) carry() {
	defer v.settle()
	v.compose()
	v.tried = v.memory[:0]
	ctx := v.r.Context()
	for {
		b, f := v.pick(ctx)
		if b == nil {
			v.refuse(f)
			return
		}
		if err := v.attempt(ctx, b); err == nil || !v.prepareRetry(b, err) {
			return
		}
	}
}

// settle ends what the attempts share.
func (v *visit) settle() {
	if v.budgeted {
		v.pool.Retries.Give()
	}
	v.stall.Lock()
	v.over = true
	v.stall.Unlock()
}

// attempt sends the request to b and, if it answers, delivers the answer. A failure
// before the answer is returned.
func (v *visit) attempt(ctx context.Context, b *balance.Backend) *upstream.Error {
	defer b.Release() // after the body has ended: load is requests in flight
	v.rec.Attempts++
	v.rec.Backend, v.rec.Tunnel = b.Name(), b.ID()
	protocol := v.rules.AppProtocol
	if protocol == "" {
		protocol = b.AppProtocol()
	}
	v.out.H2C = protocol == "h2c"
	v.out.Fresh = v.rec.Attempts > 1
	v.out.Queue = v.queue || v.rec.Attempts == maxAttempts
	resp, err := b.Upstream().Do(ctx, &v.out)
	if err != nil {
		var failure *upstream.Error
		if !errors.As(err, &failure) {
			failure = &upstream.Error{Stage: upstream.Sent, Cause: upstream.Closed, Err: err}
		}
		if o, ok := lesson(failure); ok {
			b.Report(o)
		}
		return failure
	}
	defer resp.Close()
	if name := resp.Via(); name != "" {
		v.rec.Backend = name
	}
	b.Report(balance.Served)
	if resp.Upgraded {
		v.upgrade(ctx, resp)
	} else {
		v.deliver(ctx, resp)
	}
	return nil
}

// prepareRetry decides whether there will be another attempt, and answers if not.
func (v *visit) prepareRetry(b *balance.Backend, err *upstream.Error) bool {
	v.last, v.rec.Err = err, err
	if !v.mayRetry(err) {
		v.refuse(faultOf(err))
		return false
	}
	if !err.Kept && !slices.Contains(v.tried, b) {
		v.tried = append(v.tried, b)
	}
	v.p.metrics.Retried(v.rec.Site, reason(err))
	return true
}

// reachWait is how long a request is parked for a site whose backends are behind
// edges that are cut off: those seldom come back in a moment.
const reachWait = time.Second

// pick chooses a backend that was not tried yet. If there is none, the request is
// parked: for a limited time in all, and beside a limited number of others of its
// site. The fault says why there is no backend.
func (v *visit) pick(ctx context.Context) (*balance.Backend, *fault) {
	if b := v.pool.Pick(v.tried...); b != nil {
		return b, nil
	}
	busy := v.last != nil && faultOf(v.last) == &backendBusy
	if busy && !v.queue {
		v.queue, v.tried = true, v.memory[:0]
		return v.pick(ctx)
	}
	for !busy {
		patience := v.rules.ParkingWait
		if v.pool.OutOfReach() {
			patience = min(patience, reachWait)
		}
		left := patience - v.rec.Parked
		if left <= 0 || !v.pool.Parked.Take(v.rules.ParkingMax) {
			break
		}
		since := time.Now()
		b := v.park(ctx, left)
		v.pool.Parked.Give()
		v.rec.Parked += time.Since(since)
		if b != nil {
			return b, nil
		}
		if ctx.Err() != nil {
			return nil, nil // the client left
		}
		// An edge that seemed cut off may have turned out to be gone: its agents are
		// on their way elsewhere, and there is more patience.
	}
	if v.pool.OutOfReach() {
		return nil, &outOfReach
	}
	if v.last != nil {
		return nil, faultOf(v.last)
	}
	if v.pool.Unready() {
		return nil, &notReady
	}
	return nil, &noBackend
}

// park waits for a fit backend, whether it was tried before or not.
func (v *visit) park(ctx context.Context, wait time.Duration) *balance.Backend {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for v.pool.Wait(ctx) == nil {
		if b := v.pool.Pick(); b != nil {
			v.tried = v.memory[:0]
			return b
		}
	}
	return nil
}

// compose fills in the request to the app.
func (v *visit) compose() {
	out := &v.out
	out.Method = v.r.Method
	out.Target = target(v.r)
	out.Host = v.r.Host
	if len(v.rec.Host)+len(v.port) != len(out.Host) || !strings.HasPrefix(out.Host, v.rec.Host) {
		out.Host = v.rec.Host + v.port // one spelling for routing and for the app
	}
	out.Header = v.r.Header
	out.ID = v.rec.RequestID
	out.Client = v
	out.Interim = v.interim
	out.Timeouts = upstream.Timeouts{
		Header: v.rules.ResponseTimeout, Client: v.rules.IdleTimeout, Silence: v.p.cfg.SilenceTimeout,
	}
	if quiet(v.r.Header["Content-Type"]) {
		out.Timeouts.Silence = v.p.cfg.StreamTimeout
	}
	if idempotent(out.Method) {
		out.Proof = 100 * time.Millisecond // it may be sent again in any case
	}
	if v.rules.AllowUpgrade && wantsWebSocket(v.r) {
		out.Upgrade = "websocket"
	}
	v.body.attach(v, out)
	v.identify(out)
}

// target is the request target in origin form, byte for byte as the client wrote it
// where possible.
func target(r *http.Request) string {
	uri := r.RequestURI
	if uri == "" || uri[0] != '/' && uri != "*" { // absolute form, or a request made by code
		uri = r.URL.RequestURI()
		if i := strings.Index(r.RequestURI, "://"); i >= 0 {
			rest := r.RequestURI[i+len("://"):]
			switch j := strings.IndexAny(rest, "/?"); {
			case j < 0:
				uri = "/"
			case rest[j] == '?':
				uri = "/" + rest[j:]
			default:
				uri = rest[j:]
			}
		}
	}
	return uri
}

// interim passes an interim answer on, such as 103 Early Hints.
func (v *visit) interim(status int, fields []upstream.Field) {
	v.begun = true
	h := v.w.Header()
	for _, f := range fields {
		h[f.Name] = append(h[f.Name], f.Value)
	}
	v.w.WriteHeader(status)
	for _, f := range fields {
		delete(h, f.Name)
	}
}

// InterruptRead makes a read of the request's body that blocks fail.
func (v *visit) InterruptRead() {
	v.stall.Lock()
	defer v.stall.Unlock()
	if !v.over {
		_ = http.NewResponseController(v.w).SetReadDeadline(longAgo())
	}
}

// InterruptWrite makes a write of the answer that blocks fail.
func (v *visit) InterruptWrite() {
	v.stall.Lock()
	defer v.stall.Unlock()
	if !v.over {
		_ = http.NewResponseController(v.w).SetWriteDeadline(longAgo())
	}
}

// Taken returns how many bytes the client's connection has acknowledged, and whether
// it is owed more.
func (v *visit) Taken() (uint64, bool) {
	if v.p.cfg.Taken == nil {
		return 0, false
	}
	return v.p.cfg.Taken(v.r)
}

var _ upstream.Taker = (*visit)(nil)

func longAgo() time.Time { return time.Unix(1, 0) }
