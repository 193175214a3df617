// Package proxy carries one request to a backend of its site and turns any failure
// into one honest answer.
//
// The way of a request, top down: ServeHTTP finds the site (proxy.go), carry picks
// a backend, parks if there is none, and tries again where that is safe (carry.go,
// retry.go), deliver copies the answer (deliver.go), and whatever goes wrong ends
// in refuse (fault.go). What the app is told about the client is the header law
// (headers.go).
//
// # Guarantees
//
// A request is delivered to an app at most once unless its method is idempotent. A
// body that the app did not end properly reaches the client as an error, never as
// a clean end. Every request ends in an answer or a reset, and nothing waits
// without a limit.
package proxy
