// Package token mints and verifies the tokens with which agents prove what they
// may serve.
//
// A token is a JSON Web Token (RFC 7519) signed with Ed25519 (RFC 8037). An edge
// verifies it offline, from the public keys of its network alone. There is one
// way to write a token and everything else is refused, in the spirit of RFC 8725:
//
//   - the header holds alg (always EdDSA), kid, and optionally typ; a token that
//     carries crit, jku, jwk, x5u or anything else there is refused, and nothing
//     in a token ever makes a verifier fetch or choose anything but one of its
//     own keys by exact name;
//   - iss, aud, jti, iat, nbf, exp and hosts are required;
//   - no object in it has a name twice, nor a known name in other letter case;
//   - host names are in the canonical form of package hostname.
//
// Verify does no I/O, and its time and memory are bounded by MaxSize.
package token
