package middleware

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"wormhole/edge/proxy"
)

// LogTo returns a function that writes one line a request through logger, for
// access logs that go where all other lines go.
func LogTo(logger *slog.Logger) func(*proxy.Record) {
	return func(rec *proxy.Record) {
		attrs := make([]slog.Attr, 0, 20)
		attrs = append(attrs,
			slog.String("site", rec.Site), slog.String("host", rec.Host), slog.String("method", rec.Method),
			slog.String("path", cut(rec.Path, maxPath)), slog.String("proto", rec.Proto), slog.Int("status", rec.Status),
			slog.Int64("bytes_in", rec.BytesIn), slog.Int64("bytes_out", rec.BytesOut), slog.Duration("duration", rec.Duration),
			slog.String("remote", rec.Remote), slog.String("request_id", rec.RequestID))
		if rec.Backend != "" {
			attrs = append(attrs, slog.String("backend", rec.Backend), slog.String("tunnel", rec.Tunnel), slog.Int("attempts", rec.Attempts))
		}
		if rec.Parked > 0 {
			attrs = append(attrs, slog.Duration("parked", rec.Parked))
		}
		if rec.Code != "" {
			attrs = append(attrs, slog.String("code", rec.Code))
		}
		if rec.UserAgent != "" {
			attrs = append(attrs, slog.String("user_agent", cut(rec.UserAgent, maxUserAgent)))
		}
		if rec.Err != nil {
			attrs = append(attrs, slog.Any("err", rec.Err))
		}
		logger.LogAttrs(context.Background(), slog.LevelInfo, "request", attrs...)
	}
}

// Clients choose these, so they are cut, in bytes.
const (
	maxPath      = 1024
	maxUserAgent = 256
)

// AccessLog writes one line of JSON a request to a writer of its own. Requests never
// wait for the writer: lines gather in memory, and when that is full because the
// writer is slow, lines are dropped and counted.
type AccessLog struct {
	w      io.Writer
	logger *slog.Logger
	most   int
	every  time.Duration

	dropped atomic.Int64
	full    chan struct{} // told when half of the room is taken
	scratch sync.Pool     // of *[]byte

	mu      sync.Mutex // guards pending
	pending []byte
}

// AccessLogConfig says how lines gather.
type AccessLogConfig struct {
	// Buffer is how many bytes wait for the writer at most (default 1 MiB).
	Buffer int
	// Every is the longest time a line waits (default 1s).
	Every time.Duration
}

// NewAccessLog returns an access log that writes to w while Run runs. Failures to
// write are logged to logger.
func NewAccessLog(cfg AccessLogConfig, w io.Writer, logger *slog.Logger) (*AccessLog, error) {
	if w == nil || cfg.Buffer < 0 || cfg.Every < 0 {
		return nil, errors.New("access log: a writer is required, and limits that are not negative")
	}
	if cfg.Buffer == 0 {
		cfg.Buffer = 1 << 20
	}
	if cfg.Every == 0 {
		cfg.Every = time.Second
	}
	l := &AccessLog{w: w, logger: logger, most: cfg.Buffer, every: cfg.Every, full: make(chan struct{}, 1)}
	l.scratch.New = func() any { b := make([]byte, 0, 1024); return &b }
	return l, nil
}

// Dropped counts the lines that were lost.
func (l *AccessLog) Dropped() int64 { return l.dropped.Load() }

// Log takes one line. It keeps nothing of rec.
func (l *AccessLog) Log(rec *proxy.Record) {
	p := l.scratch.Get().(*[]byte)
	line := appendLine((*p)[:0], rec)
	l.mu.Lock()
	room := len(l.pending)+len(line) <= l.most
	if room {
		l.pending = append(l.pending, line...)
	}
	half := len(l.pending) > l.most/2
	l.mu.Unlock()
	*p = line
	l.scratch.Put(p)
	if !room {
		l.dropped.Add(1)
	}
	if half {
		select {
		case l.full <- struct{}{}:
		default:
		}
	}
}

// Run writes what gathers until ctx ends, and then what is left.
func (l *AccessLog) Run(ctx context.Context) error {
	tick := time.NewTicker(l.every)
	defer tick.Stop()
	var (
		spare   []byte
		failing bool
		told    int64
	)
	flush := func() {
		l.mu.Lock()
		lines := l.pending
		l.pending = spare[:0]
		l.mu.Unlock()
		spare = lines
		if len(lines) == 0 {
			return
		}
		_, err := l.w.Write(lines)
		if err != nil && !failing {
			l.logger.Error("access log cannot be written", "err", err)
		}
		failing = err != nil
		if dropped := l.dropped.Load(); dropped != told {
			l.logger.Warn("access log lines dropped", "count", dropped-told)
			told = dropped
		}
	}
	for {
		select {
		case <-tick.C:
		case <-l.full:
		case <-ctx.Done():
			flush()
			return nil
		}
		flush()
	}
}

func appendLine(b []byte, rec *proxy.Record) []byte {
	b = append(b, `{"time":"`...)
	b = appendTime(b, rec.Start)
	b = append(b, `","msg":"request"`...)
	b = appendText(b, "site", rec.Site)
	b = appendText(b, "host", rec.Host)
	b = appendText(b, "method", rec.Method)
	b = appendText(b, "path", cut(rec.Path, maxPath))
	b = appendText(b, "proto", rec.Proto)
	b = appendInt(b, "status", int64(rec.Status))
	b = appendInt(b, "bytes_in", rec.BytesIn)
	b = appendInt(b, "bytes_out", rec.BytesOut)
	b = appendSeconds(b, "duration", rec.Duration)
	b = appendText(b, "remote", rec.Remote)
	b = appendText(b, "request_id", rec.RequestID)
	if rec.Backend != "" {
		b = appendText(b, "backend", rec.Backend)
		b = appendText(b, "tunnel", rec.Tunnel)
		b = appendInt(b, "attempts", int64(rec.Attempts))
	}
	if rec.Parked > 0 {
		b = appendSeconds(b, "parked", rec.Parked)
	}
	if rec.Code != "" {
		b = appendText(b, "code", rec.Code)
	}
	if rec.UserAgent != "" {
		b = appendText(b, "user_agent", cut(rec.UserAgent, maxUserAgent))
	}
	if rec.Err != nil {
		b = appendText(b, "err", rec.Err.Error())
	}
	return append(b, "}\n"...)
}

func appendKey(b []byte, key string) []byte {
	b = append(b, ',', '"')
	b = append(b, key...)
	return append(b, '"', ':')
}

func appendInt(b []byte, key string, v int64) []byte {
	return strconv.AppendInt(appendKey(b, key), v, 10)
}

// appendSeconds writes a duration as seconds with microseconds.
func appendSeconds(b []byte, key string, d time.Duration) []byte {
	d = max(d, 0)
	b = strconv.AppendInt(appendKey(b, key), int64(d/time.Second), 10)
	return appendMicroseconds(b, d%time.Second)
}

// appendTime writes a moment in UTC with microseconds.
func appendTime(b []byte, t time.Time) []byte {
	b = t.UTC().AppendFormat(b, time.RFC3339) // the layout that package time is quick with
	b = appendMicroseconds(b[:len(b)-len("Z")], time.Duration(t.Nanosecond()))
	return append(b, 'Z')
}

// appendMicroseconds writes a part of a second.
func appendMicroseconds(b []byte, part time.Duration) []byte {
	b = append(b, ".000000"...)
	for i, n := len(b)-1, part.Microseconds(); n > 0; i, n = i-1, n/10 {
		b[i] += byte(n % 10)
	}
	return b
}

func appendText(b []byte, key, text string) []byte {
	b = appendKey(b, key)
	for i := range len(text) {
		if c := text[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			quoted, _ := json.Marshal(text) // of a string it cannot fail
			return append(b, quoted...)
		}
	}
	b = append(b, '"')
	b = append(b, text...)
	return append(b, '"')
}

func cut(s string, most int) string {
	if len(s) > most {
		return s[:most]
	}
	return s
}
