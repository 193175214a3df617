// Package middleware is what surrounds a request before and after the proxy: its
// id, recovery from panics, a site's limits on who may ask how often and with what,
// the way from plain HTTP to https, and the access log.
//
// What a client is refused here is written by a Refuse function that the caller
// gives, so that all of the edge's own answers look alike and are counted in one
// place. Whatever concerns carrying a request (which site it is for, its body, what
// the app learns about the client) is the proxy's.
package middleware

import (
	"net/http"
	"time"

	"wormhole/edge/site"
)

// Lookup finds the site of a canonical host; *site.Registry does.
type Lookup interface {
	Lookup(host string) (*site.Site, bool)
}

// Refusal is an answer in the edge's own name.
type Refusal struct {
	Status int
	// Code is stable, for programs.
	Code string
	// Text is one sentence for the client.
	Text string
	// RetryAfter says when to try again; 0 says nothing.
	RetryAfter time.Duration
}

// Refuse writes a refusal. The request has had no answer yet.
type Refuse func(w http.ResponseWriter, r *http.Request, refusal Refusal)
