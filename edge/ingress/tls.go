package ingress

import (
	"crypto/tls"
	"errors"
	"slices"

	"wormhole/certs"
	"wormhole/shared/protocol"
)

// tlsConfigs returns what visitors and agents negotiate over TCP. A client that
// offers the agents' protocol is an agent.
func (in *Ingress) tlsConfigs() (visitor, agent *tls.Config) {
	base := &tls.Config{
		MinVersion: tls.VersionTLS12,
		// For TLS 1.2 only: forward secrecy and authenticated encryption. The suites of
		// TLS 1.3 are all of that kind and cannot be chosen.
		CipherSuites: []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
			tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
		Renegotiation:  tls.RenegotiateNever,
		GetCertificate: in.certificate,
	}
	agent = base.Clone()
	agent.MinVersion = tls.VersionTLS13
	agent.NextProtos = []string{protocol.ALPN}

	visitor = base.Clone()
	visitor.NextProtos = []string{"h2", "http/1.1"}
	visitor.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if c, ok := hello.Conn.(*conn); ok {
			c.helloRead()
		}
		for _, other := range in.to.Others {
			if slices.Contains(hello.SupportedProtos, other.ALPN) {
				return other.TLS, nil
			}
		}
		if in.to.Agent != nil && slices.Contains(hello.SupportedProtos, protocol.ALPN) {
			return agent, nil
		}
		return nil, nil
	}
	return visitor, agent
}

// quicTLSConfig returns what visitors and agents negotiate over QUIC.
func (in *Ingress) quicTLSConfig() *tls.Config {
	config := &tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: in.certificate,
		NextProtos:     []string{"h3"},
	}
	if in.to.AgentQUIC != nil {
		config.NextProtos = []string{protocol.ALPN, "h3"}
	}
	return config
}

// certificate asks the source. A name without a certificate gets the alert
// unrecognized_name (RFC 6066, section 3), which crypto/tls sends when there is
// neither a certificate nor an error.
func (in *Ingress) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	cert, err := in.certs.GetCertificate(hello)
	if errors.Is(err, certs.ErrUnknownName) {
		return nil, nil
	}
	return cert, err
}
