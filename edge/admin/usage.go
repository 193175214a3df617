package admin

import (
	"context"
	"net/http"

	"wormhole/edge/usage"
)

// Metered is what the API asks of an edge that counts what sites use.
type Metered interface {
	// Usage are the totals of a month such as 2026-11, empty for this one; of the hosts
	// given, or of all of which something was counted.
	Usage(ctx context.Context, month string, hosts []string) (Usage, error)
}

// Usage is what sites used in one calendar month, at all edges together.
type Usage struct {
	Month string      `json:"month"` // such as 2026-11, UTC
	Sites []SiteUsage `json:"sites"`
	Total SiteUsage   `json:"total"` // of Sites
	// Months are those of which totals are kept, the newest first.
	Months []string `json:"months"`
	// Damaged are rows of the store that are missing here, since they cannot be read.
	Damaged []string `json:"damaged,omitempty"`
}

// SiteUsage is what one site used.
type SiteUsage struct {
	Host     string            `json:"host,omitempty"`
	Requests uint64            `json:"requests"`
	Classes  map[string]uint64 `json:"requests_by_class"` // of status: 1xx to 5xx, and none without an answer; WebSockets are 1xx
	BytesIn  uint64            `json:"bytes_in"`          // from clients: bodies, WebSockets, raw TCP
	BytesOut uint64            `json:"bytes_out"`
	TCP      uint64            `json:"tcp_connections"`
}

// UsageOf says what host used.
func UsageOf(host string, a usage.Amounts) SiteUsage {
	return SiteUsage{
		Host: host, Requests: a.Requests(),
		Classes: map[string]uint64{"none": a[0], "1xx": a[1], "2xx": a[2], "3xx": a[3], "4xx": a[4], "5xx": a[5]},
		BytesIn: a[usage.In], BytesOut: a[usage.Out], TCP: a[usage.Connections],
	}
}

// usageCalls are the calls about what sites use.
func usageCalls(call func(pattern string, f func(*http.Request) (any, error)), m Metered) {
	call("GET /v1/usage", func(r *http.Request) (any, error) {
		q := r.URL.Query()
		return m.Usage(r.Context(), q.Get("month"), q["host"])
	})
}
