package node

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"wormhole/edge/ingress"
	"wormhole/edge/middleware"
	"wormhole/edge/proxy"
)

// Clients that the rate limits of all sites remember at once.
const limitedClients = 100_000

// visitors builds what a visitor's request goes through, outermost first.
func (n *Node) visitors() (http.Handler, error) {
	log, err := n.openAccessLog()
	if err != nil {
		return nil, err
	}
	if n.proxy, err = proxy.New(proxy.Config{RequestID: middleware.RequestIDOf, Taken: ingress.Taken, AccessLog: log, Usage: n.usage}, n.network, n.metrics, n.logger); err != nil {
		return nil, err
	}
	rules := middleware.Rules(n.network, middleware.NewLimiter(limitedClients), n.refuse)
	return n.surround(n.shed(rules(n.proxy))), nil
}

// Of the memory that an edge may use, as much as one session with an agent or another
// edge may hold for bytes that nobody reads, where that is less than without a limit.
const sessionPart = 0.25

// shed refuses requests while memory is nearly used up: those in flight need what is
// left.
func (n *Node) shed(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		work, ok := n.memory.Begin()
		if !ok {
			n.refuse(w, r, middleware.Refusal{
				Status: http.StatusServiceUnavailable, Code: "overloaded", Text: "This edge is overloaded.", RetryAfter: time.Second,
			})
			return
		}
		defer n.memory.End(work)
		h.ServeHTTP(w, r)
	})
}

func (n *Node) tellMemory(full bool, used int64) {
	if full {
		n.logger.Warn("memory is nearly used up, refusing requests and agents", "used", used, "limit", n.memory.Limit())
	} else {
		n.logger.Info("memory is free again", "used", used, "limit", n.memory.Limit())
	}
}

// plain is what answers on the door without TLS: a redirect for sites that say so.
func (n *Node) plain(visitors http.Handler) http.Handler {
	return n.surround(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// The real port is known only after Listen.
		middleware.Redirect(n.network, n.httpsPort(), n.refuse)(visitors).ServeHTTP(w, r)
	}))
}

func (n *Node) surround(h http.Handler) http.Handler {
	return middleware.Recover(n.logger)(middleware.RequestID(h))
}

func (n *Node) refuse(w http.ResponseWriter, r *http.Request, why middleware.Refusal) {
	n.proxy.Refuse(w, r, why.Status, why.Code, why.Text, why.RetryAfter)
}

// openAccessLog returns where the line of each request goes, nil for nowhere.
func (n *Node) openAccessLog() (func(*proxy.Record), error) {
	switch n.cfg.AccessLog {
	case "off":
		return nil, nil
	case "-":
		return middleware.LogTo(n.logger), nil
	}
	file, err := os.OpenFile(n.cfg.AccessLog, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return nil, fmt.Errorf("access_log: %w", err)
	}
	n.logFile = file
	n.log, err = middleware.NewAccessLog(middleware.AccessLogConfig{}, file, n.logger)
	if err != nil {
		return nil, err
	}
	return n.log.Log, nil
}

func (n *Node) httpsPort() int {
	_, text, err := net.SplitHostPort(n.ingress.Addrs().HTTPS.String())
	if err != nil {
		return 443
	}
	port, _ := strconv.Atoi(text)
	return port
}

func (n *Node) ingressConfig() ingress.Config {
	cfg := ingress.Config{
		HTTPS:       n.cfg.HTTPS,
		HTTP:        n.cfg.HTTP,
		DisableQUIC: !n.cfg.QUIC,
		MaxConns:    n.cfg.MaxConnections,
	}
	if s := n.inherited; s != nil {
		cfg.HTTPSListener, cfg.HTTPListener, cfg.QUICConn = s.HTTPS, s.HTTP, s.QUIC
		cfg.QUICAfter = s.Gone()
	}
	return cfg
}
