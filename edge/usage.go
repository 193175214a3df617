package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"wormhole/edge/admin"
)

func newUsage() *cobra.Command {
	var (
		op          operator
		month, sort string
	)
	cmd := &cobra.Command{
		Use:   "usage [HOST...]",
		Short: "Show what each site used this month: requests, bytes, connections",
		Long: `Show what each site used in one calendar month (UTC), at all edges together:
requests by class of status, WebSockets, raw TCP connections, and the bytes of
bodies and connections from clients (in) and to them (out). Without HOST all sites
of which something was counted are listed, also those that were deleted since.

Edges add to the totals about once a minute (--usage-interval) and when they drain.
A site below a wildcard is counted as the wildcard. What the edge refuses by a
site's rules (403, 429), redirects to https, or answers for names that are no site,
is not counted. Exact bytes are in --json.`,
		Example: `  edge usage
  edge usage app.example.com --json
  edge usage --month 2026-10 --sort requests`,
		RunE: func(cmd *cobra.Command, args []string) error {
			order, ok := usageOrders[sort]
			if !ok {
				return &configError{fmt.Errorf("--sort: %q is none of bytes, requests, name", sort)}
			}
			if _, err := time.Parse("2006-01", month); month != "" && err != nil {
				return &configError{fmt.Errorf("--month: %q is not a month such as 2026-11", month)}
			}
			client, err := op.connect()
			if err != nil {
				return err
			}
			var u admin.Usage
			query := url.Values{"month": {month}, "host": args}.Encode()
			if err := client.Call(cmd.Context(), http.MethodGet, "/v1/usage?"+query, nil, &u); err != nil {
				var refused *admin.Error
				if errors.As(err, &refused) && refused.Code == "bad_host" {
					return &configError{err}
				}
				return err
			}
			slices.SortStableFunc(u.Sites, func(a, b admin.SiteUsage) int {
				return cmp.Or(order(a, b), strings.Compare(a.Host, b.Host))
			})
			if op.json {
				return printJSON(cmd.OutOrStdout(), u)
			}
			if err := printUsage(cmd.OutOrStdout(), u); err != nil {
				return err
			}
			for _, d := range u.Damaged {
				fmt.Fprintln(cmd.ErrOrStderr(), "edge: warning: not in these totals:", d)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&month, "month", "", "calendar `month` (UTC), such as 2026-11; empty is this one")
	cmd.Flags().StringVar(&sort, "sort", "bytes", "`order`: bytes or requests, the most first, or name")
	op.register(cmd, true)
	return cmd
}

var usageOrders = map[string]func(a, b admin.SiteUsage) int{
	"bytes":    func(a, b admin.SiteUsage) int { return cmp.Compare(b.BytesIn+b.BytesOut, a.BytesIn+a.BytesOut) },
	"requests": func(a, b admin.SiteUsage) int { return cmp.Compare(b.Requests, a.Requests) },
	"name":     func(a, b admin.SiteUsage) int { return 0 },
}

func printUsage(out io.Writer, u admin.Usage) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "HOST\tREQUESTS\t2XX\t3XX\t4XX\t5XX\tWEBSOCKETS\tTCP\tIN\tOUT")
	row := func(name string, s admin.SiteUsage) {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%s\t%s\n", name, s.Requests,
			s.Classes["2xx"], s.Classes["3xx"], s.Classes["4xx"], s.Classes["5xx"], s.Classes["1xx"], s.TCP,
			inBytes(s.BytesIn), inBytes(s.BytesOut))
	}
	for _, s := range u.Sites {
		row(s.Host, s)
	}
	row(fmt.Sprintf("total of %s", u.Month), u.Total)
	return w.Flush()
}

// inBytes is a number of bytes for people, such as 1.5 GiB.
func inBytes(n uint64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n), 0
	for v >= 1023.95 { // which would be printed as 1024.0
		v /= 1 << 10
		unit++
	}
	return fmt.Sprintf("%.1f %ciB", v, "KMGTPE"[unit-1])
}
