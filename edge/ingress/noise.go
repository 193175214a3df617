package ingress

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"

	"golang.org/x/time/rate"
)

// noise writes the log lines that any stranger can cause: a few at once, then one a
// second, with the number of those left out.
type noise struct {
	log     *slog.Logger
	limit   *rate.Limiter
	skipped atomic.Int64
}

func newNoise(log *slog.Logger) *noise {
	return &noise{log: log, limit: rate.NewLimiter(1, 5)}
}

// say writes one line, unless there were too many lately.
func (n *noise) say(message string, remote net.Addr, err error) {
	if !n.log.Enabled(context.Background(), slog.LevelInfo) {
		return
	}
	if !n.limit.Allow() {
		n.skipped.Add(1)
		return
	}
	attrs := []slog.Attr{slog.Any("err", err)}
	if remote != nil {
		attrs = append(attrs, slog.String("remote", remote.String()))
	}
	if skipped := n.skipped.Swap(0); skipped > 0 {
		attrs = append(attrs, slog.Int64("skipped", skipped))
	}
	n.log.LogAttrs(context.Background(), slog.LevelInfo, message, attrs...) //nolint:sloglint // callers write it as a literal
}

// Write takes the complaints of net/http's servers.
func (n *noise) Write(p []byte) (int, error) {
	n.say("http server complained", nil, complaint(strings.TrimSpace(string(p))))
	return len(p), nil
}

type complaint string

func (c complaint) Error() string { return string(c) }
