package node

import (
	"net/http"

	"wormhole/edge/ingress"
	"wormhole/edge/proxy"
)

// visitors builds what a visitor's request goes through, outermost first.
func (n *Node) visitors() (http.Handler, error) {
	p, err := proxy.New(proxy.Config{}, n.sites, n.metrics, n.logger)
	if err != nil {
		return nil, err
	}
	n.proxy = p
	return p, nil
}

// plain is what answers on the door without TLS.
func (n *Node) plain(http.Handler) http.Handler { return http.NotFoundHandler() }

func (n *Node) ingressConfig() ingress.Config {
	return ingress.Config{
		HTTPS:       n.cfg.HTTPS,
		HTTP:        n.cfg.HTTP,
		DisableQUIC: !n.cfg.QUIC,
		MaxConns:    n.cfg.MaxConnections,
	}
}
