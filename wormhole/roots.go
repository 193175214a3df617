package main

// Images such as debian:slim and scratch have no certificate authorities, and the
// agent is copied into them alone. These are Mozilla's, used by crypto/x509 only
// where the system has none.
import _ "golang.org/x/crypto/x509roots/fallback"
