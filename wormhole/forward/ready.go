package forward

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// While the app is not ready it is asked this often, so that its first request
// comes soon after it listens, and less often when it has been down for long.
const (
	eagerInterval   = 100 * time.Millisecond
	patientInterval = 500 * time.Millisecond
	eagerPeriod     = time.Minute
	// doubtInterval is the time between checks after one has failed.
	doubtInterval = time.Second
)

// Ready checks once whether the app takes requests: nil if so, else why not.
func (f *Forwarder) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, f.cfg.HealthTimeout)
	defer cancel()
	e := f.Endpoint()
	if e.IsZero() {
		return errNoEndpoint
	}
	conn, err := f.dial(ctx, f.cfg.ReadyPath == "")
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if f.cfg.ReadyPath == "" {
		return nil
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	status, err := get(conn, e.hostHeader(), f.cfg.ReadyPath)
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("no answer to GET %s within %s", f.cfg.ReadyPath, f.cfg.HealthTimeout)
	case err != nil:
		return fmt.Errorf("GET %s: %w", f.cfg.ReadyPath, err)
	case status < 200 || status > 299:
		return fmt.Errorf("GET %s: status %d", f.cfg.ReadyPath, status)
	}
	return nil
}

// get makes one HTTP/1.1 request and returns the status of its final answer. The
// agent carries no HTTP library; this is all of HTTP that it speaks.
func get(conn io.ReadWriter, host, path string) (int, error) {
	_, err := io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: "+host+
		"\r\nUser-Agent: wormhole\r\nAccept: */*\r\nConnection: close\r\n\r\n")
	if err != nil {
		return 0, err
	}
	r := bufio.NewReaderSize(io.LimitReader(conn, 64<<10), 1<<10)
	for {
		line, err := readLine(r)
		if err != nil {
			return 0, err
		}
		status, err := parseStatusLine(line)
		if err != nil || status >= 200 {
			return status, err
		}
		for line != "" { // the fields of an interim answer
			if line, err = readLine(r); err != nil {
				return 0, err
			}
		}
	}
}

func readLine(r *bufio.Reader) (string, error) {
	line, err := r.ReadSlice('\n')
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return "", err
	}
	return strings.TrimRight(string(line), "\r\n"), nil
}

// parseStatusLine reads "HTTP/1.1 204 No Content" (RFC 9112, section 4).
func parseStatusLine(line string) (int, error) {
	version, rest, _ := strings.Cut(line, " ")
	if !strings.HasPrefix(version, "HTTP/1.") || len(rest) < 3 || len(rest) > 3 && rest[3] != ' ' {
		return 0, errors.New("the answer is not HTTP/1")
	}
	status := 0
	for _, c := range []byte(rest[:3]) {
		if c < '0' || c > '9' {
			return 0, errors.New("the answer is not HTTP/1")
		}
		status = status*10 + int(c-'0')
	}
	if status < 100 {
		return 0, errors.New("the answer has no valid status")
	}
	return status, nil
}

// Watch checks the app until ctx ends. It calls changed with nil when the app
// becomes ready and with the reason when it ceases to be; an app is not ready at
// first. Calls are made from this goroutine.
func (f *Forwarder) Watch(ctx context.Context, changed func(err error)) {
	ready, failures := false, 0
	downSince := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-f.doubt:
			if !ready {
				continue // checked often enough
			}
		}
		err := f.Ready(ctx)
		if ctx.Err() != nil {
			return
		}
		switch {
		case err == nil:
			failures = 0
			if !ready {
				ready = true
				changed(nil)
			}
		case ready:
			if failures++; failures >= f.cfg.HealthThreshold || nobodyListens(err) {
				ready, downSince = false, time.Now()
				changed(err)
			}
		}
		timer.Reset(f.nextCheck(ready, failures, time.Since(downSince)))
	}
}

func (f *Forwarder) nextCheck(ready bool, failures int, down time.Duration) time.Duration {
	switch {
	case ready && failures == 0:
		return f.cfg.HealthInterval
	case ready:
		return min(doubtInterval, f.cfg.HealthInterval)
	case down < eagerPeriod:
		return eagerInterval
	}
	return patientInterval
}

// raiseDoubt makes Watch check at once, because a stream could not reach the app.
func (f *Forwarder) raiseDoubt() {
	select {
	case f.doubt <- struct{}{}:
	default:
	}
}
