package main

import (
	"cmp"
	"fmt"
	"net/http"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"wormhole/edge/admin"
)

func newStatus() *cobra.Command {
	var op operator
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show the edge that runs here and its live backends",
		Example: "  edge status\n  edge status --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := op.connect()
			if err != nil {
				return err
			}
			var s admin.Status
			if err := client.Call(cmd.Context(), http.MethodGet, "/v1/status", nil, &s); err != nil {
				return err
			}
			if op.json {
				return printJSON(cmd.OutOrStdout(), s)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
			fmt.Fprintf(w, "node\t%s\nstate\t%s\n", s.Node, s.State)
			if s.Hostname != "" {
				fmt.Fprintf(w, "hostname\t%s\n", s.Hostname)
			}
			if s.Region != "" {
				fmt.Fprintf(w, "region\t%s\n", s.Region)
			}
			fmt.Fprintf(w, "version\t%s\nup\t%s\n", s.Version, time.Since(s.Started).Round(time.Second))
			for _, door := range []string{"https", "http", "dns", "admin"} {
				if a := s.Addresses[door]; a != "" {
					fmt.Fprintf(w, "%s\t%s\n", door, a)
				}
			}
			for _, p := range s.RawTCP {
				fmt.Fprintf(w, "tcp\t%s\t%s\t%s\n", p.Address, p.Host, cmp.Or(p.Error, fmt.Sprintf("%d open", p.Connections)))
			}
			fmt.Fprintf(w, "sites\t%d\nbackends\t%d\n", s.Sites, len(s.Backends))
			if len(s.Backends) > 0 {
				fmt.Fprintln(w, "\nBACKEND\tSTATE\tHOSTS\tIN FLIGHT\tCARRIER\tREMOTE\tUP")
				for _, b := range s.Backends {
					fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%s\n", b.Name, b.State, joinShort(b.Hosts), b.InFlight, b.Carrier, b.Remote, time.Since(b.Since).Round(time.Second))
				}
			}
			if s.Cluster != nil {
				fmt.Fprintln(w)
				if err := w.Flush(); err != nil {
					return err
				}
				return printCluster(cmd.OutOrStdout(), s.Cluster)
			}
			return w.Flush()
		},
	}
	op.register(cmd, true)
	return cmd
}

func newDrain() *cobra.Command {
	var op operator
	cmd := &cobra.Command{
		Use:   "drain",
		Short: "Take the edge that runs here out of service and let it finish",
		Long: `Take the edge that runs here out of service: readiness turns false, agents are
told to go elsewhere, requests in flight finish, and the process ends, as with
SIGTERM. The command returns once the drain has begun.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := op.connect()
			if err != nil {
				return err
			}
			return client.Call(cmd.Context(), http.MethodPost, "/v1/drain", nil, nil)
		},
	}
	op.register(cmd, false)
	return cmd
}

func joinShort(list []string) string {
	switch len(list) {
	case 0:
		return "-"
	case 1:
		return list[0]
	case 2:
		return list[0] + "," + list[1]
	}
	return fmt.Sprintf("%s,%s +%d", list[0], list[1], len(list)-2)
}
