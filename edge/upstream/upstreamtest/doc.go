// Package upstreamtest plays tunnel and app for tests: an upstream.Opener whose
// streams are TCP connections on loopback to an app in the same process.
package upstreamtest
