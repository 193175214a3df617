package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"wormhole/edge/admin"
	"wormhole/edge/authority"
	"wormhole/edge/cluster"
)

func newCluster() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cluster",
		Short: "Make several edges one network, and see who is there",
		Long: `Make several edges one network. Start the first edge with --cluster-listen, print
a join token on it, and start the others with --join and --join-token-file.`,
		Example: `  edge serve --cluster-listen :7443 --region yyz --hostname yyz.example.com
  edge cluster join-token > join.token
  edge serve --cluster-listen :7443 --region fra --hostname fra.example.com --join yyz.example.com:443 --join-token-file join.token
  edge cluster list`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newClusterList(), newClusterJoinToken(), newClusterLeave())
	return cmd
}

func newClusterList() *cobra.Command {
	var op operator
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the other edges, as the edge that runs here sees them",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := op.connect()
			if err != nil {
				return err
			}
			var s cluster.Status
			if err := client.Call(cmd.Context(), http.MethodGet, "/v1/cluster", nil, &s); err != nil {
				return err
			}
			if op.json {
				return printJSON(cmd.OutOrStdout(), s)
			}
			return printCluster(cmd.OutOrStdout(), &s)
		},
	}
	op.register(cmd, true)
	return cmd
}

// printCluster shows who is there, who sees whom, and how stale.
func printCluster(out io.Writer, s *cluster.Status) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	state := "in step"
	if s.Store != "" {
		state = fmt.Sprintf("not reached for %s: %s", time.Since(s.StoreSince).Round(time.Second), s.Store)
	}
	if s.StoreHere {
		state += ", hosted here"
	}
	fmt.Fprintf(w, "store\t%s\nmesh\t%s\nroutes\t%d\n\n", state, s.Mesh, s.Routes)
	fmt.Fprintln(w, "PEER\tREGION\tADDRESS\tSTATE\tHEARD\tSEES")
	for _, p := range s.Peers {
		state := p.Health
		switch {
		case p.Left:
			state = "left"
		case p.Draining:
			state = "draining"
		}
		if p.Store {
			state += ", store"
		}
		heard := "never"
		if p.HeardMillis >= 0 {
			heard = fmt.Sprintf("%s ago", (time.Duration(p.HeardMillis) * time.Millisecond).Round(100*time.Millisecond))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\n", p.Node, p.Region, p.Addr, state, heard, len(p.Sees))
	}
	return w.Flush()
}

func newClusterJoinToken() *cobra.Command {
	var op operator
	var ttl time.Duration
	cmd := &cobra.Command{
		Use:   "join-token",
		Short: "Print a token with which another machine may become an edge of this network",
		Long: `Print a token on standard output and nothing else. Whoever has it while it lasts
may become an edge, and edges hold the network's keys: keep it as you keep a key.
It also tells the newcomer how to recognise this network.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := op.connect()
			if err != nil {
				return err
			}
			var t admin.JoinToken
			if err := client.Call(cmd.Context(), http.MethodPost, "/v1/cluster/join-token", admin.JoinTokenRequest{TTL: ttl}, &t); err != nil {
				return err
			}
			if op.json {
				return printJSON(cmd.OutOrStdout(), t)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), t.Token)
			return err
		},
	}
	cmd.Flags().DurationVar(&ttl, "ttl", authority.DefaultJoinTTL, "how long the token is valid")
	op.register(cmd, true)
	return cmd
}

func newClusterLeave() *cobra.Command {
	var op operator
	cmd := &cobra.Command{
		Use:   "leave [NODE]",
		Short: "Make an edge a member no more: NODE, or the edge that runs here, which then drains",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := op.connect()
			if errors.Is(err, admin.ErrNotRunning) {
				return fmt.Errorf("%w; ask another edge: edge cluster leave NODE", err)
			} else if err != nil {
				return err
			}
			body := map[string]string{"id": ""}
			if len(args) == 1 {
				body["id"] = args[0]
			}
			return client.Call(cmd.Context(), http.MethodPost, "/v1/cluster/leave", body, nil)
		},
	}
	op.register(cmd, false)
	return cmd
}
