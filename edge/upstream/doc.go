// Package upstream speaks HTTP to one app through one tunnel.
//
// A Pool keeps streams of the tunnel open between requests, as a reverse proxy
// keeps connections to its servers: a kept stream costs a third to a half of a
// new one. Each stream is joined by the agent to one connection of the app, so the
// rules of reuse are those of HTTP/1.1 connections, read strictly: a stream is
// used again only after an exchange that left no doubt about where it ended.
//
// Pool.Do carries one exchange. For a request without a body, or with a body that
// is already in memory, everything happens on the caller's goroutine. What goes
// wrong comes back as an *Error whose Stage says whether the app can have seen the
// request; the decision to send it elsewhere belongs to the caller.
//
// The parser accepts less than RFC 9112 allows where leniency has led to one
// user's answer reaching another: see head.go and chunked.go.
package upstream
