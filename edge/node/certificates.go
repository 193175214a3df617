package node

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"wormhole/certs"
	"wormhole/edge/admin"
	"wormhole/edge/cluster/certcache"
	"wormhole/edge/cluster/store"
	"wormhole/edge/config"
	"wormhole/shared/hostname"
)

// certificates is where handshakes get theirs: files, ACME, the internal authority,
// in this order, as far as the configuration has them.
type certificates struct {
	files    *certs.Files
	acme     *certs.ACME
	internal *certs.Internal
	mirror   *store.Dir // copy of the ACME certificates when the store is shared
	chain    certs.Chain
}

// GetCertificate implements ingress.Certificates.
func (c *certificates) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	return c.chain.GetCertificate(hello)
}

// ChallengeCertificate implements ingress.Challenges.
func (c *certificates) ChallengeCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c.acme == nil {
		return nil, certs.ErrUnknownName
	}
	return c.acme.ChallengeCertificate(hello)
}

func (n *Node) openCertificates() error {
	c := &n.certs
	if len(n.cfg.Certs) > 0 {
		var pairs []certs.Pair
		for i := range n.cfg.Certs {
			pairs = append(pairs, certs.Pair{Cert: n.cfg.Certs[i], Key: n.cfg.Keys[i]})
		}
		files, err := certs.NewFiles(certs.FilesConfig{Pairs: pairs}, n.logger)
		if err != nil {
			return err
		}
		c.files = files
		c.chain = append(c.chain, files)
	}
	if n.cfg.TLS == config.TLSACME {
		if err := n.openACME(); err != nil {
			return err
		}
		c.chain = append(c.chain, c.acme)
	}
	if n.cfg.TLS == config.TLSFiles {
		return nil
	}
	allow := n.mayHaveCertificate
	if n.cfg.TLS == config.TLSACME {
		// No CA but our own knows names that only this machine resolves.
		allow = func(host string) (string, bool) {
			if !isLocal(host) {
				return "", false
			}
			return n.mayHaveCertificate(host)
		}
	}
	internal, err := certs.NewInternal(certs.InternalConfig{
		Dir: filepath.Join(n.cfg.DataDir, "ca"), Default: n.cfg.Hostname, Allow: allow,
	}, n.logger)
	if err != nil {
		return err
	}
	c.internal = internal
	c.chain = append(c.chain, internal)
	return nil
}

func (n *Node) openACME() error {
	roots, err := n.cfg.ACMERoots()
	if err != nil {
		return fmt.Errorf("acme_ca_file: %w", err)
	}
	directory := n.cfg.ACMEDirectory
	switch {
	case n.cfg.ACMEStaging:
		directory = certs.LetsEncryptStaging
	case directory == "":
		directory = certs.LetsEncrypt
	}
	var mirror store.Store
	if n.cfg.StoreDir != "" {
		if n.certs.mirror, err = store.OpenDir(filepath.Join(n.cfg.DataDir, "certificates")); err != nil {
			return fmt.Errorf("data_dir: %w", err)
		}
		mirror = n.certs.mirror
	}
	var boot [4]byte
	_, _ = rand.Read(boot[:]) // never fails
	n.certs.acme, err = certs.NewACME(certs.ACMEConfig{
		Directory: directory,
		Email:     n.cfg.ACMEEmail,
		Roots:     roots,
		Allow:     n.mayOrder,
		Default:   n.cfg.Hostname,
		Holder:    n.id + "-" + hex.EncodeToString(boot[:]),
		HTTP01:    n.cfg.HTTP != "",
	}, certcache.New(n.store, mirror, directory, n.logger), n.logger)
	if err != nil {
		return err
	}
	n.sites.OnNewHost(n.certs.acme.Want)
	n.certs.acme.Want(n.cfg.Hostname)
	for _, zone := range n.cfg.DNSZones {
		n.certs.acme.Want(zone)
	}
	for _, s := range n.sites.List() {
		n.certs.acme.Want(s.Host())
	}
	return nil
}

// runCertificates starts what the sources do in the background.
func (n *Node) runCertificates(run func(name string, f func(context.Context) error)) {
	if n.certs.files != nil {
		run("certificate files", n.certs.files.Run)
	}
	if n.certs.acme != nil {
		run("acme", n.certs.acme.Run)
	}
}

// answerChallenges lets the CA see on the plain door what it asks for.
func (n *Node) answerChallenges(next http.Handler) http.Handler {
	if n.certs.acme == nil {
		return next
	}
	return n.certs.acme.HTTPHandler(next)
}

// mayHaveCertificate is the policy: this edge's own name, those it shares with
// others, sites that are known, and names that only this machine resolves.
func (n *Node) mayHaveCertificate(host string) (pattern string, ok bool) {
	if host == n.cfg.Hostname || host == "localhost" || slices.Contains(n.cfg.DNSZones, host) {
		return host, true
	}
	if pattern, ok := n.network.Pattern(host); ok {
		return pattern, true
	}
	if parent, found := strings.CutSuffix(host, ".localhost"); found && !strings.Contains(parent, ".") {
		return host, true
	}
	return "", false
}

// mayOrder is the policy for ACME: a name that the operator's files cover is not
// ordered.
func (n *Node) mayOrder(host string) (pattern string, ok bool) {
	if n.certs.files != nil {
		covers := func(name string) bool { return hostname.Covers(name, host) }
		if slices.ContainsFunc(n.certs.files.Names(), covers) {
			return "", false
		}
	}
	return n.mayHaveCertificate(host)
}

func isLocal(host string) bool {
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// Certificates lists the certificates of files and ACME.
func (n *Node) Certificates() []admin.Certificate {
	out := []admin.Certificate{}
	var hosts []certs.HostStatus
	if n.certs.files != nil {
		hosts = n.certs.files.Hosts()
	}
	if n.certs.acme != nil {
		hosts = append(hosts, n.certs.acme.Hosts()...)
	}
	optional := func(t time.Time) *time.Time {
		if t.IsZero() {
			return nil
		}
		t = t.UTC().Truncate(time.Second)
		return &t
	}
	for _, h := range hosts {
		out = append(out, admin.Certificate{
			Host: h.Host, Issuer: h.Issuer, Serial: h.Serial, NotBefore: optional(h.NotBefore), NotAfter: optional(h.NotAfter),
			State: string(h.State), LastError: h.Error, NextTry: optional(h.Next),
		})
	}
	return out
}

// RetryCertificate has a certificate ordered anew that failed.
func (n *Node) RetryCertificate(ctx context.Context, host string) error {
	if n.certs.acme == nil {
		return &admin.Error{Status: http.StatusConflict, Code: "no_acme", Message: "this edge orders no certificates: it runs with --tls " + string(n.cfg.TLS)}
	}
	return n.certs.acme.Retry(ctx, host)
}

var (
	descCertExpiry = prometheus.NewDesc("wormhole_edge_certificate_expiry_timestamp_seconds", "When the first certificate of the CA or of a file expires; 0 without any.", nil, nil)
	descCerts      = prometheus.NewDesc("wormhole_edge_certificates", "Hosts with a certificate from the CA or an order for one, by state.", []string{"state"}, nil)
	descOrders     = prometheus.NewDesc("wormhole_edge_certificate_orders_total", "Orders of this edge: taken by the CA, issued, failed, or put off because of a limit or the clock.", []string{"result"}, nil)
	descBudget     = prometheus.NewDesc("wormhole_edge_certificate_budget_used", "Orders that count for a limit of the CA, by all edges; for domain and name that of the last order.", []string{"limit"}, nil)
	descBudgetMost = prometheus.NewDesc("wormhole_edge_certificate_budget_limit", "The limits of the CA.", []string{"limit"}, nil)
	descCapped     = prometheus.NewDesc("wormhole_edge_certificate_subdomains_refused_total", "Names below wildcards that were one too many.", nil, nil)
)

func (c *certificates) describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descCertExpiry, descCerts, descOrders, descBudget, descBudgetMost, descCapped} {
		ch <- d
	}
}

func (c *certificates) collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	var s certs.ACMEStats
	if c.acme != nil {
		s = c.acme.Stats()
	}
	if c.files != nil {
		for _, h := range c.files.Hosts() {
			if s.Expiry.IsZero() || h.NotAfter.Before(s.Expiry) {
				s.Expiry = h.NotAfter
			}
		}
	}
	if c.acme == nil && c.files == nil {
		return
	}
	expiry := 0.0
	if !s.Expiry.IsZero() {
		expiry = float64(s.Expiry.Unix())
	}
	gauge(descCertExpiry, expiry)
	if c.acme == nil {
		return
	}
	for state, v := range s.ByState {
		gauge(descCerts, float64(v), string(state))
	}
	count(descOrders, s.Ordered, "ordered")
	count(descOrders, s.Issued, "issued")
	count(descOrders, s.Failed, "failed")
	count(descOrders, s.PutOff, "put_off")
	for _, b := range s.Budget {
		gauge(descBudget, float64(b.Used), b.Limit)
		gauge(descBudgetMost, float64(b.Most), b.Limit)
	}
	count(descCapped, s.Capped)
}
