// Package e2e holds tests of whole networks: edges, agents and apps on loopback,
// with the clients that people use. It has no code of its own.
package e2e
