//go:build containers

package containers

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// visitor asks for one site over verified HTTPS.
type visitor struct {
	client *http.Client
	url    string
}

// newVisitor verifies with the authority in ca and dials ports of loopback. Without
// http2 it keeps one HTTP/1.1 connection.
//
// Several ports are several addresses behind one name. It tries them in that order
// whenever it needs a connection, as browsers do, until one gives it a TLS session:
// Docker's proxy accepts connections for an edge that is not there, and closes them,
// where a machine without it would refuse. Like every client of HTTP it asks again
// when a connection that it kept ends before the answer began.
func newVisitor(t *testing.T, ca []byte, host string, http2 bool, ports ...string) *visitor {
	t.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		t.Fatalf("no certificate in %q", ca)
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!http2)
	protocols.SetHTTP2(http2)
	dialer := &tls.Dialer{NetDialer: &net.Dialer{Timeout: 5 * time.Second}, Config: &tls.Config{RootCAs: roots, ServerName: host, NextProtos: []string{"http/1.1"}}}
	if http2 {
		dialer.Config.NextProtos = []string{"h2"}
	}
	transport := &http.Transport{
		DialTLSContext: func(ctx context.Context, network, _ string) (conn net.Conn, err error) {
			for _, port := range ports {
				if conn, err = dialer.DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port)); err == nil {
					break
				}
			}
			return conn, err
		},
		Protocols: protocols,
		// What is silent for so long is given up.
		HTTP2:                 &http.HTTP2Config{SendPingTimeout: 3 * time.Second, PingTimeout: 2 * time.Second},
		ResponseHeaderTimeout: 15 * time.Second,
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &visitor{
		client: &http.Client{Transport: transport, Timeout: 20 * time.Second},
		url:    "https://" + net.JoinHostPort(host, ports[0]) + "/",
	}
}

// newVisitors are n for each of HTTP/1.1 and HTTP/2.
func newVisitors(t *testing.T, n int, ca []byte, host string, ports ...string) (all []*visitor) {
	t.Helper()
	for range n {
		all = append(all, newVisitor(t, ca, host, false, ports...), newVisitor(t, ca, host, true, ports...))
	}
	return all
}

// answer is who answered, in its own words and by the edge's header.
type answer struct {
	said    string
	backend string
}

func (v *visitor) ask(ctx context.Context) (answer, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, v.url, nil)
	if err != nil {
		return answer{}, err
	}
	response, err := v.client.Do(request)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return answer{}, err
	}
	said, ok := strings.CutPrefix(strings.TrimSpace(string(body)), "You have reached ")
	if response.StatusCode != http.StatusOK || !ok {
		return answer{}, fmt.Errorf("%s: %.200s", response.Status, body)
	}
	return answer{said: said, backend: response.Header.Get("X-Internal-Service")}, nil
}

// patience is what an answer may take before it is noted as late.
const patience = time.Second

// pause is between the requests of one visitor: this machine also runs what answers.
const pause = 4 * time.Millisecond

// failure is one request that did not get its answer, or (without err) got it late.
type failure struct {
	began time.Time
	took  time.Duration
	err   error
}

// load is visitors who ask one request after the other until finish.
type load struct {
	stop    context.CancelFunc
	done    sync.WaitGroup
	changed chan struct{} // receives after an answer from a backend not seen before

	mu       sync.Mutex // guards the rest
	answers  int
	backends map[string]time.Time // when each answered last
	said     map[string]int
	failures []failure
	late     []failure
	slowest  time.Duration
}

func startLoad(t *testing.T, visitors ...*visitor) *load {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	l := &load{stop: stop, changed: make(chan struct{}, 1), backends: map[string]time.Time{}, said: map[string]int{}}
	for _, v := range visitors {
		l.done.Go(func() {
			for ctx.Err() == nil {
				began := time.Now()
				a, err := v.ask(t.Context()) // a request once sent is never cut short
				l.count(began, a, err)
				<-time.After(pause)
			}
		})
	}
	t.Cleanup(func() { l.finish() })
	return l
}

func (l *load) count(began time.Time, a answer, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	took := time.Since(began)
	l.slowest = max(l.slowest, took)
	if err != nil {
		l.failures = append(l.failures, failure{began, took, err})
		return
	}
	if took > patience {
		l.late = append(l.late, failure{began: began, took: took})
	}
	l.answers++
	l.said[a.said]++
	_, known := l.backends[a.backend]
	l.backends[a.backend] = time.Now()
	if !known {
		select {
		case l.changed <- struct{}{}:
		default:
		}
	}
}

// awaitBackends waits until n different backends have answered since the call.
func (l *load) awaitBackends(t *testing.T, n int, limit time.Duration) {
	t.Helper()
	l.mu.Lock()
	l.backends = map[string]time.Time{}
	l.mu.Unlock()
	expired := time.After(limit)
	for {
		l.mu.Lock()
		have := len(l.backends)
		l.mu.Unlock()
		if have >= n {
			return
		}
		select {
		case <-l.changed:
		case <-expired:
			t.Fatalf("%d backends answered within %v, want %d; failures so far: %s", have, limit, n, l.summary())
		}
	}
}

// finish ends the load and returns when the last answer is in. It is idempotent.
func (l *load) finish() {
	l.stop()
	l.done.Wait()
}

// failed are the requests that got no answer.
func (l *load) failed() []failure {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.failures)
}

// lostNothing errs if a request failed; when says what happened meanwhile.
func (l *load) lostNothing(t *testing.T, when string) {
	t.Helper()
	if n := len(l.failed()); n > 0 {
		t.Errorf("%d requests failed %s: %s", n, when, l.summary())
	}
}

// lostOnly allows for what was under way when something was killed or cut, one request
// a visitor, and for nothing asked more than a second later. It returns the failures.
func (l *load) lostOnly(t *testing.T, since time.Time, visitors int) []failure {
	t.Helper()
	failures := l.failed()
	if len(failures) > visitors {
		t.Errorf("%d requests failed, want at most the %d in flight", len(failures), visitors)
	}
	for _, f := range failures {
		if f.began.Sub(since) > time.Second {
			t.Errorf("asked %v after the end and failed after %v: %v", f.began.Sub(since), f.took, f.err)
		}
	}
	return failures
}

// delayed are the requests that got theirs after more than patience.
func (l *load) delayed() []failure {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.late)
}

func (l *load) summary() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := fmt.Sprintf("%d answered (%d late), %d failed, slowest %v", l.answers, len(l.late), len(l.failures), l.slowest.Round(time.Millisecond))
	for i, f := range l.failures {
		if i == 3 {
			break
		}
		text += fmt.Sprintf("\n  after %v: %v", f.took.Round(time.Millisecond), f.err)
	}
	return text
}
