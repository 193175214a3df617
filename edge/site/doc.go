// Package site knows which site a host name is, what rules hold for it and which
// pool its backends are in.
//
// A site comes to be known in one of three ways: an operator applies a Spec, an
// agent registers a backend for the host, or the edge remembers the host from
// before a restart. Once known, a site stays known until an operator deletes it,
// so that "known, but nobody serves it now" can be told from "never heard of it".
//
// Looking up is lock-free and allocates nothing: every request does it, and so
// does every TLS handshake. Changing one site costs the same with ten sites and
// with a hundred thousand.
package site
