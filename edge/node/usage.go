package node

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"time"

	"wormhole/edge/admin"
	"wormhole/edge/usage"
	"wormhole/shared/hostname"
)

// lastUsage bounds writing what was counted when the edge ends.
const lastUsage = 3 * time.Second

// writeUsage adds what was counted since the last time to the totals.
func (n *Node) writeUsage() {
	ctx, cancel := context.WithTimeout(context.Background(), lastUsage)
	defer cancel()
	if err := n.usage.Flush(ctx); err != nil {
		n.logger.Warn("what sites used since the last write is not in their totals", "err", err)
	}
}

// Usage are the totals of a month, empty for this one, of the hosts given, or of all.
func (n *Node) Usage(ctx context.Context, month string, hosts []string) (admin.Usage, error) {
	t, err := n.usage.Totals(ctx, month)
	if err != nil {
		return admin.Usage{}, err
	}
	out := admin.Usage{Month: t.Month, Months: t.Months, Damaged: t.Damaged, Sites: []admin.SiteUsage{}}
	if len(hosts) == 0 {
		hosts = slices.Sorted(maps.Keys(t.Sites))
	}
	var total usage.Amounts
	for _, host := range hosts {
		pattern, err := hostname.CanonicalPattern(host)
		if err != nil {
			return admin.Usage{}, &admin.Error{Status: http.StatusUnprocessableEntity, Code: "bad_host", Message: err.Error()}
		}
		used, counted := t.Sites[pattern]
		if _, known := n.sites.Site(pattern); !counted && !known {
			return admin.Usage{}, &admin.Error{
				Status: http.StatusNotFound, Code: "no_such_site", Message: "no site " + pattern + ", and nothing was counted for it in " + t.Month,
			}
		}
		out.Sites = append(out.Sites, admin.UsageOf(pattern, used))
		total.Add(&used)
	}
	out.Total = admin.UsageOf("", total)
	return out, nil
}
