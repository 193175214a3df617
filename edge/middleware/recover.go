package middleware

import (
	"errors"
	"log/slog"
	"net/http"
	"runtime/debug"
)

// Recover keeps a panic in one request from being more than that: it is logged with
// its stack, and the client's stream or connection is aborted, since nobody knows
// how much of an answer it has. http.ErrAbortHandler is that already and passes.
func Recover(logger *slog.Logger) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() {
				p := recover()
				if p == nil {
					return
				}
				if err, ok := p.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
					logger.Error("panic in a request", "host", r.Host, "request_id", RequestIDOf(r), "remote", r.RemoteAddr,
						"err", p, "stack", string(debug.Stack()))
				}
				panic(http.ErrAbortHandler)
			}()
			next.ServeHTTP(w, r)
		})
	}
}
