package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
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
  edge cluster list
  edge cluster promote fra.example.com sin.example.com
  edge cluster replace sin.example.com ams.example.com`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newClusterList(), newClusterJoinToken(), newClusterLeave(), newClusterPromote(), newClusterReplace())
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
	if len(s.StoreEdges) > 1 {
		state += fmt.Sprintf(", on %d edges", len(s.StoreEdges))
	}
	switch {
	case s.StoreCatchingUp:
		state += ", hosted here, catching up"
	case s.StoreHere:
		state += ", hosted here"
	}
	mesh := s.Mesh
	if s.NATS != "" {
		state, mesh = state+", on "+s.NATS, "none, the bus is on "+s.NATS
	}
	fmt.Fprintf(w, "store\t%s\nmesh\t%s\nroutes\t%d\n\n", state, mesh, s.Routes)
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

func newClusterPromote() *cobra.Command {
	var op operator
	cmd := &cobra.Command{
		Use:   "promote EDGE EDGE",
		Short: "Have the network's store held by three edges: the one that holds it, and two more",
		Long: `Move the network's store from the one edge that holds it to three: that one, and
the two that are named, by node, region or address as edge cluster list shows them.
Any one of the three may then be lost, and the network goes on issuing, applying and
joining after some seconds. Take three that do not fail together.

All three must be up and able to connect to each other. Writes are refused for about a second; requests, tunnels and
certificates do not notice. If it fails before the three have everything, the store
goes on where it was, and the command may be given again. It cannot be taken back,
except by a backup that is restored elsewhere.`,
		Example: `  edge cluster promote fra sin
  edge cluster promote fra.example.com sin.example.com:443
  edge cluster promote 5f0c9e3ab1d27c64 90b1c2d3e4f5a607 --json`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 2 || len(args) > 3 {
				return fmt.Errorf("exactly three edges hold a store: name the two beside the one that holds it now, not %d", len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := op.connect()
			if err != nil {
				return err
			}
			var done cluster.Promotion
			client = client.Patient(cluster.PromoteTimeout + 10*time.Second)
			if err := client.Call(cmd.Context(), http.MethodPost, "/v1/cluster/promote", admin.PromoteRequest{Edges: args}, &done); err != nil {
				return err
			}
			if op.json {
				return printJSON(cmd.OutOrStdout(), done)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "The store of %d entries is held by %s. Writes were refused for %s.\n",
				done.Entries, strings.Join(done.Edges, ", "), (time.Duration(done.HeldMillis) * time.Millisecond).Round(10*time.Millisecond))
			return err
		},
	}
	op.register(cmd, true)
	return cmd
}

func newClusterReplace() *cobra.Command {
	var op operator
	cmd := &cobra.Command{
		Use:   "replace LOST NEW",
		Short: "Have another edge hold the network's store in place of one of the three that do",
		Long: `Give the edge NEW the third copy of the network's store, in place of LOST, when the
machine of LOST is gone for good or is to go. Both are named by node, region or
address as edge cluster list shows them, on any edge of the network.

The two that stay must be up and have everything, and NEW must be up; LOST need not
be. Writes go on, and what was acknowledged is kept. Once it is decided it goes on
whatever happens to the edge that was asked. LOST has no part in the store any more
from then on: if it comes back it is an edge like others, which may leave.

With two of the three lost nothing can be decided: bring one back, or restore a
backup.`,
		Example: `  edge cluster replace sin ams
  edge cluster replace sin.example.com:443 ams.example.com --json
  edge cluster leave 90b1c2d3e4f5a607`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return fmt.Errorf("name the edge that is replaced and the one that takes its place, not %d", len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := op.connect()
			if err != nil {
				return err
			}
			var done cluster.Replacement
			client = client.Patient(cluster.ReplaceTimeout + 10*time.Second)
			if err := client.Call(cmd.Context(), http.MethodPost, "/v1/cluster/replace", admin.ReplaceRequest{Lost: args[0], New: args[1]}, &done); err != nil {
				return err
			}
			if op.json {
				return printJSON(cmd.OutOrStdout(), done)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "The store is held by %s. %s has all of it, in place of %s, after %s.\n",
				strings.Join(done.Edges, ", "), done.New, done.Lost, (time.Duration(done.TookMillis) * time.Millisecond).Round(10*time.Millisecond))
			return err
		},
	}
	op.register(cmd, true)
	return cmd
}
