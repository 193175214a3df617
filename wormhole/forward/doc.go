// Package forward joins the streams of a tunnel to the app: it dials the one
// address it was configured with, answers the edge, copies bytes both ways and
// says how the app's side ended. It also knows whether the app takes requests.
//
// It never parses what it carries, and never dials anything that a peer names.
package forward
