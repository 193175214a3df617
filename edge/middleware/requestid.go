package middleware

import (
	"math/rand/v2"
	"net/http"
)

const requestIDHeader = "X-Request-Id"

// RequestID gives each request an id of 128 random bits, in place of whatever the
// client sent under that name. RequestIDOf returns it.
func RequestID(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Header[requestIDHeader] = []string{newID()}
		next.ServeHTTP(w, r)
	})
}

// RequestIDOf returns the id that RequestID gave, empty if it was not asked.
func RequestIDOf(r *http.Request) string {
	if v := r.Header[requestIDHeader]; len(v) == 1 {
		return v[0]
	}
	return ""
}

// newID returns an id. Ids need to be unique, not secret.
func newID() string {
	const digits = "0123456789abcdef"
	var b [32]byte
	for half := range 2 {
		bits := rand.Uint64()
		for i := range 16 {
			b[half*16+i] = digits[bits&15]
			bits >>= 4
		}
	}
	return string(b[:])
}
