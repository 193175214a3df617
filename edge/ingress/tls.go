package ingress

import (
	"bytes"
	"crypto/tls"
	"errors"
	"slices"

	"golang.org/x/crypto/acme"

	"wormhole/certs"
	"wormhole/shared/hostname"
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

	bindTickets(agent)

	visitor = base.Clone()
	bindTickets(visitor)
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
		if wantsChallenge(hello) {
			return in.challengeTLS(hello), nil
		}
		if in.to.Agent != nil && slices.Contains(hello.SupportedProtos, protocol.ALPN) {
			return agent, nil
		}
		return nil, nil
	}
	return visitor, agent
}

// Challenges is implemented by a source of certificates that answers the ACME
// challenge tls-alpn-01 (RFC 8737), from memory for names it does not know.
type Challenges interface {
	ChallengeCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error)
}

// wantsChallenge reports whether a client is a CA that looks for the answer to a
// challenge: it offers that protocol and no other (RFC 8737, section 3).
func wantsChallenge(hello *tls.ClientHelloInfo) bool {
	return len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == acme.ALPNProto
}

// challengeTLS is for one handshake with a CA. The protocol is offered only where
// there is an answer; other clients of it are turned away like any unknown name.
func (in *Ingress) challengeTLS(hello *tls.ClientHelloInfo) *tls.Config {
	config := &tls.Config{
		MinVersion:             tls.VersionTLS12,
		SessionTicketsDisabled: true,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil },
	}
	if source, ok := in.certs.(Challenges); ok {
		if cert, err := source.ChallengeCertificate(hello); err == nil {
			config.NextProtos = []string{acme.ALPNProto}
			config.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert, nil }
		}
	}
	return config
}

// bindTickets makes the session tickets of config good for the server name they
// were issued under, and no other: what a site asks of the handshake cannot be
// evaded by resuming another site's session (fault E5).
func bindTickets(config *tls.Config) {
	config.WrapSession = func(state tls.ConnectionState, session *tls.SessionState) ([]byte, error) {
		session.Extra = append(session.Extra, ticketName(state.ServerName))
		return config.EncryptTicket(state, session)
	}
	config.UnwrapSession = func(ticket []byte, state tls.ConnectionState) (*tls.SessionState, error) {
		session, err := config.DecryptTicket(ticket, state)
		if err != nil || session == nil {
			return nil, err
		}
		want := ticketName(state.ServerName)
		for _, extra := range session.Extra {
			if bytes.Equal(extra, want) {
				return session, nil
			}
		}
		return nil, nil // a full handshake
	}
}

// ticketName is what a ticket remembers of the name; the canonical one, as that
// chose the site.
func ticketName(serverName string) []byte {
	if host, err := hostname.Canonical(serverName); err == nil {
		serverName = host
	}
	return []byte("server name: " + serverName)
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
	bindTickets(config)
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
