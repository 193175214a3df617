package node

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"wormhole/edge/proxy"
)

// metrics are the node's figures. Labels take values from short fixed lists only:
// no host, path or client makes a series.
type metrics struct {
	registry *prometheus.Registry
	byClass  [6]prometheus.Counter // by status / 100; 0 for what has none
	duration prometheus.Histogram
	in, out  prometheus.Counter
	errors   *prometheus.CounterVec
	retries  *prometheus.CounterVec
}

var _ proxy.Metrics = (*metrics)(nil)

func newMetrics(n *Node) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "wormhole_edge_request_duration_seconds", Help: "Time from a request's head to the end of its answer.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}),
		in:      prometheus.NewCounter(prometheus.CounterOpts{Name: "wormhole_edge_request_body_bytes_total", Help: "Bytes of request bodies taken from clients."}),
		out:     prometheus.NewCounter(prometheus.CounterOpts{Name: "wormhole_edge_response_body_bytes_total", Help: "Bytes of response bodies given to clients."}),
		errors:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "wormhole_edge_errors_total", Help: "Answers made by the edge itself, by their code."}, []string{"code"}),
		retries: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "wormhole_edge_retries_total", Help: "Requests sent again, by reason."}, []string{"reason"}),
	}
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "wormhole_edge_requests_total", Help: "Requests answered, by class of status."}, []string{"class"})
	for i := range m.byClass {
		class := "none"
		if i > 0 {
			class = strconv.Itoa(i) + "xx"
		}
		m.byClass[i] = requests.WithLabelValues(class)
	}
	m.registry.MustRegister(m.duration, m.in, m.out, m.errors, m.retries, requests, &state{node: n},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// RequestDone counts one request.
func (m *metrics) RequestDone(r *proxy.Record) {
	class := r.Status / 100
	if class < 0 || class >= len(m.byClass) {
		class = 0
	}
	m.byClass[class].Inc()
	m.duration.Observe(r.Duration.Seconds())
	if r.BytesIn > 0 {
		m.in.Add(float64(r.BytesIn))
	}
	if r.BytesOut > 0 {
		m.out.Add(float64(r.BytesOut))
	}
	if r.Code != "" {
		m.errors.WithLabelValues(r.Code).Inc()
	}
}

// Retried counts one retry.
func (m *metrics) Retried(_, reason string) { m.retries.WithLabelValues(reason).Inc() }

// state reads what the parts know at the moment of a scrape.
type state struct{ node *Node }

var (
	descTunnels  = prometheus.NewDesc("wormhole_edge_tunnels", "Tunnels open now, by carrier.", []string{"carrier"}, nil)
	descBackends = prometheus.NewDesc("wormhole_edge_backends", "Backends connected now, by state.", []string{"state"}, nil)
	descInFlight = prometheus.NewDesc("wormhole_edge_requests_in_flight", "Requests handed to backends and not finished.", nil, nil)
	descStreams  = prometheus.NewDesc("wormhole_edge_streams", "Streams open in all tunnels, kept ones included.", nil, nil)
	descSites    = prometheus.NewDesc("wormhole_edge_sites", "Sites known.", nil, nil)
	descRefused  = prometheus.NewDesc("wormhole_edge_agents_refused_total", "Agents refused at the door, by code.", []string{"code"}, nil)
	descDraining = prometheus.NewDesc("wormhole_edge_draining", "1 while the node is being taken out of service.", nil, nil)
	descDNS      = prometheus.NewDesc("wormhole_edge_dns_queries_total", "DNS queries, by what became of them.", []string{"result"}, nil)
	descRawOpen  = prometheus.NewDesc("wormhole_edge_tcp_connections", "Raw TCP connections open now.", nil, nil)
	descRaw      = prometheus.NewDesc("wormhole_edge_tcp_connections_total", "Raw TCP connections by how they went: ended properly, cut, or refused for want of a place or a backend.", []string{"result"}, nil)
	descBuild    = prometheus.NewDesc("wormhole_edge_build_info", "1, labelled with the version.", []string{"version"}, nil)
)

// Describe implements prometheus.Collector.
func (s *state) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descTunnels, descBackends, descInFlight, descStreams, descSites, descRefused, descDraining, descDNS, descRawOpen, descRaw, descBuild} {
		ch <- d
	}
	s.node.certs.describe(ch)
}

// Collect implements prometheus.Collector.
func (s *state) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	carriers := map[string]int{"tls": 0, "quic": 0}
	states := map[string]int{"ready": 0, "not_ready": 0, "suspect": 0, "ejected": 0, "draining": 0}
	var inFlight int64
	var streams int
	for _, t := range s.node.door.Tunnels() {
		b := t.Backend()
		carriers[b.Info().Carrier]++
		states[stateOf(b)]++
		inFlight += b.InFlight()
		streams += t.Streams()
	}
	for c, v := range carriers {
		gauge(descTunnels, float64(v), c)
	}
	for c, v := range states {
		gauge(descBackends, float64(v), c)
	}
	gauge(descInFlight, float64(inFlight))
	gauge(descStreams, float64(streams))
	gauge(descSites, float64(len(s.node.sites.List())))
	for code, v := range s.node.door.Refusals() {
		ch <- prometheus.MustNewConstMetric(descRefused, prometheus.CounterValue, float64(v), string(code))
	}
	draining := 0.0
	if s.node.draining.Load() {
		draining = 1
	}
	gauge(descDraining, draining)
	gauge(descRawOpen, float64(s.node.raw.Open()))
	ended, cut, refused := s.node.raw.Counts()
	for result, v := range map[string]uint64{"ended": ended, "cut": cut, "refused": refused} {
		ch <- prometheus.MustNewConstMetric(descRaw, prometheus.CounterValue, float64(v), result)
	}
	gauge(descBuild, 1, s.node.version)
	s.node.certs.collect(ch)
	if s.node.dns != nil {
		for result, v := range s.node.dns.Counts() {
			ch <- prometheus.MustNewConstMetric(descDNS, prometheus.CounterValue, float64(v), result)
		}
	}
}
