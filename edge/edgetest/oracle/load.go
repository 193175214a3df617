package oracle

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// SlowAfter is the time after which an answer counts as failed.
const SlowAfter = 5 * time.Second

// Kind is what a request was.
type Kind string

// The kinds. Streams are requests too: opening one must succeed.
const (
	SmallGet  Kind = "GET 1 KiB"
	LargeGet  Kind = "GET 1 MiB"
	Post      Kind = "POST 8 KiB"
	WebSocket Kind = "WebSocket"
	SSE       Kind = "SSE"
	GRPC      Kind = "gRPC"
)

// Plan is a load. The zero Plan asks for nothing; Standard is load L.
type Plan struct {
	// Rate is requests a second: 70 % SmallGet, 28 % Post, 2 % LargeGet, spread at
	// random over Clients.
	Rate    int
	Clients []*Client
	// Pause is how long apps take before they answer SmallGet and Post.
	Pause time.Duration

	// Streams of each kind, spread over the clients named. WebSockets need h1.
	WebSockets, Events, Chats int
	WebSocketClients          []*Client
	EventClients              []*Client
	ChatClients               []*Client // h2; their apps speak h2c
	// Every is the time between two messages of a stream; default 250 ms.
	Every time.Duration
	// Reopen opens a stream anew when it was cut, as browsers do.
	Reopen bool

	// Patience is how long a request is waited for; default 15 s.
	Patience time.Duration
}

// Standard sets the figures of load L: 300 requests a second, 50 WebSockets, 20
// event streams, 10 gRPC streams.
func (p Plan) Standard() Plan {
	p.Rate, p.WebSockets, p.Events, p.Chats = 300, 50, 20, 10
	return p
}

// Result is one request as its client saw it.
type Result struct {
	ID    string
	Kind  Kind
	Proto string
	Due   time.Duration // since the load began
	Took  time.Duration // from Due to the end of the answer
	Fault string        // empty if the answer was right
	App   string        // who answered

	posted string // hash of the body sent
	length int64
}

// Ending is how one stream went.
type Ending struct {
	ID       string
	Kind     Kind
	Proto    string
	Opened   time.Duration // since the load began
	Ended    time.Duration
	Messages int
	ByUs     bool  // the load ended it
	Altered  bool  // a message was missing, repeated or changed
	Err      error // how it was cut otherwise
}

// Load is running traffic. Its methods may be called concurrently.
type Load struct {
	plan    Plan
	began   time.Time
	ctx     context.Context // ends the streams
	stop    context.CancelFunc
	wg      sync.WaitGroup
	sent    atomic.Int64
	open    atomic.Int64 // streams that have exchanged a message
	talking atomic.Int64 // streams that exchanged a second one

	mu      sync.Mutex // guards what follows
	results []Result
	endings []Ending
	marks   []mark
}

type mark struct {
	at   time.Duration
	what string
}

// Start begins to ask. Stop must be called.
func Start(plan Plan) *Load {
	if plan.Every == 0 {
		plan.Every = 250 * time.Millisecond
	}
	if plan.Patience == 0 {
		plan.Patience = 3 * SlowAfter
	}
	l := &Load{plan: plan, began: time.Now()}
	l.ctx, l.stop = context.WithCancel(context.Background())
	if plan.Rate > 0 {
		l.wg.Go(l.ask)
	}
	l.startStreams()
	return l
}

// Stop asks no more, waits for the requests in flight, ends the streams, and
// returns what the clients saw.
func (l *Load) Stop() *Run {
	l.stop()
	l.wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return &Run{Duration: time.Since(l.began), Results: l.results, Endings: l.endings, marks: l.marks}
}

// Sent counts the requests sent so far, streams not among them.
func (l *Load) Sent() int64 { return l.sent.Load() }

// Open counts the streams that are open now.
func (l *Load) Open() int64 { return l.open.Load() }

// Talking counts the streams that exchanged more than their first message.
func (l *Load) Talking() int64 { return l.talking.Load() }

// Elapsed is the time since the load began, as in Result and Ending.
func (l *Load) Elapsed() time.Duration { return time.Since(l.began) }

// Mark notes what happens now, so that the report can say what failures followed.
func (l *Load) Mark(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.marks = append(l.marks, mark{time.Since(l.began), fmt.Sprintf(format, args...)})
}

// Run is what the clients saw of a load.
type Run struct {
	Duration time.Duration
	Results  []Result
	Endings  []Ending
	marks    []mark
}

// ask sends requests when they are due.
func (l *Load) ask() {
	source := rand.New(rand.NewPCG(1, uint64(l.plan.Rate))) // the same choices each time
	interval := time.Second / time.Duration(l.plan.Rate)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for i := 0; ; i++ {
		due := time.Duration(i) * interval
		timer.Reset(time.Until(l.began.Add(due)))
		select {
		case <-l.ctx.Done():
			return
		case <-timer.C:
		}
		kind := SmallGet
		switch n := source.IntN(100); {
		case n < 2:
			kind = LargeGet
		case n < 30:
			kind = Post
		}
		client := l.plan.Clients[source.IntN(len(l.plan.Clients))]
		l.sent.Add(1)
		l.wg.Go(func() { l.note(l.request(kind, client, due)) })
	}
}

func (l *Load) note(r Result) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.results = append(l.results, r)
}

// request asks once. It is not called off by Stop: what was asked is answered.
func (l *Load) request(kind Kind, c *Client, due time.Duration) Result {
	ctx, cancel := context.WithTimeout(context.Background(), l.plan.Patience)
	defer cancel()
	r := Result{ID: newID(), Kind: kind, Proto: c.proto, Due: due}
	q := Question{ID: r.ID}
	var want []byte
	pause := l.plan.Pause.Milliseconds()
	switch kind {
	case Post:
		q.Method, q.Path, q.Body = http.MethodPost, fmt.Sprintf("/post?ms=%d", pause), Content(r.ID, 8<<10)
		r.length, r.posted = int64(len(q.Body)), Hash(q.Body)
		want = fmt.Appendf(nil, "%d %s\n", r.length, r.posted)
	case LargeGet:
		q.Path, want = "/get?n=1048576", Content(r.ID, 1<<20)
	default:
		q.Path, want = fmt.Sprintf("/get?n=1024&ms=%d", pause), Content(r.ID, 1<<10)
	}
	reply := c.Ask(ctx, q)
	r.Took = time.Since(l.began) - due
	r.App = reply.Header.Get(AppHeader)
	r.Fault = judge(reply, want)
	return r
}

// judge says what is wrong with an answer, empty if nothing is.
func judge(r Reply, want []byte) string {
	app := r.Header.Get(AppHeader)
	switch {
	case r.Status == 0:
		return "no answer: " + cause(r.Err)
	case r.Err != nil:
		return fmt.Sprintf("cut after %d of %d bytes: %s", len(r.Body), len(want), cause(r.Err))
	case app == "":
		return fmt.Sprintf("status %d, not from the app: %.200s", r.Status, brief(r.Body))
	case r.Status != http.StatusOK:
		return fmt.Sprintf("status %d from the app", r.Status)
	case len(r.Body) < len(want):
		return fmt.Sprintf("truncated and looks whole: %d of %d bytes", len(r.Body), len(want))
	case string(r.Body) != string(want):
		return "altered bytes"
	}
	return ""
}

// cause is the innermost of a chain of errors that begins with the URL.
func cause(err error) string {
	for next := errors.Unwrap(err); next != nil; next = errors.Unwrap(err) {
		err = next
	}
	return err.Error()
}

// brief is the code in an error page of an edge or the first line of any other.
func brief(page []byte) string {
	text := string(page)
	if _, after, ok := strings.Cut(text, "<code>"); ok {
		code, _, _ := strings.Cut(after, "</code>")
		return code
	}
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	return line
}

// newID is an id that no other run uses.
func newID() string { return fmt.Sprintf("%016x", rand.Uint64()) }
